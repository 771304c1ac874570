"""What all layers of one forward pass share besides the rows: how to attend, and how routers may decide."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from mot_jax.config.rules import BATCH_AXES
from mot_jax.parallel.collectives import axis_size, shard_index

# (layer, or None within a scan; q [B, S, N, H], k [B, S, K, H], v [B, S, K, H], segment_ids [B, S]) -> [B, S, N, H]
Attend = Callable[[int | None, Array, Array, Array, Array], Array]

# (layer, values' numbers int32[P, K], weights float32[P, K]) -> each token's weighted sum of values [P, Dv]
Recall = Callable[[int, Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class Noise:
    """Where random numbers of a training step come from: a key of the step, and the number of the first block here."""

    key: Array
    first_block: Array | int


@dataclasses.dataclass(frozen=True)
class Context:
    """One layer's view of a forward pass.

    causal  no token may depend on later ones: auxiliary routers stand in for comparing them, capacity has no limit
    blocks  into how many blocks of rows this device's rows are divided for selecting among them
    """

    attend: Attend
    recall: Recall | None  # None in a model without memories
    layer: int | None  # None within a scan
    index: Array | int  # the layer's number, also within a scan
    blocks: int
    causal: bool
    noise: Noise | None


def local_blocks(selection_groups: int) -> int:
    """This device's share of a microbatch's blocks."""
    devices = 1
    for axis in BATCH_AXES:
        devices *= axis_size(axis)
    return max(1, selection_groups // devices)


def first_block(selection_groups: int, accumulation: int, microbatch: Array | int) -> Array:
    """The number, among all blocks of the step, of this device's first one in a microbatch."""
    blocks = local_blocks(selection_groups)
    return shard_index(BATCH_AXES) * (accumulation * blocks) + jnp.asarray(microbatch) * blocks
