"""From logits to one token a row: guidance, temperature, top-k and top-p over the legal tokens."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32, Key

BLOCK = 128  # tokens that are drawn as one, first


def guide(
    conditional: Float[Array, "B V"], unconditional: Float[Array, "B V"], guidance: Float[Array, ""]
) -> Float[Array, "B V"]:
    """Classifier-free guidance on logits, u + g (c - u): 1 is the conditional model, 0 the unconditional one."""
    conditional, unconditional = conditional.astype(jnp.float32), unconditional.astype(jnp.float32)
    return unconditional + guidance * (conditional - unconditional)


def truncate(
    logits: Float[Array, "B V"], top_k: Int[Array, ""] | int, top_p: Float[Array, ""] | float
) -> Float[Array, "B V"]:
    """Sets all but the likeliest tokens to -inf: first the `top_k` greatest, of those the fewest with mass `top_p`.

    Args:
      top_k: how many to keep, 0 for all; among equals the lower id stays.
      top_p: probability mass to keep, of what top_k left (nucleus sampling, arXiv 1904.09751); 1 keeps all.
    """
    order = jnp.argsort(-logits, axis=-1, stable=True)
    rank = jnp.arange(logits.shape[-1])
    by_rank = jnp.take_along_axis(logits.astype(jnp.float32), order, axis=-1)
    keep = (rank < top_k) | (top_k == 0)
    probabilities = jax.nn.softmax(jnp.where(keep, by_rank, -jnp.inf), axis=-1)
    mass_before = jnp.cumsum(probabilities, axis=-1) - probabilities
    keep = keep & ((mass_before < top_p) | (rank == 0) | (top_p >= 1))
    rows = jnp.arange(logits.shape[0])[:, None]
    kept = jnp.zeros(logits.shape, bool).at[rows, order].set(keep)
    return jnp.where(kept, logits, -jnp.inf)


def sample(
    logits: Float[Array, "B V"],
    legal: Bool[Array, "B V"],
    keys: Key[Array, "B"],
    *,
    temperature: Float[Array, ""] | float,
    top_k: Int[Array, ""] | int,
    top_p: Float[Array, ""] | float,
    truncated: bool,
) -> Int32[Array, "B"]:
    """One legal token a row, drawn with the row's own key, so that no row depends on the others.

    Args:
      temperature: 0 takes the likeliest token.
      truncated: False skips top-k and top-p, and the sort they need.
    """
    logits = jnp.where(legal, logits.astype(jnp.float32), -jnp.inf)
    scaled = logits / jnp.where(temperature > 0, temperature, 1.0)
    if truncated:
        scaled = truncate(scaled, top_k, top_p)
    drawn, found = jax.vmap(draw)(scaled, keys)
    return jnp.where((temperature > 0) & found, drawn, jnp.argmax(logits, axis=-1)).astype(jnp.int32)


def draw(logits: Float[Array, "V"], key: Key[Array, ""]) -> tuple[Int32[Array, ""], Bool[Array, ""]]:
    """One token by the softmax of its logits, never one at -inf; and whether there was any to draw (no logit is NaN).

    First a block of tokens, then one of its tokens, each with one random number: noise for every token of a large
    vocabulary costs as much as half a layer.
    """
    weights = jnp.exp(logits - jnp.max(logits))
    weights = jnp.pad(weights, (0, -weights.shape[0] % BLOCK)).reshape(-1, BLOCK)
    of_block, of_token = jax.random.uniform(key, (2,), jnp.float32)
    sums = jnp.sum(weights, axis=1)
    block = _first_beyond(sums, of_block)
    token = block * BLOCK + _first_beyond(weights[block], of_token)
    return token.astype(jnp.int32), jnp.isfinite(jnp.sum(sums))


def _first_beyond(weights: Float[Array, "n"], share: Float[Array, ""]) -> Int32[Array, ""]:
    """The first of positive weight with which their sum exceeds this share, below 1, of all."""
    upto, positive = jnp.cumsum(weights), weights > 0
    # Rounding may let a sum grow at a weight of zero, or the last one be below another.
    whole = jnp.max(jnp.where(positive, upto, 0.0))
    return jnp.argmax(positive & (upto > share * whole)).astype(jnp.int32)
