"""Expert choice: every expert takes its k best tokens (arXiv 2202.09368, section 3; arXiv 2407.21770, section 2.2)."""

from fractions import Fraction

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mot_jax.routing.assignment import Assignment, Tokens
from mot_jax.routing.top_rows import top_members


def take_tokens(tokens: Tokens, share: Fraction) -> Bool[Array, "R L E"]:
    """Which tokens each expert takes: the `share` of the block's real tokens (rounded down) that it scores highest."""
    k = share_of(jnp.sum(tokens.mine, axis=1, dtype=jnp.int32), share)
    scores = jnp.swapaxes(tokens.scores, 1, 2)  # an expert's tokens last
    mine = jnp.broadcast_to(tokens.mine[:, None], scores.shape)
    return jnp.swapaxes(top_members(scores, mine, jnp.broadcast_to(k[:, None], scores.shape[:2])), 1, 2)


def share_of(count: Int[Array, "..."], share: Fraction) -> Int[Array, "..."]:
    """floor(count * share), exactly."""
    whole, rest = count // share.denominator, count % share.denominator  # apart: their product could overflow
    return whole * share.numerator + rest * share.numerator // share.denominator


def assign(tokens: Tokens, members: Bool[Array, "R L E"]) -> Assignment:
    """The experts that took a token, each weighed by the sigmoid of its score; never renormalised."""
    numbers = tokens.first + jnp.arange(tokens.scores.shape[-1], dtype=jnp.int32)
    return Assignment(
        experts=jnp.where(members, numbers, -1),
        weights=jax.nn.sigmoid(tokens.scores),
        loss=jnp.zeros((), jnp.float32),
    )


def logistic_noise(key: Array, blocks: int, first_block: Array | int, shape: tuple[int, ...]) -> Float[Array, "R ..."]:
    """The difference of two Gumbel draws for each of R blocks, the same on whatever device a block is."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first_block + jnp.arange(blocks))
    return jax.vmap(lambda key: jax.random.logistic(key, shape, jnp.float32))(keys)
