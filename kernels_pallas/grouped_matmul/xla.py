"""The XLA path, for the CPU and every platform without a kernel: loops over the live tiles, many at a time.

The gradients of the rows and of all weights come from one pass over the rows.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from kernels_pallas.grouped_matmul.activation import activate, activation_gradient
from kernels_pallas.grouped_matmul.layout import Layout
from kernels_pallas.grouped_matmul.xla_feed_forward import feed_forward
from kernels_pallas.grouped_matmul.xla_runs import accumulate, dot, matrix, over_runs, put, take, zeros

__all__ = ["feed_forward", "matmul", "swiglu"]


def _products(x, weights: tuple, layout: Layout, transpose: bool = False) -> list[jax.Array]:
    """x [P, K] times each stack of [G, K, N] (or [G, N, K]) -> [P, N], zeros in dead tiles."""

    def body(start, rows, group, outs):
        own = take(x, start, rows)
        return [
            put(out, start, dot(own, matrix(w, group), (1, 1 if transpose else 0)))
            for out, w in zip(outs, weights, strict=True)
        ]

    outs = [zeros((x.shape[0], w.shape[1 if transpose else 2]), x.dtype, w, layout) for w in weights]
    return over_runs(layout, body, outs)


def _gradients(x, dys: tuple, weights: tuple, layout: Layout, transpose: bool = False):
    """dx [P, K], the sum over all products, and each stack's gradient, summed in float32 over a group's runs."""

    def body(start, rows, group, carry):
        dx, dws = carry
        own = take(x, start, rows)
        own_dys = [take(dy, start, rows) for dy in dys]
        step = sum(
            dot(dy, matrix(w, group), (1, 0 if transpose else 1)) for dy, w in zip(own_dys, weights, strict=True)
        )
        dws = [
            accumulate(dw, group, dot(dy, own, (0, 0)) if transpose else dot(own, dy, (0, 0)))
            for dw, dy in zip(dws, own_dys, strict=True)
        ]
        return put(dx, start, step), dws

    sums = [zeros(w.shape, jnp.float32, dy, layout) for w, dy in zip(weights, dys, strict=True)]
    dx, dws = over_runs(layout, body, (zeros(x.shape, x.dtype, dys[0], layout), sums))
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


@jax.custom_vjp
def swiglu(x, w_gate, w_up, layout: Layout):
    """x [P, K], weights [G, K, N] -> [P, N]; silu and the product in float32."""
    return activate(*_gate_up(x, w_gate, w_up, layout))


def _swiglu_forward(x, w_gate, w_up, layout):
    # Saved, not recomputed: that would add two products to the backward's four; jax.checkpoint can still drop them.
    gate, up = _gate_up(x, w_gate, w_up, layout)
    return activate(gate, up), (x, w_gate, w_up, gate, up, layout)


def _swiglu_backward(saved, dy):
    x, w_gate, w_up, gate, up, layout = saved
    _, d_gate, d_up = activation_gradient(gate, up, dy)
    dx, (dw_gate, dw_up) = _gradients(x, (d_gate, d_up), (w_gate, w_up), layout)
    return dx, dw_gate, dw_up, None


swiglu.defvjp(_swiglu_forward, _swiglu_backward)
