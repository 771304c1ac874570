"""The XLA path's whole feed-forward in one loop: what a run of rows needs is copied once and used while it is near.

On 2 cores a MoT step at D = 128, T = 1024 takes 4% less than with `swiglu` and `matmul` one after the other.
"""

import jax.numpy as jnp

from kernels_pallas.grouped_matmul.activation import activate, activation_gradient
from kernels_pallas.grouped_matmul.layout import Layout
from kernels_pallas.grouped_matmul.xla_runs import accumulate, dot, matrix, over_runs, put, take, zeros


def feed_forward(x, w_gate, w_up, w_down, layout: Layout, *, keep: bool):
    """x [P, K], w_gate and w_up [G, K, F], w_down [G, F, N] -> [P, N], and the two [P, F] products if they are kept."""

    def body(start, rows, group, outs):
        own = take(x, start, rows)
        gate, up = (dot(own, matrix(w, group), (1, 0)).astype(x.dtype) for w in (w_gate, w_up))
        y = dot(activate(gate, up), matrix(w_down, group), (1, 0))
        return [put(out, start, value) for out, value in zip(outs, (y, gate, up)[: len(outs)], strict=True)]

    kept = (w_down, w_gate, w_up) if keep else (w_down,)
    outs = [zeros((x.shape[0], w.shape[2]), x.dtype, w, layout) for w in kept]
    return tuple(over_runs(layout, body, outs, (w_gate, w_up, w_down)))


def feed_forward_gradient_in_one_pass(x, w_gate, w_up, w_down, gate, up, dy, layout: Layout):
    """dx, d w_gate, d w_up, d w_down."""

    def body(start, rows, group, carry):
        dx, dw_gate, dw_up, dw_down = carry
        own, own_gate, own_up, own_dy = (take(a, start, rows) for a in (x, gate, up, dy))
        d_hidden = dot(own_dy, matrix(w_down, group), (1, 1)).astype(x.dtype)
        hidden, d_gate, d_up = activation_gradient(own_gate, own_up, d_hidden)
        step = dot(d_gate, matrix(w_gate, group), (1, 1)) + dot(d_up, matrix(w_up, group), (1, 1))
        return (
            put(dx, start, step),
            accumulate(dw_gate, group, dot(own, d_gate, (0, 0))),
            accumulate(dw_up, group, dot(own, d_up, (0, 0))),
            accumulate(dw_down, group, dot(hidden, own_dy, (0, 0))),
        )

    sums = [zeros(w.shape, jnp.float32, a, layout) for w, a in ((w_gate, gate), (w_up, up), (w_down, dy))]
    dx, *dws = over_runs(layout, body, (zeros(x.shape, x.dtype, dy, layout), *sums))
    return dx, *(dw.astype(w.dtype) for dw, w in zip(dws, (w_gate, w_up, w_down), strict=True))
