"""The Hopper path: what the Mosaic GPU kernels of gpu_rows and gpu_weights compose into, and what they cannot take."""

import jax.numpy as jnp

from kernels_pallas.gpu_chip import not_hopper
from kernels_pallas.grouped_matmul import gpu_rows, gpu_weights
from kernels_pallas.grouped_matmul.compose import compose
from kernels_pallas.grouped_matmul.gpu_stream import PIECE, lane
from kernels_pallas.grouped_matmul.layout import Layout

matmul, matmul_gradient, swiglu, swiglu_gradient, feed_forward, feed_forward_gradient = compose(gpu_rows, gpu_weights)


def unsupported(layout: Layout, *arrays) -> str | None:
    """Why these kernels cannot take the call, or None."""
    if arrays[0].dtype != jnp.bfloat16:
        return f"rows are {arrays[0].dtype}, expected bfloat16"
    if reason := not_hopper():  # their matrix instructions exist on no other generation
        return reason
    if layout.tile % PIECE:
        return f"tiles hold {layout.tile} rows, expected a multiple of {PIECE}"
    if odd := [size for array in arrays for size in array.shape[1:] if not size or not lane(size)]:
        return f"{odd[0]} columns, expected a multiple of 16"
    if not layout.num_slots:
        return "there are no rows"
    return None
