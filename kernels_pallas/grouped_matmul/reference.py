"""The naive float32 form of every operation, differentiated by jax itself: for tests, never for speed."""

import jax
import jax.numpy as jnp

from kernels_pallas.grouped_matmul.layout import Layout, group_of_slot


def _masks(layout: Layout) -> jax.Array:
    """float32 [G, P, 1]: which slots hold a row of the group."""
    real = layout.row_of_slot < layout.num_rows
    groups = jnp.arange(layout.num_groups, dtype=jnp.int32)
    return ((group_of_slot(layout) == groups[:, None]) & real)[..., None].astype(jnp.float32)


def _product(x, weights, layout):
    # Every group multiplies every row; the masks keep its own.
    every = jnp.einsum("pk,gkn->gpn", x, weights.astype(jnp.float32), precision="highest")
    return jnp.sum(_masks(layout) * every, axis=0)


def matmul(x, weights, layout: Layout, transpose_weights: bool):
    """x [P, K], weights [G, K, N] (or [G, N, K]) -> [P, N]."""
    weights = jnp.swapaxes(weights, 1, 2) if transpose_weights else weights
    return _product(x.astype(jnp.float32), weights, layout).astype(x.dtype)


def swiglu(x, w_gate, w_up, layout: Layout):
    """x [P, K], weights [G, K, N] -> [P, N]."""
    rows = x.astype(jnp.float32)
    return (jax.nn.silu(_product(rows, w_gate, layout)) * _product(rows, w_up, layout)).astype(x.dtype)


def feed_forward(x, w_gate, w_up, w_down, layout: Layout):
    """x [P, K], w_gate and w_up [G, K, F], w_down [G, F, N] -> [P, N]."""
    rows = x.astype(jnp.float32)
    hidden = jax.nn.silu(_product(rows, w_gate, layout)) * _product(rows, w_up, layout)
    return _product(hidden, w_down, layout).astype(x.dtype)
