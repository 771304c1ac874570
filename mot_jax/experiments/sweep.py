"""A sweep: arms that differ in their config, each trained with several seeds; and the runs that this makes."""

import dataclasses
from collections.abc import Mapping

from etils import epath

from mot_jax.config import Run
from mot_jax.gin_config import load_run

RATE = "Optimizer.learning_rate"


@dataclasses.dataclass(frozen=True)
class Arm:
    """One config: gin files, train.py's default where it and its sweep name none; then bindings, spelt as there.

    start: another arm and one of its steps, whose parameters, copied into groups and experts as it takes, and documents
      each seed goes on from (`Train.init_from`, `Train.keep_data`); `Train.steps` are those after it.
    against: the arm that it is compared with; None: the sweep's reference, unless others are compared with this one.
    """

    name: str
    files: tuple[str, ...] = ()
    set: tuple[str, ...] = ()
    start: tuple[str, int] | None = None
    against: str | None = None


@dataclasses.dataclass(frozen=True)
class Sweep:
    """`files` and `set` come before every arm's own.

    learning_rates: each arm first tries these with the first seed, with the bindings of `search` (a shorter run); the
      one with the lowest held-out loss trains every seed. None given: each arm keeps its config's.
    """

    name: str
    arms: tuple[Arm, ...]
    reference: str
    seeds: tuple[int, ...] = (0,)
    files: tuple[str, ...] = ()
    set: tuple[str, ...] = ()
    learning_rates: tuple[float, ...] = ()
    search: tuple[str, ...] = ()

    @property
    def comparisons(self) -> dict[str, tuple[str, ...]]:
        """Reference -> the arms that are compared with it, in the order of the arms."""
        references = {self.reference, *(arm.against for arm in self.arms)}
        found: dict[str, tuple[str, ...]] = {}
        for arm in self.arms:
            against = arm.against or (None if arm.name in references else self.reference)
            if against is not None:
                found[against] = (*found.get(against, ()), arm.name)
        return found


@dataclasses.dataclass(frozen=True)
class Job:
    """One run to train: where, what `train.py` is given, and the directory of the run that has to be there first."""

    directory: epath.Path
    files: tuple[str, ...]
    bindings: tuple[str, ...]
    after: epath.Path | None = None

    @property
    def run(self) -> Run:
        return load_run(self.files, self.bindings)[0]

    @property
    def arguments(self) -> list[str]:
        """Of `python train.py`; it starts, or goes on where it was."""
        files = [word for file in self.files for word in ("--gin_file", file)]
        bindings = [word for binding in self.bindings for word in ("--gin_bindings", binding)]
        return [*files, *bindings, "--run_dir", str(self.directory), "--resume=auto"]


def search_jobs(sweep: Sweep, directory: epath.Path) -> dict[str, dict[float, Job]]:
    """By arm and learning rate; none where the sweep names no learning rates."""
    place, seed = directory / "learning_rates", sweep.seeds[0]
    return {
        arm.name: {
            rate: _job(sweep, arm, place / f"{arm.name}_{rate:g}", *sweep.search, f"{RATE} = {rate!r}", seed=seed)
            for rate in sweep.learning_rates
        }
        for arm in sweep.arms
    }


def jobs(sweep: Sweep, directory: epath.Path, rates: Mapping[str, float]) -> list[Job]:
    """Every arm with every seed, the first seed of all arms first; `rates` are the chosen ones."""
    return [
        _job(
            sweep,
            arm,
            run_directory(directory, arm.name, seed),
            *([f"{RATE} = {rates[arm.name]!r}"] if arm.name in rates else []),
            seed=seed,
            after=arm.start and run_directory(directory, arm.start[0], seed),
        )
        for seed in sweep.seeds
        for arm in sweep.arms
    ]


def run_directory(directory: epath.Path, arm: str, seed: int) -> epath.Path:
    return directory / f"{arm}_{seed}"


def _job(sweep: Sweep, arm: Arm, directory: epath.Path, *more: str, seed: int, after: epath.Path | None = None) -> Job:
    bindings = (*sweep.set, *arm.set, *more, f"Train.seed = {seed}")
    if after is not None:
        bindings += (f"Train.init_from = {f'{after}@{arm.start[1]}'!r}", "Train.keep_data = True")
    return Job(directory, (*sweep.files, *arm.files), bindings, after)
