"""Parameter counts from shapes alone: what is stored, and what one token meets."""

import math

import jax

from mot_jax.config import Model
from mot_jax.nn.transformer import abstract, logical_axes


def stored(model: Model) -> int:
    """Number of parameters of a resolved model."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract(model)))


def activated(model: Model) -> int:
    """Number of parameters of the model one token goes through: of each untied one a single group's share.

    This is the size the papers name models by; embedding and head count whole.
    """
    axes = jax.tree.leaves(logical_axes(model), is_leaf=lambda leaf: isinstance(leaf, tuple))
    return sum(
        math.prod(size for size, axis in zip(leaf.shape, names, strict=True) if axis != "group")
        for leaf, names in zip(jax.tree.leaves(abstract(model)), axes, strict=True)
    )
