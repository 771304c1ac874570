"""RMSNorm and LayerNorm in float32, with gains shared or one a group."""

from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mot_jax.nn.parameters import constant, grouped
from mot_jax.nn.rows import Rows, per_row


class Norm(nnx.Module):
    """Normalises the last axis of rows: x / rms(x) * gain, or (x - mean) / std * gain + bias."""

    def __init__(self, dim: int, kind: Literal["rms", "layer"], epsilon: float, groups: int | None):
        shape, axes = grouped(groups, (dim,), ("norm",))
        self.epsilon = epsilon
        self.gain = constant(1.0, shape, axes)
        if kind == "layer":
            self.bias = constant(0.0, shape, axes)

    def __call__(self, x: Float[Array, "P ... D"], rows: Rows) -> Float[Array, "P ... D"]:
        y = x.astype(jnp.float32)
        centred = hasattr(self, "bias")
        if centred:
            y = y - jnp.mean(y, -1, keepdims=True)
        y = unit(y, self.epsilon)
        y = y * per_row(rows, self.gain[...], y.ndim)
        if centred:
            y = y + per_row(rows, self.bias[...], y.ndim)
        return y.astype(x.dtype)


def unit(y: Float[Array, "... D"], epsilon: float) -> Float[Array, "... D"]:
    """y with a root mean square of one along its last axis."""
    return y * (jnp.mean(y * y, -1, keepdims=True) + epsilon) ** -0.5
