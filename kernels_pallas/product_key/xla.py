"""The XLA path. On a CPU repeated selection in tiles of tokens; elsewhere `lax.top_k` of all scores at once.

A CPU's `lax.top_k` sorts one token after the other. Selecting the best k times over keeps keys on the leading axis and
tokens in vector lanes, which is faster up to some hundred keys; of more keys the k best groups are selected first.
"""

import functools

import jax.numpy as jnp
from jax import lax

TILE = 256  # tokens whose scores stay in a core's cache
GROUPED = 512  # keys from which groups pay off
GROUP = 4  # keys


def topk(queries, sub_keys, *, k: int, packed: bool):
    """queries [T, H, 2, d], sub_keys [H, 2, R, d] -> scores float32 and rows int32, each [T, H, k]."""
    del packed  # exact all the same
    cpu, others = functools.partial(_in_tiles, k=k), functools.partial(_at_once, k=k)
    return lax.platform_dependent(queries, sub_keys, cpu=cpu, default=others)


def _at_once(queries, sub_keys, *, k: int):
    num_keys = sub_keys.shape[2]
    scores = jnp.einsum("thpd,hprd->thpr", queries, sub_keys, precision="highest", preferred_element_type=jnp.float32)
    values, indices = lax.top_k(scores, min(k, num_keys))
    sums, rows = _pairs(*(jnp.moveaxis(a, (2, 3), (0, 1)) for a in (values, indices)), k, num_keys)
    best, at = lax.top_k(jnp.moveaxis(sums, 0, -1), k)
    return best, jnp.take_along_axis(jnp.moveaxis(rows, 0, -1), at, axis=-1)


def _in_tiles(queries, sub_keys, *, k: int):
    tokens, heads, _, depth = queries.shape
    num_keys, tile = sub_keys.shape[2], min(TILE, tokens)
    padded = jnp.pad(queries, ((0, -tokens % tile), (0, 0), (0, 0), (0, 0)))
    tiles = padded.shape[0] // tile

    def one(at):
        head, start = at // tiles, at % tiles * tile
        rows = lax.dynamic_slice(padded, (start, head, 0, 0), (tile, 1, 2, depth))[:, 0]
        keys = lax.dynamic_index_in_dim(sub_keys, head, keepdims=False)
        scores = jnp.einsum("prd,tpd->prt", keys, rows, precision="highest", preferred_element_type=jnp.float32)
        halves = [_best_keys(half, min(k, num_keys)) for half in scores]
        values, indices = (jnp.stack(both) for both in zip(*halves, strict=True))
        return _select(*_pairs(values, indices, k, num_keys), k, last=num_keys**2 - 1)

    best = lax.map(one, jnp.arange(heads * tiles, dtype=jnp.int32))
    return tuple(a.reshape(heads, tiles, k, tile).transpose(1, 3, 0, 2).reshape(-1, heads, k)[:tokens] for a in best)


def _pairs(values, indices, k: int, num_keys: int):
    """Each half's best, sorted, [2, K, ...] -> sums and rows of the pairs with (i + 1)(j + 1) <= k, [pairs, ...].

    Slices, because picking the pairs by index costs more than all of them.
    """
    most = values.shape[1]
    runs = [(slice(i, i + 1), slice(0, min(most, k // (i + 1)))) for i in range(most)]
    sums = jnp.concatenate([values[0, i] + values[1, j] for i, j in runs])
    return sums, jnp.concatenate([indices[0, i] * num_keys + indices[1, j] for i, j in runs])


def _best_keys(scores, k: int):
    """The k best of scores [R, N], sorted: values and indices, each [k, N]."""
    num_keys, tokens = scores.shape
    indices = jnp.arange(num_keys, dtype=jnp.int32)[:, None]
    if num_keys < GROUPED or k * GROUP >= num_keys:
        return _select(scores, indices, k, last=num_keys - 1)
    # Every key among the best is in one of the k groups with the best maxima.
    count = -(-num_keys // GROUP)
    grouped = jnp.pad(scores, ((0, -num_keys % GROUP), (0, 0)), constant_values=-jnp.inf).reshape(count, GROUP, tokens)
    _, groups = _select(jnp.max(grouped, axis=1), indices[:count], k, last=count - 1)
    values = jnp.take_along_axis(grouped, groups[:, None], axis=0, mode="clip")
    members = groups[:, None] * GROUP + jnp.arange(GROUP, dtype=jnp.int32)[:, None]
    return _select(values.reshape(-1, tokens), members.reshape(-1, tokens), k, last=num_keys - 1)


def _select(values, rows, k: int, last: int):
    """The k largest of values [n, N], the smaller row first of equals, with their rows ([n, N] or [n, 1]; <= last).

    Each pass looks for the next after the last one found, so nothing is written but the result.
    """

    def body(i, found):
        value, row, values_out, rows_out = found
        rest = (values < value) | ((values == value) & (rows > row))
        following = jnp.max(values, axis=0, where=rest, initial=-jnp.inf)
        hit = (values == following) & ((following < value) | (rows > row))
        row = jnp.min(jnp.broadcast_to(rows, values.shape), axis=0, where=hit, initial=last)
        put = lax.dynamic_update_index_in_dim
        return following, row, put(values_out, following, i, 0), put(rows_out, row, i, 0)

    # Made of the values, so that what varies over devices in a shard_map does so from the start.
    value = jnp.full_like(values[0], jnp.inf)
    row = jnp.full_like(values[0], -1, jnp.int32)
    start = value, row, jnp.full_like(values[:k], 0), jnp.full_like(values[:k], 0, jnp.int32)
    return lax.fori_loop(0, k, body, start)[2:]
