"""A back end's operations out of its kernels: those whose result is rows, and that of the weights' gradient."""

from collections.abc import Callable
from types import ModuleType

from kernels_pallas.grouped_matmul.activation import activation_gradient
from kernels_pallas.grouped_matmul.layout import Layout


def compose(rows: ModuleType, gradients: ModuleType) -> tuple[Callable, ...]:
    """matmul, matmul_gradient, swiglu, swiglu_gradient, feed_forward and feed_forward_gradient.

    `rows` has `product` and `swiglu`, `gradients` has `weight_gradient`.
    """

    def matmul(x, weights, layout: Layout, *, transpose: bool):
        """x [P, K], weights [G, K, N] (or [G, N, K]) -> [P, N]."""
        return rows.product((x,), (weights,), layout, transpose=transpose)

    def matmul_gradient(x, weights, dy, layout: Layout, *, transpose: bool):
        """dx [P, K] and the weights' gradient, of their own shape."""
        dx = rows.product((dy,), (weights,), layout, transpose=not transpose)
        pair = (dy, x) if transpose else (x, dy)
        return dx, gradients.weight_gradient(*pair, layout)

    def swiglu(x, w_gate, w_up, layout: Layout, *, keep: bool):
        """x [P, K], weights [G, K, N] -> the result, and the gate and up products if they are kept, each [P, N]."""
        return rows.swiglu(x, w_gate, w_up, layout, keep=keep)

    def swiglu_gradient(x, w_gate, w_up, gate, up, dy, layout: Layout):
        """dx, d w_gate, d w_up."""
        _, d_gate, d_up = activation_gradient(gate, up, dy)
        return through_gate_and_up(x, w_gate, w_up, d_gate, d_up, layout)

    def feed_forward(x, w_gate, w_up, w_down, layout: Layout, *, keep: bool):
        """x [P, K], w_gate and w_up [G, K, F], w_down [G, F, N] -> [P, N], and the two [P, F] products if kept."""
        hidden, *kept = swiglu(x, w_gate, w_up, layout, keep=keep)
        return matmul(hidden, w_down, layout, transpose=False), *kept

    def feed_forward_gradient(x, w_gate, w_up, w_down, gate, up, dy, layout: Layout):
        """dx, d w_gate, d w_up, d w_down."""
        d_hidden = rows.product((dy,), (w_down,), layout, transpose=True)
        hidden, d_gate, d_up = activation_gradient(gate, up, d_hidden)
        d_down = gradients.weight_gradient(hidden, dy, layout)
        return *through_gate_and_up(x, w_gate, w_up, d_gate, d_up, layout), d_down

    def through_gate_and_up(x, w_gate, w_up, d_gate, d_up, layout):
        dx = rows.product((d_gate, d_up), (w_gate, w_up), layout, transpose=True)
        return dx, *(gradients.weight_gradient(x, dy, layout) for dy in (d_gate, d_up))

    return matmul, matmul_gradient, swiglu, swiglu_gradient, feed_forward, feed_forward_gradient
