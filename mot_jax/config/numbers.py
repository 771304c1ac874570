"""Checks of single numbers, in one wording."""

import math

from mot_jax.errors import ConfigError


def check_least(name: str, value: int | float | None, least: int) -> None:
    if value is not None and not (value >= least and math.isfinite(value)):
        raise ConfigError(f"{name}: expected a number that is at least {least}, got {value}")


def check_positive(name: str, value: int | float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"{name}: expected a number that is more than 0, got {value}")
