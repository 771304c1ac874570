"""From logits to one token a row: guidance, temperature, top-k and top-p over the legal tokens."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32, Key


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
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:], jnp.float32))(keys)
    drawn = jnp.argmax(scaled + noise, axis=-1)
    return jnp.where(temperature > 0, drawn, jnp.argmax(logits, axis=-1)).astype(jnp.int32)
