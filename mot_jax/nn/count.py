"""Parameter counts from shapes alone: what is stored, and what one token meets."""

import math

import jax

from mot_jax.config import Model, expand, pools
from mot_jax.config.memory import value_dim
from mot_jax.nn.transformer import abstract, logical_axes


def stored(model: Model) -> int:
    """Number of parameters of a resolved model."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract(model)))


def activated(model: Model) -> int:
    """Number of parameters of the model one token goes through: of each untied one a single group's share.

    Of a layer's experts it is as many as a token of the hungriest pool meets on average, of a memory's table the values
    it reads. This is the size the papers name models by; embedding and head count whole, and so does a layer that some
    tokens skip.
    """
    read = len(model.memory.layers) * model.memory.reads * value_dim(model.memory, model.dim) if model.memory else 0
    rates = [max(pool.kind.active for pool in pools(model, block)) for block in expand(model)]
    axes = jax.tree.leaves(logical_axes(model), is_leaf=lambda leaf: isinstance(leaf, tuple))
    total = read
    for (path, leaf), names in zip(jax.tree_util.tree_leaves_with_path(abstract(model)), axes, strict=True):
        if "value_row" in names:
            continue
        own = math.prod(size for size, axis in zip(leaf.shape, names, strict=True) if axis not in ("group", "expert"))
        total += own * rates[int(path[1].key)] if "expert" in names else own
    return int(total)
