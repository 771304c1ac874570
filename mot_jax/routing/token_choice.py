"""Token choice: every token takes its best experts, and losses that keep the experts evenly used."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mot_jax.config.experts import TokenChoice, exact
from mot_jax.routing.assignment import Assignment, Tokens
from mot_jax.routing.expert_choice import share_of


def assign(tokens: Tokens, kind: TokenChoice, *, limited: bool = True) -> Assignment:
    """The `top_k` experts by score, of equal ones the first, and the shared experts with weight 1.

    `limited` False leaves an expert's capacity aside: whom it turns away depends on the other tokens.
    """
    scores, chosen = _best(tokens.scores, kind.top_k)
    every = jax.nn.softmax(tokens.scores, axis=-1)
    if kind.softmax == "after":
        weights = jax.nn.softmax(scores, axis=-1)
    else:
        weights = jnp.take_along_axis(every, chosen, axis=-1)
    count = jnp.sum(tokens.mine, axis=1, dtype=jnp.int32)
    onehot = jax.nn.one_hot(chosen, kind.experts, dtype=jnp.float32) * tokens.mine[..., None, None]  # [R, L, k, E]
    # Soft shares as BTX has them (arXiv 2403.07816, section 3.2), or hard ones as Switch and DeepSeekMoE.
    shares = weights if kind.softmax == "after" else jnp.full(weights.shape, 1 / kind.top_k, jnp.float32)
    used = _mean_over(jnp.einsum("rlk,rlke->rle", shares, onehot), count)
    offered = _mean_over(every * tokens.mine[..., None], count)
    loss = kind.balance_loss * kind.experts * jnp.sum(used * offered)
    if kind.z_loss:
        spread = jax.nn.logsumexp(tokens.scores, axis=-1, keepdims=True) ** 2 * tokens.mine[..., None]
        loss += kind.z_loss * jnp.sum(_mean_over(spread, count))  # ST-MoE, arXiv 2202.08906, eq. 5
    kept = tokens.mine[..., None]
    if limited and kind.capacity is not None:
        most = share_of(count * kind.top_k, exact(kind.capacity) / kind.experts)
        kept = kept & _in_time(onehot, most)
    experts = jnp.where(kept, tokens.first + chosen, -1)
    if kind.shared:
        shared = tokens.first + kind.experts + jnp.arange(kind.shared, dtype=jnp.int32)
        shared = jnp.where(tokens.mine[..., None], shared, -1)
        experts = jnp.concatenate([experts, shared], axis=-1)
        weights = jnp.concatenate([weights, jnp.ones(shared.shape, jnp.float32)], axis=-1)
    return Assignment(experts=experts, weights=weights, loss=loss)


def assign_unweighted(tokens: Tokens, top_k: int) -> Assignment:
    """The `top_k` experts by score, each with weight 1."""
    _, chosen = _best(tokens.scores, top_k)
    return Assignment(
        experts=jnp.where(tokens.mine[..., None], tokens.first + chosen, -1),
        weights=jnp.ones(chosen.shape, jnp.float32),
        loss=jnp.zeros((), jnp.float32),
    )


def assign_by_hash(
    token_ids: Int[Array, "R L"], mine: Bool[Array, "R L"], first: int, experts: int, layer
) -> Assignment:
    """One expert by the token's id and the layer."""
    chosen = hash_bucket(token_ids, experts, layer)
    return Assignment(
        experts=jnp.where(mine, first + chosen, -1)[..., None],
        weights=jnp.ones((*mine.shape, 1), jnp.float32),
        loss=jnp.zeros((), jnp.float32),
    )


def hash_bucket(ids: Int[Array, "..."], buckets: int, salt: Int[Array, ""] | int) -> Int[Array, "..."]:
    """A bucket for each id, spread evenly: the finaliser of MurmurHash3, salted."""
    x = ids.astype(jnp.uint32) + jnp.uint32(0x9E3779B9) * (jnp.asarray(salt).astype(jnp.uint32) + 1)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return ((x ^ (x >> 16)) % jnp.uint32(buckets)).astype(jnp.int32)


def _best(scores: Float[Array, "R L E"], top_k: int) -> tuple[Float[Array, "R L k"], Int[Array, "R L k"]]:
    best, chosen = jax.lax.top_k(scores, top_k)
    return best, chosen.astype(jnp.int32)


def _mean_over(values: Float[Array, "R L E"], count: Int[Array, " R"]) -> Float[Array, "R E"]:
    return jnp.sum(values, axis=1) / jnp.maximum(count, 1)[:, None].astype(jnp.float32)


def _in_time(onehot: Float[Array, "R L k E"], most: Int[Array, " R"]) -> Bool[Array, "R L k"]:
    """Which choices find their expert with room: first choices go before second ones, early tokens before late."""
    blocks, length, ways, experts = onehot.shape
    queue = jnp.swapaxes(onehot, 1, 2).reshape(blocks, ways * length, experts)
    place = jnp.sum(jnp.cumsum(queue, axis=1) * queue, axis=-1)  # from 1
    place = jnp.swapaxes(place.reshape(blocks, ways, length), 1, 2)
    return place <= most[:, None, None]
