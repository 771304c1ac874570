"""The TPU path: what the Mosaic kernels of tpu_rows and tpu_weights compose into each operation and its gradient."""

import jax.numpy as jnp

from kernels_pallas.grouped_matmul import tpu_rows, tpu_weights
from kernels_pallas.grouped_matmul.compose import compose
from kernels_pallas.grouped_matmul.layout import Layout
from kernels_pallas.grouped_matmul.tpu_tiles import fits
from kernels_pallas.tpu_chip import chip

DTYPES = (jnp.bfloat16, jnp.float32)
ROWS = 8  # of a register tile; bfloat16 packs two such into one, which the compiler copes with

matmul, matmul_gradient, swiglu, swiglu_gradient, feed_forward, feed_forward_gradient = compose(tpu_rows, tpu_weights)


def unsupported(layout: Layout, *arrays) -> str | None:
    """Why these kernels cannot take the call, or None."""
    dtype, sizes = arrays[0].dtype, [size for array in arrays for size in array.shape[1:]]
    if dtype not in DTYPES:
        return f"rows are {dtype}, expected bfloat16 or float32"
    if (tpu := chip()) and tpu.generation < 4:
        return f"TPU generation {tpu.generation}, expected 4 or later"
    if layout.tile % ROWS:
        return f"tiles hold {layout.tile} rows, expected a multiple of {ROWS}"
    if not layout.num_slots:
        return "there are no rows"
    if not all(sizes):
        return "0 columns, expected at least 1"
    if not fits(max(sizes), layout.tile, dtype.itemsize):
        return f"{max(sizes)} columns of {dtype} do not fit in VMEM at once"
    return None
