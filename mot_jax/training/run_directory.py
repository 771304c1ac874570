"""The directory of a run: where it is, whether it holds one already, and whether a config may go on with it."""

import dataclasses
import itertools
import os
import time
from typing import Literal

from etils import epath

from mot_jax.config import Run
from mot_jax.errors import CheckpointError, ConfigError, UserError
from mot_jax.gin_config import load_run

CONFIG = "config.gin"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
ARTIFACTS = "artifacts"
SAMPLES = "samples"
TENSORBOARD = "tensorboard"
PROFILE = "profile"
LOSSES = "losses.png"
ROUTERS = "routers.png"
MEMORY = "memory.png"

# What a resumed run may change: its length and intervals, where it runs and how it fits there, how it is looked at.
# Where the data lie may change too: the fingerprint of the data decides whether they are the same.
FREE = frozenset(
    (
        *("Train.steps", "Train.log_every", "Train.checkpoint_every", "Train.eval_every", "Train.sample_every"),
        *("Train.task_every", "Train.profile"),
        *("Train.keep_checkpoints", "Train.max_bad_steps", "Train.init_from", "Train.accumulation"),
        *("Data.path", "Data.cache_dir", "Data.reader_threads", "Data.prefetch", "Data.verify"),
        *("Model.remat", "Model.scan_layers", "Parallel", "Sample", "Eval"),
    )
)


def holds_run(directory: epath.Path) -> bool:
    """Whether anything of a run is there."""
    return any((directory / name).exists() for name in (CONFIG, METRICS, CHECKPOINTS, ARTIFACTS))


def has_checkpoint(directory: epath.Path) -> bool:
    """Whether a checkpoint was ever finished there."""
    return newest_checkpoint(directory) is not None


def newest_checkpoint(directory: epath.Path) -> int | None:
    """The step of the last one that was finished there, None for none; half-written ones have another name."""
    place = directory / CHECKPOINTS
    steps = [int(path.name) for path in place.iterdir() if path.name.isdigit()] if place.exists() else []
    return max(steps, default=None)


def new_directory(name: str) -> epath.Path:
    """`runs/<name>-<time>`, with a number after it where that is taken."""
    base = epath.Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    candidates = itertools.chain([base], (base.with_name(f"{base.name}-{n}") for n in itertools.count(2)))
    return next(directory for directory in candidates if not directory.exists())


def check_directory(directory: epath.Path, resume: Literal["never", "auto", "must"], run: Run) -> bool:
    """Whether a run there is continued from its newest checkpoint; nothing is written.

    Args:
      run: as configured, its model not resolved.

    Raises:
      UserError: the directory holds a run and `resume` is "never", or has no checkpoint and it is "must"; or it
        cannot be written to.
      ConfigError: its run has another config; names the first parameter that differs.
    """
    for place in (directory, directory / CHECKPOINTS):
        _check_writable(place)
    if resume == "never":
        if holds_run(directory):
            raise UserError(f"{directory}: holds a run; --resume=auto goes on with it, another --run_dir keeps both")
        return False
    continues = has_checkpoint(directory)
    if resume == "must" and not continues:
        raise CheckpointError(f"{directory}: --resume=must, but there is no checkpoint in {directory / CHECKPOINTS}")
    if holds_run(directory):
        check_same_config(directory / CONFIG, run)
    return continues


def _check_writable(directory: epath.Path) -> None:
    """Raises UserError where a local directory is something else, or it or what it would be made in is protected."""
    if "://" in str(directory):
        return
    places = map(os.fspath, (directory, *directory.absolute().parents))
    place = next((place for place in places if os.path.lexists(place)), os.sep)
    if not os.path.isdir(place):
        raise UserError(f"--run_dir: expected a directory, but {place} is something else")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"--run_dir: {place} cannot be written to")


def check_same_config(file: epath.Path, run: Run) -> None:
    """Raises ConfigError naming the first parameter, other than the FREE ones, in which a run differs from a file."""
    if not file.exists():
        raise ConfigError(f"{file}: is missing, so this run's config cannot be compared with what is there")
    before, _ = load_run([str(file)])
    if difference := first_difference(before, run):
        name, old, new = difference
        raise ConfigError(f"{name}: the run in {file.parent} has {old!r}, got {new!r}; a resumed run cannot change it")


def first_difference(before: Run, after: Run) -> tuple[str, object, object] | None:
    """(parameter, its value before, its value after) of the first difference that is not FREE."""
    for part in dataclasses.fields(Run):
        old, new = getattr(before, part.name), getattr(after, part.name)
        owner = type(new).__name__
        if owner in FREE:
            continue
        for field in dataclasses.fields(new):
            name = f"{owner}.{field.name}"
            values = getattr(old, field.name), getattr(new, field.name)
            if name not in FREE and values[0] != values[1]:
                return name, *values
    return None


def write_config(directory: epath.Path, text: str) -> None:
    """Makes the directory and writes its config, before anything else and whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f"{CONFIG}.partial"
    partial.write_text(text)
    partial.replace(directory / CONFIG)


def sample_path(directory: epath.Path, step: int) -> epath.Path:
    """The sample picture of a step."""
    return directory / SAMPLES / f"step_{step:06}.png"
