"""Evaluation tasks by name: what a run is asked to do besides predicting tokens."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from etils import epath

from mot_jax.config import Eval, Sample
from mot_jax.errors import ConfigError, nearest

if TYPE_CHECKING:
    from mot_jax.data.dataset import Dataset
    from mot_jax.run import LoadedRun


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """`right` of `count` independent trials."""

    right: int
    count: int

    @property
    def value(self) -> float:
        return self.right / self.count

    @property
    def standard_error(self) -> float:
        """Of a proportion, sqrt(p (1 - p) / n)."""
        return (self.value * (1 - self.value) / self.count) ** 0.5


@dataclasses.dataclass(frozen=True)
class TaskContext:
    """What a task works with.

    Attributes:
      run: the loaded run, with its parameters and codecs.
      dataset: the data set the run was trained on, held-out split included.
      eval: how many prompts, which guidance, which seed.
      sample: how to decode.
      directory: where pictures go, named `eval_<what>.png`; None: draw none.
    """

    run: "LoadedRun"
    dataset: "Dataset"
    eval: Eval
    sample: Sample
    directory: epath.Path | None


Scores = Mapping[str, float | Accuracy]
Task = Callable[[TaskContext], Scores]
_TASKS: dict[str, Task] = {}


def register_task(name: str) -> Callable[[Task], Task]:
    """Makes a function a task that `Eval.tasks` can name.

    A task of your own lives in your module, which `--import your.module` brings in:

        @register_task("colours")
        def colours(context: TaskContext) -> Scores: ...
    """

    def register(task: Task) -> Task:
        _TASKS[name] = task
        return task

    return register


def find_task(name: str) -> Task:
    """The registered task; raises ConfigError with the nearest name."""
    import mot_jax.evaluation.digits  # the imports register the built-in tasks
    import mot_jax.evaluation.facts
    import mot_jax.evaluation.picture_task  # noqa: F401

    if name not in _TASKS:
        raise ConfigError(
            f"Eval.tasks: no task {name!r}{nearest(name, _TASKS)}; a task of your own must be imported first (--import)"
        )
    return _TASKS[name]
