"""From a parameter's logical axes to where it lives and what of it is gathered, by a table of `config/rules.py`."""

from jax.sharding import PartitionSpec
from jaxtyping import Array

from mot_jax.config.rules import RULES, Rules, split_in_place
from mot_jax.parallel.collectives import axis_size, gather

Axes = tuple[str | None, ...]


def partition_spec(axes: Axes, rules: Rules = RULES) -> PartitionSpec:
    """Where a parameter with these logical axes lives."""
    return PartitionSpec(*(rules[axis] for axis in axes))


def local_shape(shape: tuple[int, ...], axes: Axes, rules: Rules = RULES) -> tuple[int, ...]:
    """The shape one device holds; the shape itself outside a manual mesh."""
    return tuple(size // axis_size(rules[axis]) for size, axis in zip(shape, axes, strict=True))


def gathered(value: Array, axes: Axes, rules: Rules = RULES) -> Array:
    """Whole along the axes that no device computes with a part of."""
    for index, axis in enumerate(axes):
        if not split_in_place(rules, axis):
            value = gather(value, rules[axis], index)
    return value
