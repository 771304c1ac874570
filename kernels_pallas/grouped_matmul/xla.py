"""The XLA path, for the CPU and every platform without a kernel: loops over the live tiles, many at a time.

The gradients of the rows and of all weights come from one pass over the rows.
"""

import jax
import jax.numpy as jnp

from kernels_pallas.grouped_matmul.activation import activate, activation_gradient
from kernels_pallas.grouped_matmul.layout import Layout
from kernels_pallas.grouped_matmul.xla_feed_forward import feed_forward, feed_forward_gradient
from kernels_pallas.grouped_matmul.xla_runs import accumulate, dot, matrix, over_runs, put, take, zeros

__all__ = ["feed_forward", "feed_forward_gradient", "matmul", "matmul_gradient", "swiglu", "swiglu_gradient"]


def matmul(x, weights, layout: Layout, *, transpose: bool):
    """x [P, K], weights [G, K, N] (or [G, N, K]) -> [P, N]."""
    return _products(x, (weights,), layout, transpose)[0]


def matmul_gradient(x, weights, dy, layout: Layout, *, transpose: bool):
    """dx [P, K] and the weights' gradient, of their own shape."""
    dx, (dw,) = _gradients(x, (dy,), (weights,), layout, transpose)
    return dx, dw


def swiglu(x, w_gate, w_up, layout: Layout, *, keep: bool):
    """x [P, K], weights [G, K, N] -> the result, and the gate and up products if they are kept, each [P, N]."""
    gate, up = _products(x, (w_gate, w_up), layout)
    return (activate(gate, up), gate, up) if keep else (activate(gate, up),)


def swiglu_gradient(x, w_gate, w_up, gate, up, dy, layout: Layout):
    """dx, d w_gate, d w_up."""
    _, d_gate, d_up = activation_gradient(gate, up, dy)
    dx, dws = _gradients(x, (d_gate, d_up), (w_gate, w_up), layout)
    return dx, *dws


def _products(x, weights: tuple, layout: Layout, transpose: bool = False) -> list[jax.Array]:
    """x [P, K] times each stack of [G, K, N] (or [G, N, K]) -> [P, N], zeros in dead tiles."""

    def body(start, rows, group, outs):
        own = take(x, start, rows)
        return [
            put(out, start, dot(own, matrix(w, group), (1, 1 if transpose else 0)))
            for out, w in zip(outs, weights, strict=True)
        ]

    outs = [zeros((x.shape[0], w.shape[1 if transpose else 2]), x.dtype, w, layout) for w in weights]
    return over_runs(layout, body, outs, weights)


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
