"""A sweep: arms that differ in their config, each trained with several seeds. Read from TOML."""

import dataclasses
import tomllib
from collections.abc import Mapping
from typing import Any

from etils import epath

from mot_jax.config import Run
from mot_jax.errors import ConfigError, nearest
from mot_jax.gin_config import configs_directory, load_run

RATE = "Optimizer.learning_rate"


@dataclasses.dataclass(frozen=True)
class Arm:
    """One config: gin files, then bindings as they are spelt there."""

    name: str
    files: tuple[str, ...] = ()
    set: tuple[str, ...] = ()


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


@dataclasses.dataclass(frozen=True)
class Job:
    """One run to train: where, and what `train.py` is given."""

    directory: epath.Path
    files: tuple[str, ...]
    bindings: tuple[str, ...]

    @property
    def run(self) -> Run:
        return load_run(self.files, self.bindings)[0]

    @property
    def arguments(self) -> list[str]:
        """Of `python train.py`; it starts, or goes on where it was."""
        files = [word for file in self.files for word in ("--gin_file", file)]
        bindings = [word for binding in self.bindings for word in ("--gin_bindings", binding)]
        return [*files, *bindings, "--run_dir", str(self.directory), "--resume=auto"]


def read_sweep(name: str) -> Sweep:
    """A sweep's file, or the name of a shipped one.

    Raises:
      ConfigError: there is none, or something in it is misspelt, or an arm's config is wrong; all arms are read.
    """
    path = _find(name)
    try:
        given = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: no TOML: {error}") from error
    _check_names(path, given, {field.name for field in dataclasses.fields(Sweep)} - {"name"})
    arms = given.get("arms")
    if not isinstance(arms, Mapping) or len(arms) < 2:
        raise ConfigError(f"{path}: expected at least two arms, each a table as in [arms.dense]")
    for arm, fields in arms.items():
        if not isinstance(fields, Mapping):
            raise ConfigError(f"{path}: arms.{arm}: expected a table, got {fields!r}")
        _check_names(path, fields, {"files", "set"}, f"arms.{arm}.")
    reference = given.get("reference", next(iter(arms)))
    if reference not in arms:
        raise ConfigError(f"{path}: reference: no arm {reference!r}{nearest(str(reference), arms)}")
    sweep = Sweep(
        name=path.stem,
        arms=tuple(
            Arm(
                arm,
                _list(path, fields, "files", str, f"arms.{arm}."),
                _list(path, fields, "set", str, f"arms.{arm}."),
            )
            for arm, fields in arms.items()
        ),
        reference=reference,
        seeds=_list(path, given, "seeds", int) or (0,),
        learning_rates=_list(path, given, "learning_rates", float),
        **{key: _list(path, given, key, str) for key in ("files", "set", "search")},
    )
    for arm in sweep.arms:
        try:
            load_run((*sweep.files, *arm.files), (*sweep.set, *arm.set, *sweep.search))
        except ConfigError as error:
            raise ConfigError(f"{path}: arms.{arm.name}: {error}") from error
    return sweep


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
            directory / f"{arm.name}_{seed}",
            *([f"{RATE} = {rates[arm.name]!r}"] if arm.name in rates else []),
            seed=seed,
        )
        for seed in sweep.seeds
        for arm in sweep.arms
    ]


def _job(sweep: Sweep, arm: Arm, directory: epath.Path, *more: str, seed: int) -> Job:
    bindings = (*sweep.set, *arm.set, *more, f"Train.seed = {seed}")
    return Job(directory, (*sweep.files, *arm.files), bindings)


def _find(name: str) -> epath.Path:
    shipped = epath.Path(configs_directory()) / "sweeps"
    for path in (epath.Path(name), shipped / name, shipped / f"{name}.toml"):
        if path.is_file():
            return path
    known = [path.stem for path in shipped.glob("*.toml")]
    raise ConfigError(f"no sweep {name!r}{nearest(epath.Path(name).name.removesuffix('.toml'), known)}")


def _check_names(path: epath.Path, given: Mapping, known: set[str], where: str = "") -> None:
    for name in given:
        if name not in known:
            raise ConfigError(f"{path}: no field {where}{name}{nearest(name, known)}")


def _list(path: epath.Path, given: Mapping, name: str, kind: type, where: str = "") -> tuple[Any, ...]:
    values = given.get(name, [])
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise ConfigError(f"{path}: {where}{name}: expected a list of {kind.__name__}, got {values!r}")
    return tuple(values)
