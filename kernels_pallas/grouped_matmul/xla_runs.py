"""The XLA path's loops: every live tile once, in runs of several tiles of one group.

A group's tiles are contiguous, so they are taken in runs of a few static lengths, longest first. On a CPU a long run
copies its group's matrix once, and its product is large enough for XLA to use every core (it never runs two products of
a loop's body at once).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from kernels_pallas.grouped_matmul.layout import Layout
from kernels_pallas.grouped_matmul.tiles import run_lengths

# A case for each group takes longer to compile than one loop.
MOST_BRANCHES, LEAST_BYTES = 8, 2**20


def _runs(layout: Layout) -> list[tuple[int, jax.Array, jax.Array, jax.Array]]:
    """(rows of a run, start slot of each, its group, how many there are) by length; together every live tile once."""
    tiles = layout.tile_groups.shape[0]
    left = (layout.group_sizes + layout.tile - 1) // layout.tile  # tiles of each group not yet in a run
    start = jnp.cumsum(left, dtype=jnp.int32) - left
    runs = []
    for length in run_lengths(tiles, layout.tile):
        count = left // length
        end = jnp.cumsum(count, dtype=jnp.int32)
        # Two entries at least: XLA takes the product of an only one out of the loop, and does it even for no run.
        run = jnp.arange(max(2, tiles // length), dtype=jnp.int32)
        group = jnp.minimum(jnp.sum(run[:, None] >= end, axis=1, dtype=jnp.int32), layout.num_groups - 1)
        first = start[group] + (run - (end - count)[group]) * length
        runs.append((length * layout.tile, first * layout.tile, group, end[-1]))
        start, left = start + count * length, left % length
    return runs


def over_runs(layout: Layout, body: Callable, carry, weights: tuple = ()):
    """Folds `body(start slot, number of rows, group, carry)` over all runs; the number is static.

    `weights` [G, ...]: what the body takes its group's matrices of, if only one row may be worth a program of its own.
    """
    if _reads_in_place(layout, weights):
        return _only_row(layout, body, carry)
    if layout.num_groups == 1:  # one dense product: loops take 1.08 times as long on 2 cores
        return body(0, layout.num_slots, 0, carry)
    for rows, starts, groups, count in _runs(layout):

        def step(i, carry, rows=rows, starts=starts, groups=groups):
            return body(starts[i], rows, groups[i], carry)

        carry = lax.fori_loop(jnp.int32(0), count, step, carry)
    return carry


def _reads_in_place(layout: Layout, weights: tuple) -> bool:
    """Whether there is one row, as when a sequence is decoded, and copying its matrices would take longer than that."""
    one = layout.slot_of_pair.size == 1 and layout.num_slots and layout.num_groups <= MOST_BRANCHES
    return bool(one) and any(w.size * w.dtype.itemsize >= LEAST_BYTES * w.shape[0] for w in weights)


def _only_row(layout: Layout, body: Callable, carry):
    """Each group's case reads the matrix where it lies.

    On 2 cores it takes 0.65 of the time of a padded tile, whose matrix is copied first (G = 2, K = 512, N = 1536).
    """
    cases = [lambda carry, group=group: body(0, 1, group, carry) for group in range(layout.num_groups)]
    own = jnp.where(layout.live_tiles > 0, layout.tile_groups[0], len(cases))
    return lax.switch(own, [*cases, lambda carry: carry], carry)


def take(x, start, rows: int):
    return lax.dynamic_slice_in_dim(x, start, rows)


def dot(a, b, contract: tuple[int, int]):
    return lax.dot_general(a, b, ((contract[:1], contract[1:]), ((), ())), preferred_element_type=jnp.float32)


def put(out, start, rows):
    return lax.dynamic_update_slice_in_dim(out, rows.astype(out.dtype), start, 0)


def matrix(weights, group):
    return lax.dynamic_index_in_dim(weights, group, keepdims=False)


def accumulate(out, group, step):
    return lax.dynamic_update_index_in_dim(out, matrix(out, group) + step, group, 0)


def zeros(shape: tuple[int, ...], dtype, source, layout: Layout):
    """Zeros that seem to depend on `source`: XLA would merge equal zeros into one array and copy it for each loop."""
    if not source.size:
        return jnp.zeros(shape, dtype)
    first = lax.squeeze(lax.slice(source, (0,) * source.ndim, (1,) * source.ndim), range(source.ndim))
    return jnp.broadcast_to(jnp.where(layout.live_tiles < 0, first.astype(dtype), jnp.zeros((), dtype)), shape)
