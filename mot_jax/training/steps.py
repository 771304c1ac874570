"""The steps of a run, and what is done between them: lines of metrics, checkpoints, held-out losses, pictures."""

import dataclasses
import functools
import os
import time
from collections.abc import Callable
from typing import Any

import jax
from etils import epath
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh

from mot_jax.config import Run
from mot_jax.data.dataset import Dataset
from mot_jax.data.pipeline import evaluation_batches
from mot_jax.data.prefetch import Prefetch
from mot_jax.errors import UserError
from mot_jax.evaluation.usage import memory_usage, usage_metrics
from mot_jax.objectives.next_token import ROUTER
from mot_jax.parallel.agreement import Agreement
from mot_jax.parallel.processes import gather
from mot_jax.parallel.rows import place, place_whole
from mot_jax.training import flops
from mot_jax.training.checkpoint import Checkpoints
from mot_jax.training.interruption import Interruption
from mot_jax.training.metrics import Clock, Window, tokens_of
from mot_jax.training.profiling import ProfileWindow
from mot_jax.training.progress import TrainProgress
from mot_jax.training.run_directory import PROFILE, sample_path
from mot_jax.training.slow_steps import Compilations, SlowSteps, held_up_by
from mot_jax.training.state import TrainState
from mot_jax.training.writers import MetricsFile, TensorBoard

CAUSAL = "causal_"  # losses with auxiliary routers; without, routers may see later tokens
TASKS = "tasks"  # the split of lines of scores
FIRST_PICTURE = 100  # a picture shows by this step, whatever the interval


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything that stays the same while a run trains. `run.model` is resolved."""

    run: Run
    config_text: str
    directory: epath.Path
    dataset: Dataset
    fingerprint: str
    mesh: Mesh
    train_step: Callable
    loss_eval: Callable
    causal_eval: Callable | None  # the same with auxiliary routers, where there are some
    schedule: Callable
    checkpoints: Checkpoints
    metrics: MetricsFile
    board: TensorBoard
    progress: TrainProgress
    evaluates: bool
    draws: bool
    asks: bool


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run begins or goes on: the state after `step`, the data's, and the sums of an unfinished window."""

    state: TrainState
    data_state: dict
    step: int = 0
    window: dict = dataclasses.field(default_factory=dict)


def digests(dataset: Dataset) -> dict[str, str]:
    """What tells a data set's codecs from others, by modality."""
    return {name: codec["digest"] for name, codec in dataset.manifest["codecs"].items()}


class Loop:
    """The steps of a job and what is done between them.

    Values of a step are fetched while the next one runs, so the device never waits for the host to look at them.
    """

    def __init__(self, job: Job, batches: Prefetch, start: Start):
        self.job, self.batches = job, batches
        self.state, self.data_state, self.step = start.state, start.data_state, start.step
        self.window, self.clock = Window(start.window), Clock()
        self.skipped = int(start.state.skipped)
        self.saves: list[float] = []  # seconds that the steps waited for each checkpoint
        self._pending: tuple[int, Any, float] | None = None
        self._saved = start.step or None
        self._flops = flops.run_flops_per_token(job.run)
        self._peak = flops.peak_flops(job.mesh.devices.flat)
        self._rows, self._agreement = job.run.data.global_batch_size, Agreement(job.mesh)
        note = job.progress.note
        self._profile = ProfileWindow(job.run.train.profile, job.directory / PROFILE, note)
        self._slow_steps, self._compilations = SlowSteps(note), Compilations(job.train_step, "the step", note)

    def run(self, caught: Interruption) -> int:
        """Steps until the last one, or soon after a signal came to any of the processes; its number, 0 for none.

        Alone, the step during which it came is the last; several processes, who learn of it with the values of a step,
        take one more.
        """
        try:
            return self._run(caught)
        finally:
            self._profile.close()

    def _run(self, caught: Interruption) -> int:
        first, last = self.step, self.job.run.train.steps
        self._end_window()
        if signal := self._between(caught, again=True):
            return signal
        while self.step < last:
            waited = self.batches.waited
            batch, self.data_state = next(self.batches)
            waited = self.batches.waited - waited
            self.clock.wait(waited)
            self._profile.before(self.step + 1)
            self.state, metrics = self.job.train_step(self.state, place(batch, self.job.mesh, self._rows))
            stopping = self._agreement.soon(caught.signal)
            self._record()
            self.step += 1
            self._profile.after(self.step, metrics)
            self._compilations.check(self.step)
            self._pending = self.step, metrics, waited
            if stopping or self.step in (first + 1, last) or self._due():
                self._record()
                self.clock.stop()
                if stopping:
                    self._checkpoint()
                    return stopping
                if signal := self._between(caught):
                    return signal
                self.clock.start()
        return 0

    def _record(self) -> None:
        """Takes in the values of the step that waits for it, and writes a line where one is due."""
        if self._pending is None:
            return
        (step, values, waited), self._pending = self._pending, None
        before = time.perf_counter()
        values = jax.device_get(values)
        self.clock.block(time.perf_counter() - before)
        train = self.job.run.train
        if (took := self.clock.step(tokens_of(values))) is not None:
            self._slow_steps.step(step, took, waited)
        self.window.add(values)
        self.skipped += int(values["skipped"][0])
        self.job.progress.stepped(step)
        if values["bad_steps"][0] >= train.max_bad_steps:
            saved = f"the newest checkpoint is of step {self._saved}" if self._saved else "there is no checkpoint"
            raise UserError(
                f"Train.max_bad_steps: loss or gradient was not finite {train.max_bad_steps} steps in a row, the last "
                f"one {step}; {saved}; a lower Optimizer.learning_rate or longer Optimizer.warmup_steps may help"
            )
        if self._is_due(train.log_every):  # at self.step, which is this one
            self._log(step)

    def _end_window(self) -> None:
        """The last line of a run that was to be longer when it was saved; a longer one's window begins after it."""
        if self._is_written("train"):
            self.window = Window()
        elif self.window.sums and self.step == self.job.run.train.steps and self._is_due(self.job.run.train.log_every):
            self._log(self.step)

    def _log(self, step: int) -> None:
        means = self.window.means()
        line = {
            "step": step,
            "split": "train",
            **self._by_modality("loss", means),
            **self.clock.line(self._flops, self._peak),
            **self._by_modality("modality_tokens", means),
            **{name: value for name, value in means.items() if name.startswith(ROUTER)},
            "learning_rate": float(self.job.schedule(max(step - 1 - self.skipped, 0))),
            "grad_norm": means.get("grad_norm"),
            **{name: means[name] for name in ("values_grad_norm",) if name in means},
            "skipped": self.skipped,
        }
        self._write(line)
        self.job.progress.train(line)
        self._slow_steps.reported()
        self._find_straggler(step)
        self.window, self.clock = Window(), Clock(started=self.clock.started)

    def _find_straggler(self, step: int) -> None:
        if jax.process_count() == 1 or not self.clock.steps:
            return
        busy = (self.clock.seconds - self.clock.blocked) / self.clock.steps
        if told := held_up_by(gather(f"busy/{step}", busy), self.clock.seconds / self.clock.steps):
            self.job.progress.note(f"step {step}: {told}")

    def _by_modality(self, name: str, means: dict) -> dict:
        """The value over all, if there is one, and each modality's, in the order of the modalities."""
        names = [name, *(f"{name}/{modality}" for modality in self.job.run.model.modalities)]
        return {name: means[name] for name in names if name in means}

    def _write(self, line: dict) -> None:
        self.job.metrics.write(line)
        self.job.board.write(line)

    def _due(self) -> bool:
        train = self.job.run.train
        return (
            self._is_due(train.checkpoint_every)
            or self._is_due(train.eval_every)
            or self._asks_now()
            or self._draws_now()
        )

    def _is_due(self, every: int) -> bool:
        """At multiples of the interval and at the end; an interval of 0 turns the work off."""
        at_end = self.step == self.job.run.train.steps
        return every > 0 and (at_end or (self.step > 0 and self.step % every == 0))

    def _draws_now(self) -> bool:
        every = self.job.run.train.sample_every
        return self.job.draws and (self._is_due(every) or (every > 0 and self.step == min(FIRST_PICTURE, every)))

    def _asks_now(self) -> bool:
        return self.job.asks and self._is_due(self.job.run.train.task_every)

    def _between(self, caught: Interruption, again: bool = False) -> int:
        """What is due after this step. The checkpoint comes first: what follows it is made again by a resumed run.

        Args:
          again: the step was reached by a restore, so some of it may be there already.

        Returns:
          the signal that came meanwhile, 0 for none: the state is saved and what was still due is left.
        """
        job = self.job
        if self._is_due(job.run.train.checkpoint_every):
            self._checkpoint()
        for work in self._work(again):
            if signal := self._agreement.now(caught.signal):
                self._checkpoint()
                return signal
            work()
        return 0

    def _work(self, again: bool) -> list[Callable[[], None]]:
        """What is due after this step but the checkpoint."""
        job, path, made = self.job, sample_path(self.job.directory, self.step), (False, False, False)
        if again:  # as the first process sees it
            made = gather("made", (self._is_written("validation"), self._is_written(TASKS), path.exists()))[0]
        works = (
            (job.evaluates and self._is_due(job.run.train.eval_every), self._evaluate),
            (self._asks_now(), self._ask),
            (self._draws_now(), functools.partial(self._draw, path)),
        )
        return [work for (due, work), done in zip(works, made, strict=True) if due and not done]

    def _checkpoint(self) -> None:
        if self.step == self._saved or not self.job.run.train.checkpoint_every:
            return
        meta = {
            "config": self.job.config_text,
            "data": self.job.fingerprint,
            "artifacts": digests(self.job.dataset),
            "window": self.window.sums,
        }
        data_state = {
            shard: state for own in gather(f"data/{self.step}", self.data_state) for shard, state in own.items()
        }
        began = time.perf_counter()
        self.job.checkpoints.save(self.step, self.state, data_state, meta)
        self.saves.append(time.perf_counter() - began)
        self.clock.saved += self.saves[-1]
        self._saved = self.step

    def _is_written(self, split: str) -> bool:
        return any(line["split"] == split and line["step"] == self.step for line in self.job.metrics.kept)

    def _evaluate(self) -> None:
        job = self.job
        batches = [
            place_whole(batch, job.mesh)
            for batch in evaluation_batches(job.dataset, job.run.data, limit=job.run.eval.batches)
        ]
        line = self._new_line("validation")
        for prefix, evaluate in (("", job.loss_eval), (CAUSAL, job.causal_eval)):
            window = Window()
            for batch in batches if evaluate else ():
                window.add(jax.device_get(evaluate(self.state.params, batch)))
            means = window.means()
            line |= {f"{prefix}{name}": value for name, value in self._by_modality("loss", means).items()}
            line |= {f"{prefix}{name}": value for name, value in means.items() if name.startswith(ROUTER)}
        line |= usage_metrics(memory_usage(job.run, self.state.params, batches, job.mesh))
        if batches:
            self._write(line)
            job.progress.validation(line)

    def _new_line(self, split: str) -> dict:
        return {"step": self.step, "split": split, "training_flops": flops.training_flops(self.job.run, self.step)}

    def _ask(self) -> None:
        """Each task's scores as `<task>/<score>`, so that they can be drawn against steps and FLOPs."""
        from mot_jax.evaluation.tasks import TaskContext, find_task
        from mot_jax.run import LoadedRun

        job, run, params = self.job, self.job.run, self._whole_params()
        if params is None:
            return
        loaded = LoadedRun(run, job.dataset.vocabulary, self._codecs, params, self.step, job.directory)
        context = TaskContext(loaded, job.dataset, run.eval, run.sample, directory=None)
        scores = {
            f"{name}/{score}": value for name in run.eval.tasks for score, value in find_task(name)(context).items()
        }
        line = self._new_line(TASKS) | {name: getattr(score, "value", score) for name, score in scores.items()}
        self._write(line)
        job.progress.tasks(line)

    def _draw(self, path: epath.Path) -> None:
        from mot_jax.evaluation.pictures import sample_picture

        job, params = self.job, self._whole_params()
        if params is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn = sample_picture(
            job.run.model,
            params,
            job.dataset.vocabulary,
            self._codecs,
            job.dataset,
            job.run.sample,
            job.run.train.seed,
            path,
        )
        if drawn:
            job.progress.note(f"step {self.step}/{job.run.train.steps}  picture {os.fspath(path)}")

    def _whole_params(self) -> dict | None:
        """What one process generates with: of several the first, for whom they are gathered; None for the others."""
        if jax.process_count() == 1:
            return self.state.params
        params = process_allgather(self.state.params, tiled=True)
        return params if jax.process_index() == 0 else None

    @functools.cached_property
    def _codecs(self) -> dict:
        return self.job.dataset.load_codecs()
