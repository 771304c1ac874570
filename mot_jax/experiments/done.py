"""Whether a job's run is there whole: trained to its last step by the job's own config, and judged there."""

import os

from mot_jax.config import Run
from mot_jax.data.artifacts import read_manifest
from mot_jax.errors import ConfigError
from mot_jax.evaluation.compare.runs import HELD_OUT
from mot_jax.experiments.sweep import Job
from mot_jax.gin_config import load_run
from mot_jax.training.run_directory import ARTIFACTS, CHECKPOINTS, CONFIG, METRICS, first_difference
from mot_jax.training.writers import read_metrics


def is_done(job: Job) -> bool:
    """Whether its directory holds the last step's checkpoint and, where held-out losses are measured, the loss there.

    The checkpoint is saved first, so a run killed in between has one and not the other; training makes it up.

    Raises:
      ConfigError: it trains without checkpoints, so that nobody could tell; or what is there is another config's.
    """
    run, directory = job.run, job.directory
    if not run.train.checkpoint_every:
        raise ConfigError(f"{directory.name}: Train.checkpoint_every: expected more than 0 in a sweep")
    if not (directory / CONFIG).is_file():
        return False
    saved, _ = load_run([os.fspath(directory / CONFIG)])
    if difference := _difference(saved, job):
        name, old, new = difference
        raise ConfigError(
            f"{name}: the run in {directory} has {old!r}, this sweep {new!r}; another --dir keeps both, "
            "without that directory it is trained anew"
        )
    last = run.train.steps
    if not (directory / CHECKPOINTS / str(last)).exists():
        return False
    if not run.train.eval_every or HELD_OUT not in read_manifest(directory / ARTIFACTS)["splits"]:
        return True
    return any(line["split"] == HELD_OUT and line["step"] == last for line in read_metrics(directory / METRICS))


def _difference(saved: Run, job: Job) -> tuple[str, object, object] | None:
    """(parameter, its value there, its value here) of the first that makes it another run.

    More than what a resumed run cannot change: a schedule ends with `Train.steps`, another start is another run, and
    held-out losses depend on `Eval.batches`.
    """
    run = job.run
    if difference := first_difference(saved, run):
        return difference
    steps, batches = (saved.train.steps, run.train.steps), (saved.eval.batches, run.eval.batches)
    starts = before, after = saved.train.init_from, run.train.init_from
    if before and after and job.after is not None:
        starts = os.path.basename(before), os.path.basename(after)  # the directory that both lie in may have moved
    for name, values in (("Train.steps", steps), ("Train.init_from", starts), ("Eval.batches", batches)):
        if values[0] != values[1]:
            return name, *values
    return None
