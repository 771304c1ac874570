"""The XLA path's operations whose result is rows: loops over the live tiles, many at a time."""

import jax

from kernels_pallas.grouped_matmul.activation import activate
from kernels_pallas.grouped_matmul.layout import Layout
from kernels_pallas.grouped_matmul.xla_runs import dot, matrix, over_runs, put, take, zeros


def product(xs: tuple, weights: tuple, layout: Layout, *, transpose: bool) -> jax.Array:
    """The sum of each x [P, K] times its stack [G, K, N] (or [G, N, K]) -> [P, N], zeros in dead tiles."""
    contract = (1, 1 if transpose else 0)

    def body(start, rows, group, out):
        parts = (dot(take(x, start, rows), matrix(w, group), contract) for x, w in zip(xs, weights, strict=True))
        return put(out, start, sum(parts))

    x, w = xs[0], weights[0]
    out = zeros((x.shape[0], w.shape[1 if transpose else 2]), x.dtype, w, layout)
    return over_runs(layout, body, out, weights)


def swiglu(x, w_gate, w_up, layout: Layout, *, keep: bool):
    """x [P, K], weights [G, K, N] -> the result, and the gate and up products if they are kept, each [P, N]."""

    def body(start, rows, group, outs):
        own = take(x, start, rows)
        return [
            put(out, start, dot(own, matrix(w, group), (1, 0))) for out, w in zip(outs, (w_gate, w_up), strict=True)
        ]

    outs = [zeros((x.shape[0], w.shape[2]), x.dtype, w, layout) for w in (w_gate, w_up)]
    gate, up = over_runs(layout, body, outs, (w_gate, w_up))
    return (activate(gate, up), gate, up) if keep else (activate(gate, up),)
