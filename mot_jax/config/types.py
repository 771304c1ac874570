"""The config classes there are, and checking a value against the type of its field."""

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping

from mot_jax.config import FrozenMapping, Run
from mot_jax.errors import ConfigError, nearest

_EMPTY = type(None)


def config_classes() -> dict[str, type]:
    """Every config class by full name: those reachable from `Run`'s fields, and all their subclasses."""
    classes: dict[str, type] = {}
    queue = [Run]
    while queue:
        cls = queue.pop(0)
        name = full_name(cls)
        if classes.get(name) is cls:
            continue
        classes[name] = cls  # of two classes with one name (a notebook cell run again) the later one
        queue += [hint for hints in typing.get_type_hints(cls).values() for hint in dataclasses_in(hints)]
        queue += [sub for sub in cls.__subclasses__() if dataclasses.is_dataclass(sub)]
    return classes


def full_name(cls: type) -> str:
    """Module and name: what a selector in a config matches the end of."""
    return f"{cls.__module__}.{cls.__name__}"


def dataclasses_in(hint: object) -> Iterator[type]:
    """The config classes inside a type such as `tuple[Block, ...]` or `RopeScaling | None`."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
    for inner in typing.get_args(hint):
        yield from dataclasses_in(inner)


def check(value: object, hint: object, name: str) -> object:
    """The value as its field wants it: an int for a float becomes one, lists tuples, dicts `FrozenMapping`.

    Raises:
      ConfigError: another type, or none of a Literal's values; `name` says which field.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is typing.Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _check_union(value, arguments, name)
    if origin is typing.Literal:
        if not any(value == option and type(value) is type(option) for option in arguments):
            raise _mismatch(value, hint, name)
        return value
    if origin is tuple and isinstance(value, tuple | list):
        inner = arguments[:1] * len(value) if arguments[-1:] == (Ellipsis,) else arguments
        if len(inner) != len(value):
            raise ConfigError(f"{name}: expected {len(inner)} items, got {len(value)} in {show(value)}")
        return tuple(check(item, one, f"{name}[{i}]") for i, (item, one) in enumerate(zip(value, inner, strict=True)))
    if origin is list and isinstance(value, tuple | list):
        return [check(item, arguments[0], f"{name}[{i}]") for i, item in enumerate(value)]
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return FrozenMapping(
            {
                check(key, arguments[0], f"{name}: key {show(key)}"): check(item, arguments[1], f"{name}[{key!r}]")
                for key, item in value.items()
            }
        )
    if hint is float and type(value) is int:
        return float(value)
    expected = _EMPTY if hint is None else (origin or hint)
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise _mismatch(value, hint, name)
    return value


def _check_union(value, arguments, name: str):
    if value is None and _EMPTY in arguments:
        return None
    inner = [argument for argument in arguments if argument is not _EMPTY]
    for argument in inner:
        try:
            return check(value, argument, name)
        except ConfigError as error:
            if len(inner) == 1:
                raise
            last = error
    raise ConfigError(f"{name}: expected {' or '.join(map(describe, arguments))}, got {show(value)}") from last


def _mismatch(value, hint, name: str) -> ConfigError:
    close = ""
    if typing.get_origin(hint) is typing.Literal and isinstance(value, str):
        close = nearest(value, typing.get_args(hint))
        close = close if "mean" in close else ""
    return ConfigError(f"{name}: expected {describe(hint)}, got {show(value)}{close}")


def describe(hint: object) -> str:
    """A type as a person would name it: `int`, `one of 'a', 'b'`, `a tuple of str`, `@Source()`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin is tuple:
        return f"a tuple such as ({', '.join(_example(a) for a in arguments if a is not Ellipsis)},)"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a dict of {describe(arguments[0])} to {describe(arguments[1])}"
    if hint in (None, _EMPTY):
        return "None"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(describe, arguments))
    if dataclasses.is_dataclass(hint):
        names = sorted({sub.__name__ for sub in hint.__subclasses__()} or {hint.__name__})
        return " or ".join(f"@{name}()" for name in names)
    return getattr(hint, "__name__", str(hint))


def _example(hint) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return repr(arguments[0])
    if origin is tuple:
        return f"({', '.join(_example(a) for a in arguments if a is not Ellipsis)},)"
    if dataclasses.is_dataclass(hint):
        return f"@{hint.__name__}()"
    return {str: "'name'", int: "1", float: "1.0"}.get(hint, describe(hint))


def show(value: object) -> str:
    """A value for a message: config instances by class, the rest as written."""
    if dataclasses.is_dataclass(value):
        return f"@{type(value).__name__}()"
    if isinstance(value, tuple):
        return f"({', '.join(map(show, value))}{',' if len(value) == 1 else ''})"
    return repr(value)
