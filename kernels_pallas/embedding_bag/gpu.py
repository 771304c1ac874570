"""The Hopper path: what the Mosaic GPU kernels of gpu_bags compose into, and what they cannot take.

Every result but the weights' gradient is a sum of weighted rows over runs of entries: a token's for the bag, a table
row's, once the entries are sorted, for the values' gradient. A run is one thread block's, so a row that most entries
name makes the others wait for it.
"""

import jax
import jax.numpy as jnp
from jax import lax

from kernels_pallas.embedding_bag import gpu_bags
from kernels_pallas.gpu_chip import not_hopper

DTYPES = (jnp.bfloat16, jnp.float32)
WIDEST = 8192  # columns of dy that stay in a warpgroup's registers


def unsupported(table: jax.ShapeDtypeStruct, rows) -> str | None:
    """Why these kernels cannot take a call on a table [N, D] by rows [T, K], or None."""
    if table.dtype not in DTYPES:
        return f"values are {table.dtype}, expected bfloat16 or float32"
    if reason := not_hopper():
        return reason
    if table.shape[1] % gpu_bags.THREADS or table.shape[1] > WIDEST:
        return f"rows are {table.shape[1]} wide, expected a multiple of {gpu_bags.THREADS} up to {WIDEST}"
    if not rows.size:
        return "there are no rows to read"
    return None


def bag(rows, values, weights):
    """rows [T, K], values [N, D] or [N, D / 128, 128], weights [T, K] -> [T, D]."""
    tokens, slots = rows.shape
    offsets = jnp.arange(tokens + 1, dtype=jnp.int32) * slots
    return gpu_bags.sums(offsets, rows.reshape(-1), weights.reshape(-1), _flat(values), values.dtype)


def weights_gradient(rows, values, dy):
    """rows [T, K], values [N, D] or [N, D / 128, 128], dy [T, D] -> float32 [T, K]."""
    return gpu_bags.dots(rows, dy, _flat(values))


def values_gradient(rows, dy, weights, *, shape: tuple[int, ...]):
    """rows [T, K], dy [T, D], weights [T, K] -> values' gradient, of their shape and dy's dtype."""
    ordered, tokens, own_weights = _by_row(rows, weights)
    offsets = jnp.searchsorted(ordered, jnp.arange(shape[0] + 1, dtype=jnp.int32)).astype(jnp.int32)
    return gpu_bags.sums(offsets, tokens, own_weights, dy, dy.dtype).reshape(shape)


def rows_gradient(rows, dy, weights, *, num_rows: int):
    """rows [T, K] (N: nowhere), dy [T, D], weights [T, K] -> the rows read [M], their float32 sums [M, D]."""
    size = min(rows.size, num_rows)
    ordered, tokens, own_weights = _by_row(rows, weights)
    end = jnp.searchsorted(ordered, num_rows).astype(jnp.int32)  # of the entries that are somewhere
    first = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]]) & (ordered < num_rows)
    (starts,) = jnp.nonzero(first, size=size, fill_value=rows.size)
    found = ordered.at[starts].get(mode="fill", fill_value=num_rows)
    offsets = jnp.minimum(jnp.append(starts, rows.size).astype(jnp.int32), end)
    return found, gpu_bags.sums(offsets, tokens, own_weights, dy, jnp.float32)


def _by_row(rows, weights):
    """rows, weights [T, K] -> rows, tokens and weights [T K] by row; a row's own are in the order of tokens."""
    token = jnp.broadcast_to(jnp.arange(rows.shape[0], dtype=jnp.int32)[:, None], rows.shape)
    return lax.sort((rows.reshape(-1), token.reshape(-1), weights.reshape(-1)), num_keys=1, is_stable=True)


def _flat(values):
    return values.reshape(values.shape[0], -1)
