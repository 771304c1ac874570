"""Refusing a memory's table that the devices cannot hold, before anything is allocated."""

import math
import os

from jax.sharding import Mesh

from mot_jax.config import Run
from mot_jax.config_memory import value_dim
from mot_jax.errors import ConfigError
from mot_jax.parallel.rules import RULES

MOMENTS = 8  # bytes an entry: two float32


def check_table_fits(run: Run, mesh: Mesh, room: int | None = None) -> None:
    """Raises ConfigError with how many bytes the tables and their optimizer state take and how many devices that needs.

    Args:
      room: bytes of a device; None asks the first one, and nothing is refused where it does not tell.
    """
    memory = run.model.memory
    room = device_bytes(mesh) if room is None else room
    if memory is None or room is None:
        return
    tables = 1 if memory.shared else len(memory.layers)
    stored = 2 if memory.dtype == "bfloat16" else 4
    by_row = run.optimizer.values.update == "touched" and mesh.size == 1
    entry = stored + MOMENTS + (0 if by_row else stored)  # and the gradient's
    total = tables * memory.num_values * value_dim(memory, run.model.dim) * entry
    parts = math.prod(mesh.shape[RULES[axis]] for axis in ("value_row", "value_column"))
    if (each := total / parts) > room:
        raise ConfigError(
            f"Memory.num_keys: {memory.num_values:,} values of {value_dim(memory, run.model.dim):,} with gradients "
            f"and moments take {_gib(total)}, so {_gib(each)} on each of {parts} devices (Parallel.fsdp x tensor) of "
            f"{_gib(room)}; expected at least {math.ceil(total / room)} devices"
        )


def device_bytes(mesh: Mesh) -> int | None:
    """Memory of each device, None where it does not tell; CPU devices share the machine's."""
    device = mesh.devices.flat[0]
    if device.platform == "cpu":
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // mesh.size
        except (AttributeError, OSError, ValueError):  # not on this system
            return None
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit")


def _gib(size: float | int) -> str:
    return f"{size / 2**30:,.1f} GiB"
