"""The TPU path: what the Mosaic kernels of tpu_rows and tpu_weights compose into each operation and its gradient."""

import jax.numpy as jnp

from kernels_pallas.grouped_matmul import tpu_rows, tpu_weights
from kernels_pallas.grouped_matmul.activation import activation_gradient
from kernels_pallas.grouped_matmul.layout import Layout
from kernels_pallas.grouped_matmul.tpu_tiles import chip, fits

DTYPES = (jnp.bfloat16, jnp.float32)
ROWS = 8  # of a register tile; bfloat16 packs two such into one, which the compiler copes with


def unsupported(layout: Layout, *arrays) -> str | None:
    """Why these kernels cannot take the call, or None."""
    dtype, widest = arrays[0].dtype, max(size for array in arrays for size in array.shape[1:])
    if dtype not in DTYPES:
        return f"rows are {dtype}, expected bfloat16 or float32"
    if (tpu := chip()) and tpu.generation < 4:
        return f"TPU generation {tpu.generation}, expected 4 or later"
    if layout.tile % ROWS:
        return f"tiles hold {layout.tile} rows, expected a multiple of {ROWS}"
    if not fits(widest, layout.tile, dtype.itemsize):
        return f"{widest} columns of {dtype} do not fit in VMEM at once"
    return None


def matmul(x, weights, layout: Layout, *, transpose: bool):
    """x [P, K], weights [G, K, N] (or [G, N, K]) -> [P, N]."""
    return tpu_rows.product((x,), (weights,), layout, transpose=transpose)


def matmul_gradient(x, weights, dy, layout: Layout, *, transpose: bool):
    """dx [P, K] and the weights' gradient, of their own shape."""
    dx = tpu_rows.product((dy,), (weights,), layout, transpose=not transpose)
    rows = (dy, x) if transpose else (x, dy)
    return dx, tpu_weights.weight_gradient(*rows, layout)


def swiglu(x, w_gate, w_up, layout: Layout, *, keep: bool):
    """x [P, K], weights [G, K, N] -> the result, and the gate and up products if they are kept, each [P, N]."""
    return tpu_rows.swiglu(x, w_gate, w_up, layout, keep=keep)


def swiglu_gradient(x, w_gate, w_up, gate, up, dy, layout: Layout):
    """dx, d w_gate, d w_up."""
    _, d_gate, d_up = activation_gradient(gate, up, dy)
    return _through_gate_and_up(x, w_gate, w_up, d_gate, d_up, layout)


def feed_forward(x, w_gate, w_up, w_down, layout: Layout, *, keep: bool):
    """x [P, K], w_gate and w_up [G, K, F], w_down [G, F, N] -> [P, N], and the two [P, F] products if they are kept."""
    hidden, *kept = swiglu(x, w_gate, w_up, layout, keep=keep)
    return matmul(hidden, w_down, layout, transpose=False), *kept


def feed_forward_gradient(x, w_gate, w_up, w_down, gate, up, dy, layout: Layout):
    """dx, d w_gate, d w_up, d w_down."""
    d_hidden = tpu_rows.product((dy,), (w_down,), layout, transpose=True)
    hidden, d_gate, d_up = activation_gradient(gate, up, d_hidden)
    d_down = tpu_weights.weight_gradient(hidden, dy, layout)
    return *_through_gate_and_up(x, w_gate, w_up, d_gate, d_up, layout), d_down


def _through_gate_and_up(x, w_gate, w_up, d_gate, d_up, layout):
    dx = tpu_rows.product((d_gate, d_up), (w_gate, w_up), layout, transpose=True)
    return dx, *(tpu_weights.weight_gradient(x, dy, layout) for dy in (d_gate, d_up))
