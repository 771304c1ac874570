"""The XLA path, for the CPU and every platform without a kernel: loops over the live tiles, many at a time.

The gradients of the rows and of all weights come from one pass over the rows, unless those are few.
"""

import jax.numpy as jnp

from kernels_pallas.grouped_matmul import xla_few_rows, xla_rows
from kernels_pallas.grouped_matmul.activation import activation_gradient
from kernels_pallas.grouped_matmul.compose import compose
from kernels_pallas.grouped_matmul.layout import Layout
from kernels_pallas.grouped_matmul.xla_feed_forward import feed_forward, feed_forward_gradient_in_one_pass
from kernels_pallas.grouped_matmul.xla_few_rows import has_few_rows
from kernels_pallas.grouped_matmul.xla_runs import accumulate, dot, matrix, over_runs, put, take, zeros

__all__ = ["feed_forward", "feed_forward_gradient", "matmul", "matmul_gradient", "swiglu", "swiglu_gradient"]

matmul, _matmul_gradient, swiglu, _swiglu_gradient, _, _feed_forward_gradient = compose(xla_rows, xla_few_rows)


def matmul_gradient(x, weights, dy, layout: Layout, *, transpose: bool):
    """dx [P, K] and the weights' gradient, of their own shape."""
    if has_few_rows(layout):
        return _matmul_gradient(x, weights, dy, layout, transpose=transpose)
    dx, (dw,) = _in_one_pass(x, (dy,), (weights,), layout, transpose)
    return dx, dw


def swiglu_gradient(x, w_gate, w_up, gate, up, dy, layout: Layout):
    """dx, d w_gate, d w_up."""
    if has_few_rows(layout):
        return _swiglu_gradient(x, w_gate, w_up, gate, up, dy, layout)
    _, d_gate, d_up = activation_gradient(gate, up, dy)
    dx, dws = _in_one_pass(x, (d_gate, d_up), (w_gate, w_up), layout)
    return dx, *dws


def feed_forward_gradient(x, w_gate, w_up, w_down, gate, up, dy, layout: Layout):
    """dx, d w_gate, d w_up, d w_down."""
    gradient = _feed_forward_gradient if has_few_rows(layout) else feed_forward_gradient_in_one_pass
    return gradient(x, w_gate, w_up, w_down, gate, up, dy, layout)


def _in_one_pass(x, dys: tuple, weights: tuple, layout: Layout, transpose: bool = False):
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
