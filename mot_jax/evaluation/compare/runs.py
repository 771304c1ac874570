"""A run directory as a comparison reads it, with the run that it went on from."""

import dataclasses
import os

from etils import epath

from mot_jax import config
from mot_jax.config import Run
from mot_jax.data.artifacts import read_manifest, read_vocabulary
from mot_jax.errors import ConfigError, DataError
from mot_jax.gin_config import load_run
from mot_jax.training.init_from import split_step
from mot_jax.training.run_directory import ARTIFACTS, CONFIG, METRICS, newest_checkpoint
from mot_jax.training.writers import read_metrics

TRAIN, HELD_OUT = "train", "validation"


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """`config` has its model resolved; `lines` are those of metrics.jsonl.

    `before`: the run whose documents it goes on in (`Train.keep_data`), from its step `began_at` on. What that one
    spent until then counts as spent by this one.
    """

    directory: epath.Path
    config: Run
    splits: dict  # of its data set
    lines: list[dict]
    before: "FinishedRun | None" = None
    began_at: int = 0

    @property
    def steps(self) -> int:
        """Steps that it has trained, with those before it."""
        return self.began_at + max(line["step"] for line in self.lines)

    @property
    def wanted(self) -> int:
        """Steps that it will have when it is finished."""
        return self.began_at + self.config.train.steps


def read_run(directory: str) -> FinishedRun:
    """Raises UserError where there is no run, or one without a line of metrics, or not the run that it went on from."""
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
    if not run.train.keep_data:
        return FinishedRun(path, run, manifest["splits"], lines)
    before, at = _before(path, run.train.init_from)
    return FinishedRun(path, run, manifest["splits"], lines, before, at)


def _before(path: epath.Path, source: str) -> tuple[FinishedRun, int]:
    directory, step = split_step(source)
    if not (epath.Path(directory) / CONFIG).is_file():
        raise ConfigError(f"compare: {path} goes on from {directory} (Train.init_from), where there is no run")
    before = read_run(directory)
    if step is None and (step := newest_checkpoint(before.directory)) is None:  # none is left
        return before, before.steps
    return before, before.began_at + step
