"""Per-group parameters for rows in slots (norm gains, biases), with gradients summed tile by tile."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels_pallas.grouped_matmul.layout import Layout


def _tiles(x, layout):
    """[P, ..., D] -> [P // tile, slots of the tile and middle axes, D]."""
    return x.reshape(layout.tile_groups.shape[0], -1, x.shape[-1])


def _sum_groups(rows, layout):
    """[tiles, slots, D] -> float32 [G, D]."""
    of_tile = jnp.sum(rows.astype(jnp.float32), axis=1)
    owner = layout.tile_groups == jnp.arange(layout.num_groups, dtype=jnp.int32)[:, None]
    return jnp.dot(owner.astype(jnp.float32), of_tile, precision="highest")


@jax.custom_vjp
def _scale(x, gain, layout):
    return (_tiles(x, layout) * gain[layout.tile_groups][:, None]).astype(x.dtype).reshape(x.shape)


def _scale_forward(x, gain, layout):
    return _scale(x, gain, layout), (x, gain, layout)


def _scale_backward(saved, dy):
    x, gain, layout = saved
    products = _tiles(x, layout).astype(jnp.float32) * _tiles(dy, layout)
    return _scale(dy, gain, layout), _sum_groups(products, layout).astype(gain.dtype), None


_scale.defvjp(_scale_forward, _scale_backward)


def grouped_scale(
    x: Float[Array, "P *middle D"], gain: Float[Array, "G D"], layout: Layout
) -> Float[Array, "P *middle D"]:
    """Multiplies each slot by its group's gain: the gain of a norm that each group owns. Same dtype as `x`.

    A middle axis (heads) shares the gain. Raises ValueError when the shapes do not fit the layout.
    """
    if x.ndim < 2 or x.shape[0] != layout.num_slots:
        raise ValueError(f"x: got {x.dtype}{list(x.shape)}, expected [P={layout.num_slots}, ..., D]")
    if gain.shape != (layout.num_groups, x.shape[-1]):
        expected = f"[G={layout.num_groups}, D={x.shape[-1]}]"
        raise ValueError(f"gain: got {gain.dtype}{list(gain.shape)}, expected {expected}")
    return _scale(x, gain, layout)
