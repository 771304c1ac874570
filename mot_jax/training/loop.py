"""Training, whole: from a run's config to its directory."""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import signal
import time
from collections.abc import Callable
from typing import Literal

import jax
from etils import epath
from jax.sharding import Mesh
from rich.console import Console

from mot_jax import config
from mot_jax.config import Run
from mot_jax.config.memory import LANES, value_dim
from mot_jax.data.cache import ensure_dataset
from mot_jax.data.dataset import Dataset, copy_artifacts, open_dataset
from mot_jax.data.pipeline import check_same_stream, stream_fingerprint, train_stream
from mot_jax.data.prefetch import Prefetch
from mot_jax.errors import ConfigError, DataError, UserError, nearest
from mot_jax.generation.auxiliary import cannot_generate
from mot_jax.nn import count
from mot_jax.parallel.mesh import make_mesh
from mot_jax.parallel.processes import check_same, gather
from mot_jax.parallel.rows import own_shards
from mot_jax.training import run_directory
from mot_jax.training.checkpoint import Checkpoints
from mot_jax.training.curves import draw_losses
from mot_jax.training.disk import disk_errors
from mot_jax.training.init_from import init_from
from mot_jax.training.interruption import interruption
from mot_jax.training.memory_picture import draw_memory
from mot_jax.training.model_table import model_table
from mot_jax.training.optimizer import make_optimizer
from mot_jax.training.progress import TrainProgress, duration_text, preparation, say
from mot_jax.training.router_picture import draw_routers
from mot_jax.training.run_lock import run_lock
from mot_jax.training.state import TrainState, abstract_state, fresh_state, init_state, state_shardings
from mot_jax.training.step import make_loss_eval, make_train_step
from mot_jax.training.steps import Job, Loop, Start, digests
from mot_jax.training.table_memory import check_table_fits
from mot_jax.training.writers import MetricsFile, TensorBoard, read_metrics

GATHERED = 2**28  # parameters, up to which several processes give them to one that generates


def train(run: Run, run_dir: epath.PathLike, resume: Literal["never", "auto", "must"], config_text: str) -> int:
    """Trains `run` in `run_dir` and returns the exit code.

    Args:
      resume: "never" refuses a directory that holds a run, "auto" continues one where there is a checkpoint, "must"
        wants one.
      config_text: the operative config of `run`; written into the directory and every checkpoint.

    Returns:
      0, or 130 and 143 when Ctrl-C or SIGTERM ended the run early, its state saved.

    Raises:
      UserError: a config, directory, data set or checkpoint that does not fit; too many non-finite steps in a row.
    """
    first = jax.process_index() == 0
    console = Console(quiet=not first)
    note = functools.partial(say, console)
    directory = epath.Path(run_dir)
    continues = run_directory.check_directory(directory, resume, run)
    check_same("config", config_text, _another_config)
    check_same("continues", continues, functools.partial(_not_shared, directory))
    with preparation(console) as report:
        place = ensure_dataset(run.data, report)
    # What the cache returns was verified there.
    dataset = open_dataset(place, verify=run.data.verify and run.data.path is not None)
    vocabulary = dataset.vocabulary
    run = dataclasses.replace(run, model=config.resolve(run.model, vocabulary.names, vocabulary.size))
    _check_names(run)
    mesh, rules = make_mesh(run.parallel), config.rules_with(run.parallel.rules)
    check_table_fits(run, mesh)
    tx, schedule = make_optimizer(run.optimizer, run.train.steps, run.train.only)
    train_step, loss_eval = make_train_step(run, vocabulary, mesh, tx), make_loss_eval(run, vocabulary, mesh)
    by_auxiliary = config.sees_future(run.model) and run.model.auxiliary_routers
    causal_eval = make_loss_eval(run, vocabulary, mesh, causal=True) if by_auxiliary else None
    shards = own_shards(mesh, run.data.global_batch_size, run.data.shards)
    stream = train_stream(dataset, run.data, run.train.seed, shards=shards)
    fingerprint = stream_fingerprint(dataset, run.data, run.train.seed)
    check_same("data", fingerprint, _other_data)

    with contextlib.ExitStack() as stack:
        # The outermost, so that a signal cannot cut short the last checkpoint's way to disk.
        caught = stack.enter_context(interruption())
        stack.enter_context(disk_errors(directory))
        stack.enter_context(run_lock(directory))
        checkpoints = stack.enter_context(
            Checkpoints(directory / run_directory.CHECKPOINTS, keep=run.train.keep_checkpoints, report=note)
        )
        if continues:
            state = abstract_state(run.model, tx, mesh, rules, only=run.train.only)
            start = _restored(checkpoints, state, fingerprint)
            stream.restore(start.data_state)
        else:
            state, data_state = _initial_state(run, tx, mesh, dataset, fingerprint, note)
            if data_state is not None:
                stream.restore(data_state)
            start = Start(state, stream.state())
        # Everything that can be refused has been: only now is anything written.
        if first:
            run_directory.write_config(directory, config_text)
            copy_artifacts(place, directory / run_directory.ARTIFACTS)
        gather("written", None)
        check_same("visible", run_directory.holds_run(directory), functools.partial(_not_shared, directory))
        _introduce(run, directory, start.step if continues else None, mesh.devices.flat[0].platform, console)
        evaluates, drawing = gather("shows", _shows(dataset, note))[0]  # the first process draws
        generates = _can_generate(run, directory, note)
        metrics = stack.enter_context(MetricsFile(directory / run_directory.METRICS, start.step, write=first))
        board = stack.enter_context(TensorBoard(directory / run_directory.TENSORBOARD, start.step, note, write=first))
        batches = stack.enter_context(Prefetch(stream, run.data.prefetch))
        progress = stack.enter_context(TrainProgress(run.train.steps, start.step, console))
        job = Job(
            run=run,
            config_text=config_text,
            directory=directory,
            dataset=dataset,
            fingerprint=fingerprint,
            mesh=mesh,
            train_step=train_step,
            loss_eval=loss_eval,
            causal_eval=causal_eval,
            schedule=schedule,
            checkpoints=checkpoints,
            metrics=metrics,
            board=board,
            progress=progress,
            evaluates=evaluates,
            draws=evaluates and drawing and generates,
            asks=bool(run.eval.tasks) and generates,
        )
        loop = Loop(job, batches, start)
        began = time.perf_counter()
        stopped_by = loop.run(caught)
        took = time.perf_counter() - began
    if drawing and first:
        with disk_errors(directory):
            lines = read_metrics(directory / run_directory.METRICS)
            draw_losses(lines, directory / run_directory.LOSSES)
            draw_routers(lines, directory / run_directory.ROUTERS)
            draw_memory(lines, directory / run_directory.MEMORY)
    if loop.saves:
        held = sum(loop.saves)
        note(f"checkpoints: {len(loop.saves)} saved, the steps waited {held:.2f} s for them ({held / took:.1%})")
    split, dropped = (sum(counts) for counts in zip(*gather("cut", (stream.split, stream.dropped)), strict=True))
    if split or dropped:
        note(
            f"longer than a row of {run.data.sequence_length} tokens, of the documents read since this start: "
            f"{split:,} cut, {dropped:,} left out"
        )
    if stopped_by:
        saved = f"saved; --run_dir {directory} --resume=auto goes on" if run.train.checkpoint_every else "nothing saved"
        note(f"stopped by {signal.Signals(stopped_by).name} after step {loop.step}, {saved}")
        return 128 + stopped_by
    note(f"done: step {loop.step} after {duration_text(took)}, everything in {os.fspath(directory)}")
    return 0


def _not_shared(directory: epath.Path, process: int, *_) -> UserError:
    return UserError(
        f"--run_dir: process {process} does not see in {directory} what process 0 does; expected a shared one"
    )


def _another_config(process: int, *texts: str) -> ConfigError:
    lines = next(pair for pair in zip(*(text.splitlines() for text in texts), strict=False) if pair[0] != pair[1])
    return ConfigError(f"process {process} has the config line {lines[0]!r}, process 0 {lines[1]!r}; expected the same")


def _other_data(process: int, *fingerprints: str) -> DataError:
    values, expected = map(json.loads, fingerprints)
    name = next(name for name in expected if values.get(name) != expected[name])
    return DataError(f"{name}: process {process} has {values.get(name)}, process 0 {expected[name]}; expected the same")


def _check_names(run: Run) -> None:
    """Refuses names that only the data and the imported tasks can confirm, before any work is spent on the run."""
    from mot_jax.evaluation.tasks import find_task

    if run.train.only and run.train.init_from is None:
        raise ConfigError("Train.only: expected Train.init_from, the run whose parameters stay as they are")
    if run.train.only and not config.sees_future(run.model):
        raise ConfigError("Train.only: this model has no auxiliary routers to train; none of its routers needs one")
    for name in run.train.modality_weights:
        if name not in run.model.modalities:
            raise ConfigError(
                f"Train.modality_weights: no modality {name!r} in the data{nearest(name, run.model.modalities)}"
            )
    for task in run.eval.tasks:
        find_task(task)


def _restored(checkpoints: Checkpoints, state: TrainState, fingerprint: str) -> Start:
    """Where the newest checkpoint that loads left off; refuses one of other data."""
    restored = checkpoints.restore(state, check=lambda meta: check_same_stream(meta["data"], fingerprint))
    return Start(restored.state, restored.data_state, restored.step, restored.meta["window"])


def _initial_state(
    run: Run, tx, mesh: Mesh, dataset: Dataset, fingerprint: str, note: Callable[[str], None]
) -> tuple[TrainState, dict | None]:
    """A new state, its parameters random or another run's; and where the data goes on, None for the beginning."""
    rules = config.rules_with(run.parallel.rules)
    if run.train.init_from is None:
        return init_state(run.model, tx, mesh, run.train.seed, rules), None
    params, step, meta, data_state = init_from(run.train.init_from, run.model, mesh, run.train.seed, rules)
    note(f"parameters of {run.train.init_from}, step {step}")
    if run.train.keep_data:
        check_same_stream(meta["data"], fingerprint)
    if meta["artifacts"] != digests(dataset):
        note(f"{run.train.init_from} has other codecs than this data: its token ids may mean other things")
    only = run.train.only
    shardings = state_shardings(run.model, tx, mesh, rules, only=only)
    make = jax.jit(lambda params: fresh_state(params, tx, only), out_shardings=shardings)
    return make(params), data_state if run.train.keep_data else None


def _shows(dataset: Dataset, note: Callable[[str], None]) -> tuple[bool, bool]:
    """(whether there is held-out data to look at, whether there is something to draw with); says what is missing."""
    held_out = "validation" in dataset.manifest["splits"]
    if not held_out:
        note("no split `validation` in the data: no held-out losses, no sample pictures")
    drawing = importlib.util.find_spec("matplotlib") is not None
    if not drawing:
        note("no pictures: matplotlib is not installed (the extra `logging` has it)")
    return held_out, drawing


def _can_generate(run: Run, directory: epath.Path, note: Callable[[str], None]) -> bool:
    reason = cannot_generate(run.model, directory)
    if jax.process_count() > 1 and count.stored(run.model) > GATHERED:
        reason = f"more than {GATHERED:,} parameters in several processes; eval.py makes them of a checkpoint, in one"
    if reason and (run.train.sample_every or run.train.task_every):
        note(f"no sample pictures, no tasks: {reason}")
    return reason is None


def _introduce(run: Run, directory: epath.Path, resumed: int | None, platform: str, console: Console) -> None:
    note = functools.partial(say, console)
    stored, activated = count.stored(run.model), count.activated(run.model)
    note(f"run directory: {os.fspath(directory)}" + ("" if resumed is None else f", from step {resumed}"))
    note(f"parameters: {stored:,} stored, {activated:,} activated by a token")
    console.print(model_table(run.model, run.data.sequence_length))
    memory = run.model.memory
    if platform == "tpu" and memory and (width := value_dim(memory, run.model.dim)) % LANES:
        note(f"Memory.value_dim: {width} is no multiple of {LANES}; no kernel reads such rows, XLA does")
    tokens = run.data.global_batch_size * run.data.sequence_length
    note(f"data: {', '.join(run.model.modalities)}; {tokens:,} tokens a step, {run.train.steps} steps")
