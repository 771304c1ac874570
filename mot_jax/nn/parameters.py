"""Making parameters with named axes, and using them: cast to the compute dtype, then gathered."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from mot_jax.config.rules import RULES, Rules, split_in_place
from mot_jax.parallel.rules import gathered


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
    """The parameter in the compute dtype, whole along what is not computed in parts (what travels is already cast)."""
    return gathered(param[...].astype(dtype), param.get_metadata("axes"), _rules(param))


def split_over(param: nnx.Param, axis: str) -> str | None:
    """The mesh axis along which devices compute with their parts of a logical axis; None where all have the whole."""
    return split_in_place(_rules(param), axis)


def _rules(param: nnx.Param) -> Rules:
    """What `transformer.merge` was told; a module made without it is on one device."""
    return param.get_metadata("rules", RULES)
