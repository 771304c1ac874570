"""The k best of many, for a k that depends on the data: exact, deterministic, without a sort, shapes static."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def top_members(
    scores: Float[Array, "... N"], eligible: Bool[Array, "... N"], k: Int[Array, "..."]
) -> Bool[Array, "... N"]:
    """Which of the last axis are the k best eligible ones; of equal scores the first ones are taken.

    All of them where fewer than k are eligible. The k-th best is found bit by bit: a float's order is its bits' order.
    """
    scores = jnp.where(scores == 0, 0.0, scores.astype(jnp.float32))  # -0 equals 0
    bits = jax.lax.bitcast_convert_type(scores, jnp.int32)
    ordered = jnp.where(bits < 0, ~bits, bits | jnp.int32(-(2**31))).astype(jnp.uint32)
    keys = jnp.where(eligible, jnp.maximum(ordered, 1), 0)

    def settle(i, found):
        trial = found | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        return jnp.where(jnp.sum(keys >= trial[..., None], axis=-1, dtype=jnp.int32) >= k, trial, found)

    threshold = jax.lax.fori_loop(0, 32, settle, jnp.zeros(k.shape, jnp.uint32))[..., None]
    above = keys > threshold
    tied = (keys == threshold) & eligible
    left = k[..., None] - jnp.sum(above, axis=-1, keepdims=True, dtype=jnp.int32)
    return above | (tied & (jnp.cumsum(tied, axis=-1, dtype=jnp.int32) <= left))
