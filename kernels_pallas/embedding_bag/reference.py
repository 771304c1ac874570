"""The naive float32 form, differentiated by jax itself: for tests, never for speed."""

import jax
import jax.numpy as jnp


def bag(values, rows, weights):
    """values [N, D] or [N, D / 128, 128], rows [T, K], weights [T, K] -> [T, D]."""
    num_rows = values.shape[0]
    table = values.reshape(num_rows, -1).astype(jnp.float32)
    there = (rows >= 0) & (rows < num_rows)
    picked = jnp.where(there[..., None], table[jnp.where(there, rows, 0)], 0)
    return jnp.einsum("tk,tkd->td", weights, picked, precision="highest").astype(values.dtype)


def rows_gradient(dy, rows, weights, num_rows: int):
    """Rows [M] and float32 sums [M, D], out of the dense gradient."""
    zeros = jnp.zeros((num_rows, dy.shape[1]), jnp.float32)
    (dense,) = jax.vjp(lambda table: bag(table, rows, weights), zeros)[1](dy.astype(jnp.float32))
    read = jnp.any(rows.reshape(-1) == jnp.arange(num_rows)[:, None], axis=1)
    (found,) = jnp.nonzero(read, size=min(rows.size, num_rows), fill_value=num_rows)
    return found.astype(jnp.int32), dense.at[found].get(mode="fill", fill_value=0)
