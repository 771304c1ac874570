"""Gin files and bindings -> a checked `Run`, and back to text. The only module that knows gin.

The grammar is gin's own parser. Building is ours, with gin's meaning of scopes, macros and references: gin's builder
keeps a global registry, takes values of any type, ignores unused names, and imports modules that a file names.
"""

import contextlib
import dataclasses
import importlib.util  # noqa: F401  (gin 0.5.0 uses it without importing it)
import re
import tokenize
import typing
from collections.abc import Sequence
from pathlib import Path

from etils import epath
from gin import config_parser

from mot_jax.config import Run, check_run
from mot_jax.config.text import run_text
from mot_jax.config.types import check, config_classes, dataclasses_in, full_name
from mot_jax.errors import ConfigError, nearest

Scope = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Reference:
    """`@scope/Class()`."""

    scope: Scope
    selector: str
    called: bool


@dataclasses.dataclass(frozen=True)
class _Macro:
    """`%NAME`."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Binding:
    """A value as written. `where` prefixes messages; `raw` is the text of a flag, for strings without quotes."""

    value: object
    where: str = ""
    raw: str | None = None


class _Delegate(config_parser.ParserDelegate):
    def configurable_reference(self, name, evaluate):
        *scope, selector = name.split("/")
        return _Reference(tuple(scope), selector, evaluate)

    def macro(self, name):
        return _Macro(name)


@dataclasses.dataclass
class _Config:
    """What the files and bindings said so far. Keys of `bindings`: (scope, full class name, field)."""

    classes: dict[str, type]
    bindings: dict[tuple[Scope, str, str], _Binding] = dataclasses.field(default_factory=dict)
    macros: dict[str, _Binding] = dataclasses.field(default_factory=dict)
    used: set = dataclasses.field(default_factory=set)


def load_run(files: Sequence[str] = (), bindings: Sequence[str] = ()) -> tuple[Run, str]:
    """Reads gin files in order, then bindings; later settings win.

    Args:
      files: paths, or names of shipped configs such as `digits_dense`.
      bindings: `"Train.steps = 200"`; a string may go without quotes here.

    Returns:
      The run, and its operative config: every parameter as text that loads to an equal run and the same text.

    Raises:
      ConfigError: one line with the place, what was expected and the nearest right spelling.
    """
    config = _Config(config_classes())
    for file in files:
        _read_file(config, find_config(file), ())
    for binding in bindings:
        _read_binding(config, binding)
    run = _build(config, Run, (), None, ())
    _refuse_unused(config)
    check_run(run)
    return run, run_text(run)


def configs_directory() -> Path:
    """The configs shipped with the package: beside it in a checkout, inside it in a wheel."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def find_config(name: str, beside: str | None = None, where: str = "") -> str:
    """The path of a gin file: beside the including file, as given, or among the shipped configs.

    Raises:
      ConfigError: there is none, with the nearest shipped name.
    """
    shipped = configs_directory()
    short = name.removeprefix("configs/")
    candidates = [epath.Path(beside).parent / name] if beside else []
    candidates += [epath.Path(name), shipped / short, shipped / "presets" / short, shipped / "pods" / short]
    for candidate in candidates:
        for path in (candidate, candidate.parent / f"{candidate.name}.gin"):
            if path.name.endswith(".gin") and path.is_file():
                return str(path)
    if epath.Path(name).is_file():
        raise ConfigError(f"{where}{name}: expected a file that ends in .gin")
    if name and epath.Path(name).is_dir():
        raise ConfigError(f"{where}{name}: expected a gin file, but it is a directory")
    known = {path.stem for path in shipped.rglob("*.gin") if not path.stem.startswith("_")}
    raise ConfigError(f"{where}no gin file {name!r}{nearest(epath.Path(name).name.removesuffix('.gin'), known)}")


def _read_file(config: _Config, path: str, including: tuple[str, ...]) -> None:
    if path in including:
        raise ConfigError(f"{including[-1]}: includes itself through {path}")
    for statement in _parse(_read_text(path), path):
        where = f"{path}:{statement.location.line_num}: "
        if isinstance(statement, config_parser.IncludeStatement):
            _read_file(config, find_config(statement.filename, path, where), (*including, path))
        else:
            _bind(config, statement, where)


def _read_text(path: str) -> str:
    try:
        return epath.Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}:{line}: expected UTF-8 text, got the byte 0x{error.object[error.start]:02x}"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read_binding(config: _Config, text: str) -> None:
    """One binding, or several on lines of their own. A value that gin cannot read is taken as a bare string."""
    try:
        statements = list(_parse(text, ""))
    except ConfigError:
        lines = text.splitlines()
        if len(lines) > 1:
            for line in lines:
                _read_binding(config, line)
            return
        key, equals, raw = (part.strip() for part in text.partition("="))
        if not equals or not raw or raw[0] in "'\"([{@%" or not re.fullmatch(r"[\w./]+", key):
            raise
        scope, selector, field = config_parser.parse_binding_key(key)
        location = config_parser.Location(None, 1, None, text)
        statements = [config_parser.BindingStatement(scope, selector, field, raw, location)]
    for statement in statements:
        if isinstance(statement, config_parser.IncludeStatement):
            _read_file(config, find_config(statement.filename), ())
        else:
            raw = text.partition("=")[2].strip() if len(statements) == 1 else None
            _bind(config, statement, "", raw)


def _parse(text: str, path: str) -> list:
    """Statements of gin text; a mistake becomes `path:line: what: the line`."""
    prefix = f"{path}:" if path else ""
    try:
        return list(config_parser.ConfigParser(text, _Delegate()))
    except tokenize.TokenError as error:
        message, (line, _) = error.args
        raise ConfigError(f"{prefix}{line}: {message}" if path else f"{message}: {text.strip()}") from error
    except SyntaxError as error:
        message, line = error.msg.splitlines()[0].strip().rstrip("."), error.lineno or 1
        shown = (text.splitlines() or [""])[min(line, len(text.splitlines())) - 1].strip()
        if "malformed node" in message:
            message = "cannot read the value (a string needs quotes)"
        raise ConfigError(f"{prefix}{line}: {message}: {shown}" if path else f"{message}: {shown}") from error


def _bind(config: _Config, statement, where: str, raw: str | None = None) -> None:
    if isinstance(statement, config_parser.ImportStatement):
        raise ConfigError(f"{where}a config imports nothing; use the flag --import {statement.module}")
    if isinstance(statement, config_parser.BlockDeclaration):
        _lookup(config, statement.selector, where)
        return
    binding = _Binding(statement.value, where, raw)
    if not statement.arg_name:
        config.macros["/".join(filter(None, (statement.scope, statement.selector)))] = binding
        return
    cls = _lookup(config, statement.selector, where)
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    if statement.arg_name not in names:
        raise ConfigError(
            f"{where}{cls.__name__} has no field {statement.arg_name!r}{nearest(statement.arg_name, names)}"
        )
    scope = tuple(filter(None, statement.scope.split("/")))
    config.bindings[scope, full_name(cls), statement.arg_name] = binding


def _lookup(config: _Config, selector: str, where: str) -> type:
    matches = [name for name in config.classes if f".{name}".endswith(f".{selector}")]
    if len(matches) > 1:
        raise ConfigError(f"{where}{selector!r} may be {' or '.join(sorted(matches))}: write more of the name")
    if not matches:
        known = {cls.__name__ for cls in config.classes.values()}
        hint = nearest(selector, known)
        raise ConfigError(f"{where}no config class {selector!r}{hint} (one of your own needs --import its.module)")
    return config.classes[matches[0]]


def _build(config: _Config, cls: type, scope: Scope, base: object | None, within: tuple) -> object:
    """An instance of `cls` from the bindings of `scope` and its prefixes; unbound fields come from `base`."""
    if (cls, scope) in within:
        raise ConfigError(f"@{'/'.join((*scope, cls.__name__))}() refers to itself")
    within = (*within, (cls, scope))
    hints, values = typing.get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        name, binding = f"{cls.__name__}.{field.name}", None
        for length in range(len(scope) + 1):
            key = (scope[:length], full_name(cls), field.name)
            if key in config.bindings:
                binding = config.bindings[key]
                config.used.add(key)
        if binding is None:
            value = _default(field, base, name)
            if dataclasses.is_dataclass(value):
                value = _build(config, type(value), scope, value, within)
            values[field.name] = check(value, hints[field.name], name)
        else:
            value = _evaluate(config, binding.value, scope, within, f"{binding.where}{name}: ")
            values[field.name] = _checked(value, binding, hints[field.name], name)
    try:
        return cls(**values)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{cls.__name__}: {error}") from error


def _checked(value, binding: _Binding, hint, name: str):
    try:
        return check(value, hint, binding.where + name)
    except ConfigError:
        if isinstance(value, int | float) and re.fullmatch(r"\S+", binding.raw or ""):
            with contextlib.suppress(ConfigError):  # a flag such as --gin.Data.path=2024 is a string after all
                return check(binding.raw, hint, name)
        raise


def _default(field: dataclasses.Field, base: object | None, name: str):
    if base is not None:
        return getattr(base, field.name)
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    raise ConfigError(f"{name}: has no default and is not set")


def _evaluate(config: _Config, value, scope: Scope, within: tuple, where: str):
    if isinstance(value, _Reference):
        cls = _lookup(config, value.selector, where)
        if not value.called:
            raise ConfigError(f"{where}write @{value.selector}() with parentheses")
        return _build(config, cls, value.scope or scope, None, within)
    if isinstance(value, _Macro):
        if value.name not in config.macros:
            raise ConfigError(f"{where}no macro %{value.name}{nearest(value.name, config.macros)}")
        if value in within:
            raise ConfigError(f"{where}%{value.name} refers to itself")
        config.used.add(value.name)
        return _evaluate(config, config.macros[value.name].value, scope, (*within, value), where)
    if isinstance(value, list | tuple):
        return type(value)(_evaluate(config, item, scope, within, where) for item in value)
    if isinstance(value, dict):
        return {key: _evaluate(config, item, scope, within, where) for key, item in value.items()}
    return value


def _refuse_unused(config: _Config) -> None:
    for name, binding in config.macros.items():
        if name not in config.used:
            raise ConfigError(f"{binding.where}{name} is set but never used; a value refers to it as %{name}")
    for (scope, name, field), binding in config.bindings.items():
        if (scope, name, field) not in config.used:
            cls = config.classes[name]
            reference = "/".join((*scope, cls.__name__))
            holders = [
                f"{owner.__name__}.{name}"
                for owner in config.classes.values()
                for name, hint in typing.get_type_hints(owner).items()
                if any(issubclass(cls, held) for held in dataclasses_in(hint))
            ]
            place = f", such as {holders[0]}" if holders else ""
            raise ConfigError(
                f"{binding.where}{reference}.{field} is set but never used; no value{place}, refers to @{reference}()"
            )
