"""Logical axes of parameters and the mesh axes they are split over."""

from jax.sharding import PartitionSpec

from mot_jax.parallel.collectives import axis_size

RULES: dict[str | None, str | None] = {
    "embed": "fsdp",
    "kv_heads": "tensor",
    "ffn": "tensor",
    "vocab": "tensor",
    "group": None,
    "expert": "expert",  # of a layer's stack: tokens are exchanged, the stack stays
    "norm": None,
    "value_row": "fsdp",  # of a memory's table: whose tokens read whose rows is exchanged, the table stays
    "value_column": "tensor",
    None: None,
}


def partition_spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """Where a parameter with these logical axes lives."""
    return PartitionSpec(*(RULES[axis] for axis in axes))


def local_shape(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> tuple[int, ...]:
    """The shape one device holds; the shape itself outside a manual mesh."""
    return tuple(
        size // axis_size(RULES[axis]) if RULES[axis] else size for size, axis in zip(shape, axes, strict=True)
    )
