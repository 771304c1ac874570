"""Refusing a memory's table that the devices cannot hold, before anything is allocated."""

import math
import os

import jax
from jax.sharding import Mesh

from mot_jax.config import Model, Rules, Run, rules_with
from mot_jax.config.memory import table_shape, value_dim
from mot_jax.errors import ConfigError

SPLIT = ("value_row", "value_column")
MOMENTS, GRADIENT = 8, 4  # bytes an entry: two float32, and one


def check_table_fits(run: Run, mesh: Mesh, room: int | None = None) -> None:
    """Raises ConfigError with how many bytes the tables and their optimizer state take and how many devices that needs.

    Args:
      room: bytes of a device; None asks the first one, and nothing is refused where it does not tell.
    """
    memory = run.model.memory
    if room is None:
        device = mesh.local_devices[0]
        room = device_bytes(device)
        if room is not None and device.platform == "cpu":
            room //= mesh.size  # they share it
    if memory is None or room is None:
        return
    tables = 1 if memory.shared else len(memory.layers)
    by_row = run.optimizer.values.update == "touched" and mesh.size == 1
    moments = 0 if run.train.only else MOMENTS  # frozen tables have none
    entry = _stored(run.model) + moments + (0 if by_row else GRADIENT)
    total = tables * _entries(run.model) * entry
    rules = rules_with(run.parallel.rules)
    parts = table_parts(mesh, rules)
    over = " x ".join(rules[axis] for axis in SPLIT if rules[axis]) or "rules"
    if (each := total / parts) > room:
        pieces = math.prod(table_shape(memory, run.model.dim)[:2])  # into as many it can be divided at most
        enough = next(n for n in range(math.ceil(total / room), pieces + 1) if pieces % n == 0)
        raise ConfigError(
            f"Memory.num_keys: {memory.num_values:,} values of {value_dim(memory, run.model.dim):,} with gradients "
            f"and moments take {_gib(total)}, so {_gib(each)} on each of {parts} devices (Parallel.{over}) of "
            f"{_gib(room)}; expected at least {enough} devices"
        )


def check_table_loads(model: Model, device: jax.Device) -> None:
    """Raises ConfigError for tables that are more than this one device's memory."""
    room = device_bytes(device)
    if model.memory is None or room is None:
        return
    tables = 1 if model.memory.shared else len(model.memory.layers)
    total = tables * _entries(model) * _stored(model)
    if total > room:
        raise ConfigError(
            f"Memory.num_keys: {model.memory.num_values:,} values of {value_dim(model.memory, model.dim):,} take "
            f"{_gib(total)}, and generating needs them on one device, of {_gib(room)}"
        )


def table_parts(mesh: Mesh, rules: Rules) -> int:
    """Devices over which a table is split."""
    return math.prod(mesh.shape[rules[axis]] for axis in SPLIT if rules[axis])


def device_bytes(device: jax.Device) -> int | None:
    """Memory of a device, None where it does not tell; of a CPU the machine's."""
    if device.platform == "cpu":
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, OSError, ValueError):  # not on this system
            return None
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit")


def _entries(model: Model) -> int:
    return model.memory.num_values * value_dim(model.memory, model.dim)


def _stored(model: Model) -> int:
    """Bytes of an entry."""
    return 2 if model.memory.dtype == "bfloat16" else 4


def _gib(size: float | int) -> str:
    return f"{size / 2**30:,.1f} GiB"
