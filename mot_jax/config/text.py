"""A run as gin text that holds every parameter, and what differs between two runs."""

import dataclasses
import itertools
from collections.abc import Mapping

from mot_jax.config import Run
from mot_jax.config.types import config_classes, full_name
from mot_jax.errors import ConfigError

ABSENT = "absent"  # what a difference says where one run has no such parameter


def run_text(run: Run) -> str:
    """Every parameter of a run as gin text; equal runs have the same text."""
    names = _names()
    found: dict[type, list[tuple[str, object]]] = {}  # class -> [(path, instance)] of distinct instances
    _collect(run, "", found)
    lines = ["# Every parameter of one run, defaults included: given as --gin_file it is the same run."]
    for cls, instances in found.items():
        name = names[full_name(cls)]
        for path, instance in instances:
            scope = f"{path}/" if len(instances) > 1 else ""
            lines.append("")
            for field in dataclasses.fields(instance):
                if field.init:
                    where = f"{cls.__name__}.{field.name}"
                    value = _format(getattr(instance, field.name), where, names, found)
                    lines.append(f"{scope}{name}.{field.name} = {value}")
    return "\n".join(lines) + "\n"


def differences(old: Run, new: Run) -> list[str]:
    """`["Model.dim: 128 became 64"]`: what differs between two runs, by full parameter name."""
    before, after = (
        dict(line.split(" = ", 1) for line in run_text(run).splitlines() if " = " in line) for run in (old, new)
    )
    return [
        f"{name}: {before.get(name, ABSENT)} became {after.get(name, ABSENT)}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]


def _collect(value, path: str, found: dict) -> None:
    """Fills `found` with the distinct config instances of each class, in the order of the fields."""
    if dataclasses.is_dataclass(value):
        instances = found.setdefault(type(value), [])
        if all(value != other for _, other in instances):
            instances.append((path or "run", value))
            for field in dataclasses.fields(value):
                _collect(getattr(value, field.name), f"{path}_{field.name}".lstrip("_"), found)
    elif isinstance(value, Mapping | tuple | list):
        items = [value[key] for key in sorted(value)] if isinstance(value, Mapping) else value
        for index, item in enumerate(items):
            _collect(item, f"{path}_{index}", found)


def _names() -> dict[str, str]:
    """Full class name -> as little of it as tells the class from the other config classes."""
    known, names = config_classes(), {}
    for name in known:
        tails = list(itertools.accumulate(reversed(name.split(".")), lambda tail, part: f"{part}.{tail}"))
        others = [f".{other}" for other in known if other != name]
        names[name] = next(tail for tail in [*tails[:-1], name] if not any(o.endswith(f".{tail}") for o in others))
    return names


def _format(value, where: str, names: dict, found: dict) -> str:
    if dataclasses.is_dataclass(value):
        name, instances = names[full_name(type(value))], found[type(value)]
        path = next(path for path, other in instances if other == value)
        return f"@{path}/{name}()" if len(instances) > 1 else f"@{name}()"
    if value is None or isinstance(value, bool | int | str):
        return repr(value)
    if isinstance(value, float) and value == value:
        return repr(value).replace("inf", "1e999")  # gin reads literals only
    if isinstance(value, tuple):
        items = [_format(item, where, names, found) for item in value]
        return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
    if isinstance(value, list):
        return f"[{', '.join(_format(item, where, names, found) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {_format(value[key], where, names, found)}' for key in sorted(value))}}}"
    raise ConfigError(
        f"{where}: {value!r} cannot be written to a config; use numbers, strings, tuples or config classes"
    )
