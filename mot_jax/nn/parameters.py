"""Making parameters with named axes, and using them: cast to the compute dtype, then gathered."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from mot_jax.parallel.collectives import gather
from mot_jax.parallel.rules import RULES


def weight(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str | None, ...], std: float) -> nnx.Param:
    """float32 truncated normal with standard deviation `std` (before truncation at two of them)."""
    return nnx.Param(std * jax.random.truncated_normal(rngs.params(), -2.0, 2.0, shape, jnp.float32), axes=axes)


def uniform(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str | None, ...], bound: float) -> nnx.Param:
    """float32, uniform between -bound and bound."""
    return nnx.Param(jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound), axes=axes)


def constant(value: float, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param:
    """float32 filled with one value: norm gains and biases."""
    return nnx.Param(jnp.full(shape, value, jnp.float32), axes=axes)


def grouped(groups: int | None, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> tuple[tuple, tuple]:
    """Adds the leading group axis of an untied parameter; None leaves the shape as it is."""
    return (shape, axes) if groups is None else ((groups, *shape), ("group", *axes))


def use(param: nnx.Param, dtype: jnp.dtype) -> Array:
    """The parameter in the compute dtype, whole along the axes split over fsdp (so what travels is already cast)."""
    value = param[...].astype(dtype)
    for index, axis in enumerate(param.get_metadata("axes")):
        if RULES[axis] == "fsdp":
            value = gather(value, "fsdp", index)
    return value
