"""The share of a reference's steps, FLOPs and seconds at which a candidate reaches the reference's final loss.

The step matching of the Mixture-of-Transformers paper (arXiv 2411.04996), for runs that have noise and seeds: a loss is
a mean over the seeds, linear between the steps at which it is known, and reached where it is first that low.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

DRAWS = 1000
SHARE = 0.95  # of the draws inside an interval


@dataclasses.dataclass(frozen=True)
class Curve:
    """One run's loss of one kind: float64[n] at increasing steps, after as many FLOPs and seconds of training."""

    steps: Int[np.ndarray, " n"]
    losses: Float[np.ndarray, " n"]
    flops: Float[np.ndarray, " n"]
    seconds: Float[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Share:
    """Of what the reference spent. None: not reached, by the mean or by so many draws that the bound is open."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Match:
    """A candidate against a reference. Losses are final ones, means over seeds; `reached` is a step of the candidate.

    Intervals are bootstrap percentiles over seeds of both, None where each has one. `draws_reached`: the share of the
    draws in which the loss was reached.
    """

    reference: float
    candidate: float
    reached: float | None
    steps: Share
    flops: Share
    seconds: Share
    draws_reached: float | None = None


def trailing_mean(
    steps: Int[np.ndarray, " n"], losses: Float[np.ndarray, " n"], window: int
) -> Float[np.ndarray, " n"]:
    """At each step the mean of the losses known in the `window` steps that end there."""
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    first, last = np.searchsorted(steps, steps - window, side="right"), np.arange(1, len(steps) + 1)
    return (sums[last] - sums[first]) / (last - first)


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Over the steps that all of them know."""
    steps = curves[0].steps
    for curve in curves[1:]:
        steps = np.intersect1d(steps, curve.steps)

    def mean(field: str) -> np.ndarray:
        return np.mean([getattr(curve, field)[np.isin(curve.steps, steps)] for curve in curves], axis=0)

    return Curve(steps, mean("losses"), mean("flops"), mean("seconds"))


def reach(curve: Curve, loss: float) -> tuple[float, float, float] | None:
    """(steps, FLOPs, seconds) at which the curve is first at or below a loss, None if it never is."""
    below = np.flatnonzero(curve.losses <= loss)
    if not len(below):
        return None
    after = below[0]
    if after == 0:
        return float(curve.steps[0]), float(curve.flops[0]), float(curve.seconds[0])
    before = after - 1
    way = (curve.losses[before] - loss) / (curve.losses[before] - curve.losses[after])
    return tuple(float(of[before] + way * (of[after] - of[before])) for of in (curve.steps, curve.flops, curve.seconds))


def match(reference: Sequence[Curve], candidate: Sequence[Curve], seed: int = 0) -> Match:
    """Each a curve a seed; all share at least one step."""
    whole, other = mean_curve(reference), mean_curve(candidate)
    found = _shares(whole, other)
    final = dict(reference=float(whole.losses[-1]), candidate=float(other.losses[-1]))
    reached = reach(other, final["reference"])
    at = None if reached is None else reached[0]
    if len(reference) == len(candidate) == 1:
        return Match(**final, reached=at, **{name: Share(value) for name, value in found.items()})
    generator = np.random.default_rng(seed)
    draws = [_shares(_drawn(reference, generator), _drawn(candidate, generator)) for _ in range(DRAWS)]
    intervals = {name: Share(value, *_interval([draw[name] for draw in draws])) for name, value in found.items()}
    share = sum(draw["steps"] is not None for draw in draws) / DRAWS
    return Match(**final, reached=at, **intervals, draws_reached=share)


def _drawn(curves: Sequence[Curve], generator: np.random.Generator) -> Curve:
    return mean_curve([curves[i] for i in generator.integers(0, len(curves), len(curves))])


def _shares(reference: Curve, candidate: Curve) -> dict[str, float | None]:
    spent = (reference.steps[-1], reference.flops[-1], reference.seconds[-1])
    reached = reach(candidate, float(reference.losses[-1]))
    if reached is None:
        return dict.fromkeys(("steps", "flops", "seconds"))
    return {name: float(x / y) for name, x, y in zip(("steps", "flops", "seconds"), reached, spent, strict=True)}


def _interval(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """The middle of the draws; a draw that never reached the loss is above all others."""
    ordered = sorted(np.inf if value is None else value for value in values)
    tail = (1 - SHARE) / 2
    low, high = (ordered[round(at * (len(ordered) - 1))] for at in (tail, 1 - tail))
    return tuple(None if np.isinf(bound) else float(bound) for bound in (low, high))
