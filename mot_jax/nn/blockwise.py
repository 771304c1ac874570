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

from mot_jax.nn.whole_attention import over_queries

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


def _by_platform(loop, q, *others):
    """`loop(rows, q, ...)` over all rows of the batch at once; on a CPU one by one, so that scores stay in its cache.

    A row that is taken alone is a block of its own: [n, B, ...] -> [n B, 1, ...].
    """
    rows = q.shape[1]

    def one_by_one(*arrays):
        found = loop(rows, *(x.reshape(-1, 1, *x.shape[2:]) for x in arrays))
        return [x.reshape(-1, rows, *x.shape[2:]) for x in found]

    return jax.lax.platform_dependent(q, *others, cpu=one_by_one, default=functools.partial(loop, 1))


def _pairs(count: int, rows: int) -> tuple[Array, Array, Array]:
    """Every block of queries, every block of keys up to its own, and how many blocks lie between; row after row."""
    queries, keys = np.tril_indices(count // rows)
    row = np.arange(rows)[:, None]
    found = queries * rows + row, keys * rows + row, np.broadcast_to(queries - keys, (rows, queries.size))
    return tuple(jnp.asarray(x.reshape(-1), jnp.int32) for x in found)


def _scores(q, k, segments, i, j, between):
    """(scores of a pair, float32 [B, K, N/K, C, C], and which of them count)."""
    scores = jnp.einsum("bkrch,bkdh->bkrcd", q[i], k[j], preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    order = jnp.arange(q.shape[-2])
    earlier = order[:, None] + between * order.size >= order
    seen = earlier & (segments[i][:, :, None] == segments[j][:, None, :])
    return scores, seen[:, None, None]


@jax.custom_vjp
def _attend(q, k, v, segments):
    return _forward(q, k, v, segments)[0]


def _forward(q, k, v, segments):
    out, log_mass = _by_platform(_forward_loop, q, k, v, segments)
    out, log_mass = checkpoint_name(out, SAVED), checkpoint_name(log_mass, SAVED)
    return out, (q, k, v, segments, out, log_mass)


def _forward_loop(rows, q, k, v, segments):
    def one(carry, pair):
        (i, j, _), (total, top, mass) = pair, carry
        scores, seen = _scores(q, k, segments, *pair)
        scores = jnp.where(seen, scores, _NEVER)
        higher = jnp.maximum(top[i], scores.max(-1))
        shrink, weights = jnp.exp(top[i] - higher), jnp.exp(scores - higher[..., None]) * seen
        more = jnp.einsum("bkrcd,bkdh->bkrch", weights.astype(v.dtype), v[j], preferred_element_type=jnp.float32)
        mass = mass.at[i].set(mass[i] * shrink + weights.sum(-1))
        return (total.at[i].set(total[i] * shrink[..., None] + more), top.at[i].set(higher), mass), None

    each = q.shape[:-1]
    start = jnp.zeros(q.shape, jnp.float32), jnp.full(each, _NEVER, jnp.float32), jnp.zeros(each, jnp.float32)
    (total, top, mass), _ = jax.lax.scan(one, start, _pairs(q.shape[0], rows))
    return [(total / mass[..., None]).astype(q.dtype), top + jnp.log(mass)]  # a query sees at least itself


def _backward(saved, d_out):
    q, k, v, segments, out, log_mass = saved
    common = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), -1)
    found = _by_platform(_backward_loop, q, k, v, segments, d_out, common, log_mass)
    return *(d.astype(x.dtype) for d, x in zip(found, (q, k, v), strict=True)), None


def _backward_loop(rows, q, k, v, segments, d_out, common, log_mass):
    scale = q.shape[-1] ** -0.5
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def one(carry, pair):
        (i, j, _), (d_q, d_k, d_v) = pair, carry
        scores, seen = _scores(q, k, segments, *pair)
        weights = jnp.where(seen, jnp.exp(scores - log_mass[i][..., None]), 0.0)
        d_weights = product("bkrch,bkdh->bkrcd", d_out[i], v[j])
        d_scores = (weights * (d_weights - common[i][..., None]) * scale).astype(q.dtype)
        d_q = d_q.at[i].add(product("bkrcd,bkdh->bkrch", d_scores, k[j]))
        d_k = d_k.at[j].add(over_queries(q[i], d_scores))
        d_v = d_v.at[j].add(over_queries(d_out[i], weights.astype(v.dtype)))
        return (d_q, d_k, d_v), None

    start = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
    return list(jax.lax.scan(one, start, _pairs(q.shape[0], rows))[0])


_attend.defvjp(_forward, _backward)
