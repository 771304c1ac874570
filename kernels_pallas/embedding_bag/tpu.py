"""The TPU path: what the Mosaic kernels of tpu_bags and tpu_table compose into, and what they cannot take."""

import jax
import jax.numpy as jnp

from kernels_pallas.embedding_bag import tpu_bags
from kernels_pallas.embedding_bag.tpu_order import compact, in_order
from kernels_pallas.embedding_bag.tpu_stream import LANES, needed, plan
from kernels_pallas.embedding_bag.tpu_table import add_up
from kernels_pallas.tpu_chip import chip, vmem_limit

DTYPES = (jnp.bfloat16, jnp.float32)


def unsupported(table: jax.ShapeDtypeStruct, rows) -> str | None:
    """Why these kernels cannot take a call on a table [N, D] by rows [T, K], or None."""
    if table.dtype not in DTYPES:
        return f"values are {table.dtype}, expected bfloat16 or float32"
    if table.shape[1] % LANES:
        return f"rows are {table.shape[1]} wide, expected a multiple of {LANES}"
    if (tpu := chip()) and tpu.generation < 4:
        return f"TPU generation {tpu.generation}, expected 4 or later"
    if rows.size and needed(plan(*rows.shape), table) > vmem_limit():
        return (
            f"{table.shape[1]} columns of {table.dtype} do not fit in VMEM {plan(*rows.shape).tokens} tokens at a time"
        )
    if not rows.size:
        return "there are no rows to read"
    return None


def _tiled(rows):
    """[T, D] or [T, D / 128, 128] -> the latter."""
    return rows.reshape(rows.shape[0], -1, LANES)


def bag(rows, values, weights):
    """rows [T, K], values [N, D] or tiled, weights [T, K] -> [T, D]."""
    return tpu_bags.sums(rows, weights, _tiled(values)).reshape(rows.shape[0], -1)


def weights_gradient(rows, values, dy):
    """rows [T, K], values [N, D] or tiled, dy [T, D] -> float32 [T, K]."""
    return tpu_bags.dots(rows, _tiled(dy), _tiled(values))


def values_gradient(rows, dy, weights, *, shape: tuple[int, ...]):
    """rows [T, K], dy [T, D], weights [T, K] -> values' gradient, of their shape and dy's dtype."""
    return add_up(in_order(rows, weights), _tiled(dy), shape[0], dy.dtype).reshape(shape)


def rows_gradient(rows, dy, weights, *, num_rows: int):
    """rows [T, K] (N: nowhere), dy [T, D], weights [T, K] -> the rows read [M], their float32 sums [M, D]."""
    size = min(rows.size, num_rows)
    found, entries = compact(in_order(rows, weights), num_rows, size)
    return found, add_up(entries, _tiled(dy), size, jnp.float32).reshape(size, -1)
