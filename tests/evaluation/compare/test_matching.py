"""Step matching on curves whose answer is known."""

import numpy as np
import pytest

from mot_jax.evaluation.compare.matching import Curve, common_steps, match, mean_curve, reach, trailing_mean


def curve(losses, every=10, flops=3.0, seconds=0.5) -> Curve:
    steps = every * np.arange(1, len(losses) + 1)
    return Curve(steps, np.asarray(losses, float), flops * steps, seconds * steps)


def power(scale, steps=1000, **spent) -> Curve:
    """scale / step."""
    return curve(scale / (10.0 * np.arange(1, steps // 10 + 1)), **spent)


def test_the_share_of_steps_is_the_ratio_of_scales():
    """a / (s T) = b / T: s = a / b."""
    found = match([power(100.0)], [power(40.0, flops=6.0, seconds=1.0)])
    assert found.steps.value == pytest.approx(0.4, abs=2e-3)
    assert found.flops.value == pytest.approx(0.8, abs=4e-3)
    assert found.seconds.value == pytest.approx(0.8, abs=4e-3)
    assert found.steps.low is None and found.draws_reached is None
    assert found.reached == pytest.approx(400, abs=2) and found.reference == 0.1 and found.candidate == 0.04


def test_a_slower_candidate_is_not_reached_unless_it_trains_on():
    reference = power(40.0)
    never = match([reference], [power(100.0)])
    assert never.steps.value is never.flops.value is never.seconds.value is never.reached is None
    assert match([reference], [power(100.0, steps=3000)]).steps.value == pytest.approx(2.5, abs=1e-2)
    assert match([reference], [reference]).steps.value == 1


def test_between_two_steps_it_is_linear_and_the_first_time_counts():
    falling = curve([4.0, 2.0, 3.0, 1.0])
    assert reach(falling, 3.5) == (12.5, 37.5, 6.25)
    assert reach(falling, 2.0)[0] == 20
    assert reach(falling, 4.0)[0] == 10
    assert reach(falling, 0.9) is None


def test_a_trailing_mean_knows_nothing_later(rng):
    steps, losses = np.array([5, 10, 20, 25, 40]), rng.random(5)
    each = np.repeat(losses, [5, 5, 10, 5, 15])  # of steps 1 to 40
    begun = [0, 0, 5, 10, 25]  # where the first line begins that ends less than 15 steps back
    naive = [each[first:step].mean() for first, step in zip(begun, steps, strict=True)]
    np.testing.assert_allclose(trailing_mean(steps, losses, 15), naive)


def test_seeds_are_averaged_where_all_are_known():
    mean = mean_curve([curve([4.0, 2.0, 1.0]), curve([2.0, 1.0])])
    assert mean.steps.tolist() == [10, 20] and mean.losses.tolist() == [3.0, 1.5]


def test_intervals_hold_the_value_and_grow_with_the_seeds_spread(rng):
    def seeds(scale, spread):
        return [power(scale * (1 + spread * x)) for x in (-1.0, 0.0, 1.0)]

    narrow, wide = (match(seeds(100.0, spread), seeds(50.0, spread)) for spread in (0.01, 0.1))
    for found in (narrow, wide):
        assert found.steps.low <= found.steps.value <= found.steps.high
        assert found.draws_reached == 1
    assert wide.steps.high - wide.steps.low > 5 * (narrow.steps.high - narrow.steps.low)
    assert match(seeds(100.0, 0.1), seeds(50.0, 0.1)) == wide  # the draws are the same ones


def test_draws_that_never_reach_leave_the_upper_bound_open():
    reference = [power(100.0 * x) for x in (0.97, 1.0, 1.03)]
    found = match(reference, [power(99.5 * x) for x in (0.97, 1.0, 1.03)])
    assert 0.1 < found.draws_reached < 0.95 and found.steps.high is None and found.steps.low is not None


def test_draws_of_seeds_end_where_all_seeds_do():
    """A seed that went on alone has no part in them, or a draw of it would be another comparison."""
    longer = [power(100.0), power(100.0, steps=2000)]
    assert common_steps(longer)[-1] == 1000
    found = match(longer, [power(80.0)])
    assert found.reference == 0.1 and found.steps.low == found.steps.high == pytest.approx(0.8, abs=2e-3)


def test_a_reference_that_rises_in_the_end_had_its_last_loss_before():
    found = match([curve([4.0, 1.0, 2.0, 3.0])], [curve([4.0, 1.0, 2.0, 3.0])])
    assert found.reference_first == found.steps.value == pytest.approx((10 + 10 / 3) / 40)
    assert match([power(100.0)], [power(100.0)]).reference_first == 1
