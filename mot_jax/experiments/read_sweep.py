"""Sweeps from TOML files: read whole, and refused in a line where anything in them is wrong."""

import dataclasses
import tomllib
from collections.abc import Mapping
from typing import Any

from etils import epath

from mot_jax.cli import DEFAULT_CONFIG
from mot_jax.errors import ConfigError, nearest
from mot_jax.evaluation.compare.held_out import held_out_rows, held_out_text
from mot_jax.experiments.sweep import Arm, Sweep
from mot_jax.gin_config import configs_directory, load_run


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
        _check_names(path, fields, {"files", "set", "start", "against"}, f"arms.{arm}.")
    reference = given.get("reference", next(iter(arms)))
    if reference not in arms:
        raise ConfigError(f"{path}: reference: no arm {reference!r}{nearest(str(reference), arms)}")
    files = _list(path, given, "files", str)
    sweep = Sweep(
        name=path.stem,
        arms=tuple(
            Arm(
                arm,
                _list(path, fields, "files", str, f"arms.{arm}.")
                or (() if files else (DEFAULT_CONFIG,)),  # as train.py
                _list(path, fields, "set", str, f"arms.{arm}."),
                _start(path, fields, arms, arm),
                _against(path, fields, arms, arm),
            )
            for arm, fields in arms.items()
        ),
        reference=reference,
        seeds=_list(path, given, "seeds", int) or (0,),
        learning_rates=_list(path, given, "learning_rates", float),
        files=files,
        **{key: _list(path, given, key, str) for key in ("set", "search")},
    )
    for arm in sweep.arms:
        try:
            load_run((*sweep.files, *arm.files), (*sweep.set, *arm.set, *sweep.search))
        except ConfigError as error:
            raise ConfigError(f"{path}: arms.{arm.name}: {error}") from error
    _check_comparisons(path, sweep)
    _check_starts(path, sweep)
    return sweep


def _find(name: str) -> epath.Path:
    shipped = epath.Path(configs_directory()) / "sweeps"
    for path in (epath.Path(name), shipped / name, shipped / f"{name}.toml"):
        if path.is_file():
            return path
    known = [path.stem for path in shipped.glob("*.toml")]
    raise ConfigError(f"no sweep {name!r}{nearest(epath.Path(name).name.removesuffix('.toml'), known)}")


def _start(path: epath.Path, fields: Mapping, arms: Mapping, arm: str) -> tuple[str, int] | None:
    start = fields.get("start")
    if start is None:
        return None
    where = f"{path}: arms.{arm}.start"
    name, _, step = start.rpartition("@") if isinstance(start, str) else ("", "", "")
    if not (name and step.isdigit()):
        raise ConfigError(f"{where}: expected an arm and a step, as in 'dense@500', got {start!r}")
    _check_other(where, name, arms, arm)
    return name, int(step)


def _against(path: epath.Path, fields: Mapping, arms: Mapping, arm: str) -> str | None:
    against = fields.get("against")
    if against is not None:
        _check_other(f"{path}: arms.{arm}.against", against, arms, arm)
    return against


def _check_other(where: str, name: object, arms: Mapping, arm: str) -> None:
    if name not in arms or name == arm:
        others = [other for other in arms if other != arm]
        raise ConfigError(f"{where}: no other arm {name!r}{nearest(str(name), others)}")


def _check_comparisons(path: epath.Path, sweep: Sweep) -> None:
    """What cannot be compared in the end is not trained first."""
    compared = {name for reference, names in sweep.comparisons.items() for name in (reference, *names)}
    for arm in sweep.arms:
        if arm.name not in compared:
            raise ConfigError(f"{path}: arms.{arm.name}: nothing is compared with it; expected an `against` for it")
    runs = {arm.name: load_run((*sweep.files, *arm.files), (*sweep.set, *arm.set))[0] for arm in sweep.arms}
    for reference, names in sweep.comparisons.items():
        other = runs[reference]
        for name in names:
            judged = runs[name].train.eval_every and other.train.eval_every
            if judged and held_out_rows(runs[name]) != held_out_rows(other):
                raise ConfigError(
                    f"{path}: arms.{name}: held-out losses are over {held_out_text(runs[name])}, those of {reference} "
                    f"over {held_out_text(other)}; expected the same"
                )


def _check_starts(path: epath.Path, sweep: Sweep) -> None:
    """A step to start from is one whose checkpoint is still there when its arm has been trained."""
    sources = {arm.name: arm for arm in sweep.arms}
    for arm in sweep.arms:
        if arm.start is None:
            continue
        where, (name, step), source = f"{path}: arms.{arm.name}.start", arm.start, sources[arm.start[0]]
        if sweep.learning_rates or source.start:
            reason = "search learning rates" if sweep.learning_rates else f"start from {name}, which has a start itself"
            raise ConfigError(f"{where}: an arm with a start cannot {reason}")
        train = load_run((*sweep.files, *source.files), (*sweep.set, *source.set))[0].train
        every, keep = train.checkpoint_every, train.keep_checkpoints
        saved = sorted({*range(every, train.steps + 1, every), train.steps})[-keep:] if every else []
        if step not in saved:
            raise ConfigError(f"{where}: of {name} the checkpoints {', '.join(map(str, saved))} are kept, not {step}")


def _check_names(path: epath.Path, given: Mapping, known: set[str], where: str = "") -> None:
    for name in given:
        if name not in known:
            raise ConfigError(f"{path}: no field {where}{name}{nearest(name, known)}")


def _list(path: epath.Path, given: Mapping, name: str, kind: type, where: str = "") -> tuple[Any, ...]:
    values = given.get(name, [])
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise ConfigError(f"{path}: {where}{name}: expected a list of {kind.__name__}, got {values!r}")
    return tuple(values)
