"""Run directories -> arms: the runs of one config that differ by their seeds, with their losses as curves."""

import dataclasses
import itertools
import os
import re
from collections.abc import Sequence

import numpy as np
from etils import epath

from mot_jax import config
from mot_jax.config import Run
from mot_jax.config.text import ABSENT, differences
from mot_jax.data.artifacts import read_manifest, read_vocabulary
from mot_jax.errors import ConfigError, DataError
from mot_jax.evaluation.compare.matching import Curve, trailing_mean
from mot_jax.gin_config import load_run
from mot_jax.training.flops import training_flops
from mot_jax.training.run_directory import ARTIFACTS, CONFIG, FREE, METRICS
from mot_jax.training.writers import read_metrics

SAME_ARM = {"Train.seed"} | (FREE - {"Train.steps", "Train.init_from"})  # what the runs of one arm may differ in
TRAIN, HELD_OUT = "train", "validation"
WINDOW = 0.05  # of the reference's steps: what a training loss is averaged over
ALL = "all"


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """`config` has its model resolved; `lines` are those of metrics.jsonl."""

    directory: epath.Path
    config: Run
    splits: dict  # of its data set
    lines: list[dict]

    @property
    def steps(self) -> int:
        """Steps that it has trained."""
        return max(line["step"] for line in self.lines if line["split"] == TRAIN)


@dataclasses.dataclass(frozen=True)
class Arm:
    """The runs of one config, one a seed."""

    name: str
    runs: tuple[FinishedRun, ...]

    @property
    def sees_future(self) -> bool:
        """Whether routers chose by later tokens: in training, and on held-out data but for auxiliary routers."""
        return config.sees_future(self.runs[0].config.model)

    @property
    def steps(self) -> int:
        """Steps that all of its runs have trained."""
        return min(run.steps for run in self.runs)


def read_run(directory: str) -> FinishedRun:
    """Raises UserError where there is no run, or one without a line of metrics."""
    path = epath.Path(directory)
    if not (path / CONFIG).is_file():
        raise ConfigError(f"compare: no run in {directory} (it has no {CONFIG})")
    run, _ = load_run([os.fspath(path / CONFIG)])
    manifest = read_manifest(path / ARTIFACTS)
    vocabulary = read_vocabulary(manifest, path / ARTIFACTS)
    run = dataclasses.replace(run, model=config.resolve(run.model, vocabulary.names, vocabulary.size))
    lines = read_metrics(path / METRICS)
    if not any(line["split"] == TRAIN and line.get("loss") is not None for line in lines):
        raise DataError(f"compare: {path / METRICS} has no training losses; expected Train.log_every above 0")
    return FinishedRun(path, run, manifest["splits"], lines)


def arms_of(directories: Sequence[str]) -> tuple[Arm, ...]:
    """In the order given; the first is the reference.

    Raises:
      UserError: a directory that is no run or given twice, runs on different data, or fewer than two arms.
    """
    if len({os.path.realpath(directory) for directory in directories}) < len(directories):
        raise ConfigError(f"compare: expected different runs, got {', '.join(directories)}")
    found: list[list[FinishedRun]] = []
    for run in map(read_run, directories):
        for arm in found:
            if not _differences(arm[0], run):
                arm.append(run)
                break
        else:
            found.append([run])
    first = found[0][0]
    for run in (run for arm in found for run in arm):
        if run.splits != first.splits:
            raise DataError(f"compare: {run.directory} was trained on other data than {first.directory}")
    if len(found) < 2:
        raise ConfigError(
            f"compare: expected a reference and at least one other config, got {len(directories)} "
            f"{'runs of one config' if len(directories) > 1 else 'run'}: {', '.join(directories)}"
        )
    names = [_name([run.directory.name for run in arm]) for arm in found]
    if len(set(names)) < len(names):  # runs/a/mot and runs/b/mot
        names = [os.fspath(arm[0].directory) for arm in found]
    return tuple(Arm(name, tuple(arm)) for name, arm in zip(names, found, strict=True))


def _name(names: Sequence[str]) -> str:
    """What the names of an arm's directories begin with: `dense` of dense_10 and dense_11."""
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    prefix = "".join(letters[0] for letters in same)
    return (re.sub(r"[_\-.]\d*$", "", prefix) if len(names) > 1 else prefix) or names[0]


def _differences(one: FinishedRun, other: FinishedRun) -> list[str]:
    """`["Model.dim: 128 became 64"]`, but for what no run's losses depend on."""

    def counts(line: str) -> bool:
        name = line.partition(":")[0].rpartition("/")[2]
        return not {name, name.partition(".")[0]} & SAME_ARM

    return list(filter(counts, differences(one.config, other.config)))


def what_differs(reference: Arm, arm: Arm) -> list[str]:
    """`["Model.untied: () became ('attention',)"]`; a part that one of them lacks is named without its fields."""
    return [line for line in _differences(reference.runs[0], arm.runs[0]) if ABSENT not in line]


def curves(arm: Arm, split: str, modality: str, window: int) -> list[Curve]:
    """A curve a run, those without this loss left out; training losses are means over the `window` steps before.

    Held-out losses are as they were measured, by auxiliary routers where routers would see later tokens.
    """
    name = "loss" if modality == ALL else f"loss/{modality}"
    if split == HELD_OUT and arm.sees_future:
        name = f"causal_{name}"
    found = []
    for run in arm.runs:
        points = [
            (line["step"], line[name]) for line in run.lines if line["split"] == split and line.get(name) is not None
        ]
        if not points:
            continue
        steps, losses = np.array([step for step, _ in points]), np.array([loss for _, loss in points], np.float64)
        if split == TRAIN:
            losses = trailing_mean(steps, losses, window)
        spent = np.array([training_flops(run.config, int(step)) for step in steps])
        found.append(Curve(steps, losses, spent, _seconds(run, steps)))
    return found


def _seconds(run: FinishedRun, steps: np.ndarray) -> np.ndarray:
    """Of training alone, up to each step: the mean step time of each line of metrics times its steps.

    The first steps, which no line times because they compile, count as the first that was timed.
    """
    timed = [(line["step"], line.get("step_seconds")) for line in run.lines if line["split"] == TRAIN]
    known = [took for _, took in timed if took is not None]
    at, total, last, rate = [0], [0.0], 0, known[0] if known else 0.0
    for step, took in timed:
        rate = rate if took is None else took
        at.append(step)
        total.append(total[-1] + rate * (step - last))
        last = step
    return np.interp(steps, at, total)
