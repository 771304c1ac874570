"""The XLA path, for the CPU and every platform without a kernel: loops over the live tiles, many at a time.

A group's tiles are contiguous, so they are taken in runs of a few static lengths, longest first. On a CPU a long run
copies its group's matrix once, and its product is large enough for XLA to use every core (it never runs two products of
a loop's body at once). Forward and backward of a layer's products on 2 cores, T = 1024, D = 128, F = 344, G = 3, over
the dense ones: single tiles 2.4, runs 1.6-1.7, a batched product over gathered matrices 1.95.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from kernels_pallas.grouped_matmul.layout import Layout
from kernels_pallas.grouped_matmul.tiles import run_lengths


def _runs(layout: Layout) -> list[tuple[int, jax.Array, jax.Array, jax.Array]]:
    """(rows of a run, start slot of each, its group, how many there are) by length; together every live tile once."""
    tiles = layout.tile_groups.shape[0]
    left = (layout.group_sizes + layout.tile - 1) // layout.tile  # tiles of each group not yet in a run
    start = jnp.cumsum(left, dtype=jnp.int32) - left
    runs = []
    for length in run_lengths(tiles, layout.tile):
        count = left // length
        end = jnp.cumsum(count, dtype=jnp.int32)
        run = jnp.arange(tiles // length, dtype=jnp.int32)
        group = jnp.minimum(jnp.sum(run[:, None] >= end, axis=1, dtype=jnp.int32), layout.num_groups - 1)
        first = start[group] + (run - (end - count)[group]) * length
        runs.append((length * layout.tile, first * layout.tile, group, end[-1]))
        start, left = start + count * length, left % length
    return runs


def _over_runs(layout: Layout, body: Callable, carry):
    """Folds `body(start slot, number of rows, group, carry)` over all runs; the number is static."""
    for rows, starts, groups, count in _runs(layout):

        def step(i, carry, rows=rows, starts=starts, groups=groups):
            return body(starts[i], rows, groups[i], carry)

        carry = lax.fori_loop(jnp.int32(0), count, step, carry)
    return carry


def _dot(a, b, contract: tuple[int, int]):
    return lax.dot_general(a, b, ((contract[:1], contract[1:]), ((), ())), preferred_element_type=jnp.float32)


def _put(out, start, rows):
    return lax.dynamic_update_slice_in_dim(out, rows.astype(out.dtype), start, 0)


def _matrix(weights, group):
    return lax.dynamic_index_in_dim(weights, group, keepdims=False)


def _accumulate(out, group, step):
    return lax.dynamic_update_index_in_dim(out, _matrix(out, group) + step, group, 0)


def _zeros(shape: tuple[int, ...], dtype, source, layout: Layout):
    """Zeros that seem to depend on `source`: XLA would merge equal zeros into one array and copy it for each loop."""
    first = lax.squeeze(lax.slice(source, (0,) * source.ndim, (1,) * source.ndim), range(source.ndim))
    return jnp.broadcast_to(jnp.where(layout.live_tiles < 0, first.astype(dtype), jnp.zeros((), dtype)), shape)


def _products(x, weights: tuple, layout: Layout, transpose: bool = False) -> list[jax.Array]:
    """x [P, K] times each stack of [G, K, N] (or [G, N, K]) -> [P, N], zeros in dead tiles."""

    def body(start, rows, group, outs):
        own = lax.dynamic_slice_in_dim(x, start, rows)
        return [
            _put(out, start, _dot(own, _matrix(w, group), (1, 1 if transpose else 0)))
            for out, w in zip(outs, weights, strict=True)
        ]

    zeros = [_zeros((x.shape[0], w.shape[1 if transpose else 2]), x.dtype, w, layout) for w in weights]
    return _over_runs(layout, body, zeros)


def _gradients(x, dys: tuple, weights: tuple, layout: Layout, transpose: bool = False):
    """dx [P, K], the sum over all products, and each stack's gradient, summed in float32 over a group's runs."""

    def body(start, rows, group, carry):
        dx, dws = carry
        own = lax.dynamic_slice_in_dim(x, start, rows)
        own_dys = [lax.dynamic_slice_in_dim(dy, start, rows) for dy in dys]
        step = sum(
            _dot(dy, _matrix(w, group), (1, 0 if transpose else 1)) for dy, w in zip(own_dys, weights, strict=True)
        )
        dws = [
            _accumulate(dw, group, _dot(dy, own, (0, 0)) if transpose else _dot(own, dy, (0, 0)))
            for dw, dy in zip(dws, own_dys, strict=True)
        ]
        return _put(dx, start, step), dws

    zeros = [_zeros(w.shape, jnp.float32, dy, layout) for w, dy in zip(weights, dys, strict=True)]
    dx, dws = _over_runs(layout, body, (_zeros(x.shape, x.dtype, dys[0], layout), zeros))
    return dx, [dw.astype(w.dtype) for dw, w in zip(dws, weights, strict=True)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def matmul(x, weights, layout: Layout, transpose_weights: bool):
    """x [P, K], weights [G, K, N] (or [G, N, K]) -> [P, N]."""
    return _products(x, (weights,), layout, transpose_weights)[0]


def _matmul_forward(x, weights, layout, transpose_weights):
    return matmul(x, weights, layout, transpose_weights), (x, weights, layout)


def _matmul_backward(transpose_weights, saved, dy):
    x, weights, layout = saved
    dx, (dw,) = _gradients(x, (dy,), (weights,), layout, transpose_weights)
    return dx, dw, None


matmul.defvjp(_matmul_forward, _matmul_backward)


def _gate_up(x, w_gate, w_up, layout):
    gate, up = _products(x, (w_gate, w_up), layout)
    return checkpoint_name(gate, "grouped_matmul"), checkpoint_name(up, "grouped_matmul")


def _activate(gate, up):
    return (jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)).astype(gate.dtype)


@jax.custom_vjp
def swiglu(x, w_gate, w_up, layout: Layout):
    """x [P, K], weights [G, K, N] -> [P, N]; silu and the product in float32."""
    return _activate(*_gate_up(x, w_gate, w_up, layout))


def _swiglu_forward(x, w_gate, w_up, layout):
    # Saved, not recomputed: that would add two products to the backward's four; jax.checkpoint can still drop them.
    gate, up = _gate_up(x, w_gate, w_up, layout)
    return _activate(gate, up), (x, w_gate, w_up, gate, up, layout)


def _swiglu_backward(saved, dy):
    x, w_gate, w_up, gate, up, layout = saved
    gate32, up32, dy32 = (a.astype(jnp.float32) for a in (gate, up, dy))
    share = jax.nn.sigmoid(gate32)
    d_up = (dy32 * gate32 * share).astype(x.dtype)
    d_gate = (dy32 * up32 * share * (1 + gate32 * (1 - share))).astype(x.dtype)
    dx, (dw_gate, dw_up) = _gradients(x, (d_gate, d_up), (w_gate, w_up), layout)
    return dx, dw_gate, dw_up, None


swiglu.defvjp(_swiglu_forward, _swiglu_backward)
