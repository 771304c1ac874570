"""The share of a reference's steps, FLOPs and seconds at which a candidate reaches the reference's final loss.

The step matching of the Mixture-of-Transformers paper (arXiv 2411.04996), for runs that have noise and seeds: a loss is
a mean over the seeds, linear between the steps at which it is known, and reached where it is first that low.
"""

import dataclasses
import functools
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
    draws in which the loss was reached, None without draws. `reference_first`: the share of its own steps at which the
    reference is first as low as in the end; where its loss rises in the end, that much of a share is no gain.
    """

    reference: float
    candidate: float
    reference_first: float
    reached: float | None
    steps: Share
    flops: Share
    seconds: Share
    draws_reached: float | None = None


def trailing_mean(
    steps: Int[np.ndarray, " n"], losses: Float[np.ndarray, " n"], window: int
) -> Float[np.ndarray, " n"]:
    """At each step the mean of the losses known in the `window` steps that end there, each of the steps before it."""
    lengths = np.diff(steps, prepend=0)  # a run's last line may be of fewer steps
    sums, lengths = (np.concatenate([[0.0], np.cumsum(x)]) for x in (losses * lengths, lengths))
    first, last = np.searchsorted(steps, steps - window, side="right"), np.arange(1, len(steps) + 1)
    return (sums[last] - sums[first]) / (lengths[last] - lengths[first])


def common_steps(curves: Sequence[Curve]) -> Int[np.ndarray, " n"]:
    """The steps that all of them know, perhaps none."""
    return functools.reduce(np.intersect1d, [curve.steps for curve in curves])


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Over the steps that all of them know."""
    return _mean(_cut(curves))


def _mean(curves: Sequence[Curve]) -> Curve:
    """Of curves with the same steps."""
    losses, flops, seconds = (
        np.mean([getattr(curve, field) for curve in curves], axis=0) for field in ("losses", "flops", "seconds")
    )
    return Curve(curves[0].steps, losses, flops, seconds)


def _cut(curves: Sequence[Curve]) -> list[Curve]:
    """Each at the steps that all of them know."""
    steps = common_steps(curves)
    known = [np.isin(curve.steps, steps) for curve in curves]
    return [
        Curve(steps, curve.losses[at], curve.flops[at], curve.seconds[at])
        for curve, at in zip(curves, known, strict=True)
    ]


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
    """Each a curve a seed, which share at least one step; draws are judged at the steps that all seeds share."""
    reference, candidate = _cut(reference), _cut(candidate)
    whole, other = _mean(reference), _mean(candidate)
    found = _shares(whole, other)
    final = dict(reference=float(whole.losses[-1]), candidate=float(other.losses[-1]))
    final["reference_first"] = _shares(whole, whole)["steps"]
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
    return _mean([curves[i] for i in generator.integers(0, len(curves), len(curves))])


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
