"""Causal attention over long rows as one loop over pairs of blocks (FlashAttention, arXiv 2205.14135, algorithms 1, 4).

A block of queries meets the blocks of keys up to its own end, so few scores are made that no query may see, no S x S
array is held, and the program is as long for any S. The backward pass scores every pair anew, from the saved log of the
sums.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

SAVED = "attention"  # what rematerialisation by name may keep of the forward pass
_NEVER = -1e30  # finite, so that a block without any key to see gives zeros


def blockwise_attention(
    q: Float[Array, "B S N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    segment_ids: Int[Array, "B S"],
    block: int,
) -> Float[Array, "B S N H"]:
    """Causal softmax attention within each packed document, `block` queries and keys at a time."""
    batch, length, heads, width = q.shape
    kv_heads = k.shape[2]
    q = _blocks(q.reshape(batch, length, kv_heads, heads // kv_heads, width), block)  # [n, B, K, N/K, C, H]
    k, v, segments = _blocks(k, block), _blocks(v, block), _blocks(segment_ids, block)
    out = _attend(q, k, v, segments)
    return jnp.moveaxis(out, (0, 4), (1, 2)).reshape(batch, -1, heads, width)[:, :length]


def _blocks(x: Array, block: int) -> Array:
    """[B, S, ...] -> [n, B, ..., C, H], padded; ids [B, S] -> [n, B, C]."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), *((0, 0),) * (x.ndim - 2)))
    x = jnp.moveaxis(x.reshape(x.shape[0], -1, block, *x.shape[2:]), 1, 0)
    return jnp.moveaxis(x, 2, -2) if x.ndim > 3 else x


def _pairs(count: int) -> tuple[Array, Array]:
    """Every block of queries with every block of keys up to its own."""
    queries, keys = np.tril_indices(count)
    return jnp.asarray(queries, jnp.int32), jnp.asarray(keys, jnp.int32)


def _scores(q, k, segments, i, j):
    """(scores of a pair, float32 [B, K, N/K, C, C], and which of them count)."""
    scores = jnp.einsum("bkrch,bkdh->bkrcd", q[i], k[j], preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    order = jnp.arange(q.shape[-2])
    earlier = (order[:, None] + i * order.size) >= (order + j * order.size)
    seen = earlier & (segments[i][:, :, None] == segments[j][:, None, :])
    return scores, seen[:, None, None]


@jax.custom_vjp
def _attend(q, k, v, segments):
    return _forward(q, k, v, segments)[0]


def _forward(q, k, v, segments):
    def one(carry, pair):
        (i, j), (total, top, mass) = pair, carry
        scores, seen = _scores(q, k, segments, i, j)
        scores = jnp.where(seen, scores, _NEVER)
        higher = jnp.maximum(top[i], scores.max(-1))
        shrink, weights = jnp.exp(top[i] - higher), jnp.exp(scores - higher[..., None]) * seen
        more = jnp.einsum("bkrcd,bkdh->bkrch", weights.astype(v.dtype), v[j], preferred_element_type=jnp.float32)
        mass = mass.at[i].set(mass[i] * shrink + weights.sum(-1))
        return (total.at[i].set(total[i] * shrink[..., None] + more), top.at[i].set(higher), mass), None

    rows = q.shape[:-1]
    start = jnp.zeros(q.shape, jnp.float32), jnp.full(rows, _NEVER, jnp.float32), jnp.zeros(rows, jnp.float32)
    (total, top, mass), _ = jax.lax.scan(one, start, _pairs(q.shape[0]))
    out = checkpoint_name((total / mass[..., None]).astype(q.dtype), SAVED)  # a query sees at least itself
    log_mass = checkpoint_name(top + jnp.log(mass), SAVED)
    return out, (q, k, v, segments, out, log_mass)


def _backward(saved, d_out):
    q, k, v, segments, out, log_mass = saved
    scale = q.shape[-1] ** -0.5
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    common = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), -1)

    def one(carry, pair):
        (i, j), (d_q, d_k, d_v) = pair, carry
        scores, seen = _scores(q, k, segments, i, j)
        weights = jnp.where(seen, jnp.exp(scores - log_mass[i][..., None]), 0.0)
        d_weights = product("bkrch,bkdh->bkrcd", d_out[i], v[j])
        d_scores = (weights * (d_weights - common[i][..., None]) * scale).astype(q.dtype)
        d_q = d_q.at[i].add(product("bkrcd,bkdh->bkrch", d_scores, k[j]))
        d_k = d_k.at[j].add(product("bkrcd,bkrch->bkdh", d_scores, q[i]))
        d_v = d_v.at[j].add(product("bkrcd,bkrch->bkdh", weights.astype(v.dtype), d_out[i]))
        return (d_q, d_k, d_v), None

    start = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
    found, _ = jax.lax.scan(one, start, _pairs(q.shape[0]))
    return *(d.astype(x.dtype) for d, x in zip(found, (q, k, v), strict=True)), None


_attend.defvjp(_forward, _backward)
