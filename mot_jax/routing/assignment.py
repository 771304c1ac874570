"""What routing decides: which experts each token goes to, and what each one's output is multiplied by."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class Assignment:
    """Up to A experts a token. Experts are numbered through a layer's stack, pool after pool.

    experts   int32[R, L, A]    -1 where there is none
    weights   float32[R, L, A]  of each expert's output
    loss      float32[]         what balances the experts, a sum over the R blocks of rows; 0 where nothing has to
    """

    experts: Int[Array, "R L A"]
    weights: Float[Array, "R L A"]
    loss: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The tokens that one pool routes: R blocks of rows, L tokens each in sequence order, E experts from `first` on.

    scores   float32[R, L, E]  by each expert of the pool; nothing has to be read where `mine` is False
    mine     bool[R, L]        the real tokens of the pool
    """

    scores: Float[Array, "R L E"]
    mine: Bool[Array, "R L"]
    first: int


def overlay(assignments: Sequence[Assignment]) -> tuple[Int[Array, "R L A"], Float[Array, "R L A"]]:
    """Experts and weights of pools that share no token, in as few columns as the widest pool needs."""
    width = max(each.experts.shape[-1] for each in assignments)

    def widen(x, value):
        return jnp.pad(x, ((0, 0), (0, 0), (0, width - x.shape[-1])), constant_values=value)

    experts, weights = widen(assignments[0].experts, -1), widen(assignments[0].weights, 0)
    for each in assignments[1:]:
        given = widen(each.experts, -1) >= 0
        experts = jnp.where(given, widen(each.experts, -1), experts)
        weights = jnp.where(given, widen(each.weights, 0), weights)
    return experts, weights
