"""RMSNorm and LayerNorm in float32, with gains shared or one a group."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mot_jax.nn.parameters import constant, grouped
from mot_jax.nn.rows import Rows, per_row, scale_rows


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
        y = scale_rows(rows, unit(y, self.epsilon), self.gain[...])
        if centred:
            y = y + per_row(rows, self.bias[...], y.ndim)
        return y.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def unit(y: Float[Array, "... D"], epsilon: float) -> Float[Array, "... D"]:
    """y with a root mean square of one along its last axis."""
    return _unit(y, epsilon)[0]


def _unit(y, epsilon: float):
    scale = jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + epsilon)
    return y * scale, scale


def _unit_forward(y, epsilon: float):
    normed, scale = _unit(y, epsilon)
    return normed, (normed, scale)


def _unit_backward(epsilon: float, saved, d_normed):
    normed, scale = saved
    return (scale * (d_normed - normed * jnp.mean(d_normed * normed, -1, keepdims=True)),)


unit.defvjp(_unit_forward, _unit_backward)
