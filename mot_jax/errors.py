"""Errors a user can cause: one line that says what, where and what was expected; entry points exit with code 2."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in something the user gave: a config, a flag, a file, a record."""


class ConfigError(UserError):
    """A mistake in a config: a name, a type, or values that do not go together."""


class DataError(UserError):
    """A data set, document or codec that is damaged, of another kind, or does not fit the run."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or of another shape than the model."""


def nearest(name: str, options: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` with the closest option, or `"; known: a, b"` when nothing is close."""
    options = sorted(options)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(options)}" if options else ""
