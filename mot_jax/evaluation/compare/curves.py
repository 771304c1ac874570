"""The losses of an arm as curves over steps, FLOPs and seconds, one a run."""

import numpy as np

from mot_jax import config
from mot_jax.evaluation.compare.arms import Arm
from mot_jax.evaluation.compare.matching import Curve, trailing_mean
from mot_jax.evaluation.compare.runs import HELD_OUT, TRAIN, FinishedRun
from mot_jax.training.flops import training_flops

WINDOW = 0.05  # of the reference's steps: what a training loss is averaged over
ALL = "all"


def curves(arm: Arm, split: str, modality: str, window: int) -> list[Curve]:
    """A curve a run, those without this loss left out; training losses are means over the `window` steps before.

    Held-out losses are as they were measured, by auxiliary routers where routers would see later tokens.
    """
    found = [_curve(run, split, modality) for run in arm.runs]
    found = [curve for curve in found if len(curve.steps)]
    if split != TRAIN:
        return found
    return [Curve(c.steps, trailing_mean(c.steps, c.losses, window), c.flops, c.seconds) for c in found]


def _curve(run: FinishedRun, split: str, modality: str) -> Curve:
    """As measured, after the run that it goes on from."""
    name = "loss" if modality == ALL else f"loss/{modality}"
    if split == HELD_OUT and config.sees_future(run.config.model):
        name = f"causal_{name}"
    points = [(line["step"], line[name]) for line in run.lines if line["split"] == split and line.get(name) is not None]
    steps, losses = np.array([step for step, _ in points], int), np.array([loss for _, loss in points], np.float64)
    flops = np.array([training_flops(run.config, int(step)) for step in steps], np.float64)
    own = Curve(steps, losses, flops, _seconds(run, steps))
    if run.before is None:
        return own
    before, at = _curve(run.before, split, modality), run.began_at
    until = before.steps <= at
    flops, seconds = _spent(run.before, at)
    pairs = (
        (before.steps, steps + at),
        (before.losses, losses),
        (before.flops, own.flops + flops),
        (before.seconds, own.seconds + seconds),
    )
    return Curve(*(np.concatenate([first[until], second]) for first, second in pairs))


def _spent(run: FinishedRun, step: int) -> tuple[float, float]:
    """FLOPs and seconds until a step, which counts those of the run before."""
    if run.before is not None and step <= run.began_at:
        return _spent(run.before, step)
    own = step - run.began_at
    flops, seconds = training_flops(run.config, own), float(_seconds(run, np.array([own]))[0])
    if run.before is None:
        return flops, seconds
    before = _spent(run.before, run.began_at)
    return before[0] + flops, before[1] + seconds


def _seconds(run: FinishedRun, steps: np.ndarray) -> np.ndarray:
    """Of training alone, up to each step: the mean step time of each line of metrics times its steps.

    The first steps, which no line times because they compile, count as the first that was timed; steps after the last
    line, which a run has that was stopped, as those of that line.
    """
    timed = [(line["step"], line.get("step_seconds")) for line in run.lines if line["split"] == TRAIN]
    known = [took for _, took in timed if took is not None]
    at, total, last, rate = [0], [0.0], 0, known[0] if known else 0.0
    for step, took in timed:
        rate = rate if took is None else took
        at.append(step)
        total.append(total[-1] + rate * (step - last))
        last = step
    return np.interp(steps, at, total) + rate * np.maximum(steps - last, 0)
