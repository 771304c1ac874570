"""Mixture-of-depths: which tokens go through a layer, and where they stand among themselves (arXiv 2404.02258)."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kernels_pallas.grouped_matmul import move_rows
from mot_jax.config.experts import Depth, exact
from mot_jax.routing.expert_choice import share_of
from mot_jax.routing.top_rows import top_members


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Selection:
    """R sequences of C selected tokens, in the order they had in the B sequences of S.

    source       int32[R * C]  the token, B * S where fewer than C were selected
    destination  int32[B * S]  a token's place in the selection, R * C where it skips the layer
    """

    source: Int[Array, " N"]
    destination: Int[Array, " T"]
    sequences: int = dataclasses.field(metadata={"static": True})


def select(
    scores: Float[Array, "B S"], valid: Bool[Array, "B S"], depth: Depth, blocks: int
) -> tuple[Bool[Array, "B S"], Selection]:
    """The `capacity` best of each row's (or of each block of rows') real tokens; the number is rounded down."""
    sequences = scores.shape[0] if depth.selection == "row" else blocks
    share = exact(depth.capacity)
    scores, real = scores.reshape(sequences, -1), valid.reshape(sequences, -1)
    chosen = top_members(scores, real, share_of(jnp.sum(real, axis=1, dtype=jnp.int32), share))
    length = scores.shape[1]
    room = max(1, int(length * share))
    place = jnp.cumsum(chosen, axis=1, dtype=jnp.int32) - 1 + room * jnp.arange(sequences, dtype=jnp.int32)[:, None]
    destination = jnp.where(chosen, place, sequences * room).reshape(-1)
    tokens = jnp.arange(destination.size, dtype=jnp.int32)
    source = jnp.full((sequences * room,), destination.size, jnp.int32).at[destination].set(tokens, mode="drop")
    return chosen.reshape(valid.shape), Selection(source, destination, sequences)


def gather(selection: Selection, x: Array) -> Array:
    """[B, S, ...] -> the selected tokens' [R, C, ...], zeros where there is none."""
    flat = move_rows(x.reshape(-1, *x.shape[2:]), selection.source, selection.destination)
    return flat.reshape(selection.sequences, -1, *x.shape[2:])


def scatter(selection: Selection, x: Array, shape: tuple[int, int]) -> Array:
    """[R, C, ...] -> [B, S, ...], zeros for tokens that were not selected."""
    flat = move_rows(x.reshape(-1, *x.shape[2:]), selection.destination, selection.source)
    return flat.reshape(*shape, *x.shape[2:])
