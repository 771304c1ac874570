"""Entries in the order of the table's rows: what a walk over the table's tiles needs to know."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

CHUNK = 1024  # entries that come into SMEM together


class Entries(NamedTuple):
    """int32 rows and tokens and float32 weights, each [C, CHUNK], by row; padding has the largest int32 for a row."""

    rows: jax.Array
    tokens: jax.Array
    weights: jax.Array


class Visits(NamedTuple):
    """Which tile meets which chunk, each int32 [tiles + C]; the first `count` [1] are real, the rest repeat the last.

    offsets [tiles + 1]: a tile's first entry, and the end of the last tile's.
    """

    tiles: jax.Array
    chunks: jax.Array
    count: jax.Array
    offsets: jax.Array


def in_order(rows, weights) -> Entries:
    """rows, weights [T, K] -> the entries by row; the order of a row's own is the sort's, and always the same."""
    tokens, slots = rows.shape
    token = jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32)[:, None], rows.shape)
    size = tokens * slots
    fill = -size % CHUNK
    nowhere = jnp.iinfo(jnp.int32).max
    flat = [
        jnp.pad(a.reshape(1, size), ((0, 0), (0, fill)), constant_values=value)
        for a, value in ((rows, nowhere), (token, 0), (weights, 0))
    ]
    return Entries(*(a.reshape(-1, CHUNK) for a in _sorted(*flat)))


def _sorted(*arrays):
    """Arrays [1, n] by the first of them; of two axes, because a TPU's compiler takes minutes for a sort of one."""
    return lax.sort(arrays, dimension=1, num_keys=1, is_stable=False)


def compact(entries: Entries, num_rows: int, size: int) -> tuple[jax.Array, Entries]:
    """(each row once, in order, num_rows after the last: int32 [size]; the entries with their row's place in it)."""
    rows = entries.rows.reshape(1, -1)
    before = jnp.concatenate([jnp.full((1, 1), -1, jnp.int32), rows[:, :-1]], axis=1)
    first = (rows != before) & (rows < num_rows)
    found = _sorted(jnp.where(first, rows, num_rows))[0][0, :size]
    place = jnp.cumsum(first.reshape(entries.rows.shape), axis=1, dtype=jnp.int32)
    earlier = jnp.cumsum(place[:, -1], dtype=jnp.int32) - place[:, -1]
    places = jnp.where(entries.rows < num_rows, place + earlier[:, None] - 1, jnp.iinfo(jnp.int32).max)
    return found, entries._replace(rows=places)


def visits(entries: Entries, tiles: int, tile: int) -> Visits:
    """The walk over tiles of `tile` rows: every chunk that a tile has entries in, one if it has none."""
    chunks = entries.rows.shape[0]
    starts = jnp.arange(tiles + 1, dtype=jnp.int32) * tile
    # A boundary's chunk by the chunks' first rows, then its place within: no search of all entries.
    chunk = jnp.maximum(jnp.sum(entries.rows[:, 0] < starts[:, None], axis=1, dtype=jnp.int32) - 1, 0)
    within = jnp.sum(entries.rows[chunk] < starts[:, None], axis=1, dtype=jnp.int32)
    offsets = chunk * CHUNK + within
    first = jnp.minimum(offsets[:-1] // CHUNK, chunks - 1)
    last = jnp.maximum((offsets[1:] - 1) // CHUNK, first)
    count = jnp.where(offsets[1:] > offsets[:-1], last - first + 1, 1)
    end = jnp.cumsum(count, dtype=jnp.int32)
    visit = jnp.arange(tiles + chunks, dtype=jnp.int32)
    tile_of = jnp.minimum(jnp.sum(visit[:, None] >= end, axis=1, dtype=jnp.int32), tiles - 1)
    nth = jnp.minimum(visit - (end - count)[tile_of], count[tile_of] - 1)
    return Visits(tile_of, first[tile_of] + nth, end[-1:], offsets)
