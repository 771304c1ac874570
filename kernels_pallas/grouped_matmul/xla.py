"""The XLA path, for the CPU and every platform without a kernel: a loop over the live tiles only."""

import jax
import jax.numpy as jnp
from jax import lax

from kernels_pallas.grouped_matmul.layout import Layout


def _dot(a, b, contract):
    return lax.dot_general(a, b, ((contract[:1], contract[1:]), ((), ())), preferred_element_type=jnp.float32)


def _over_tiles(layout: Layout, body, carry):
    def step(i, carry):
        return body(i * layout.tile, layout.tile_groups[i], carry)

    return lax.fori_loop(jnp.int32(0), layout.live_tiles, step, carry)


def _rows(x, start, layout):
    return lax.dynamic_slice_in_dim(x, start, layout.tile)


def _weights(weights, group):
    return lax.dynamic_index_in_dim(weights, group, keepdims=False)


def product(x, weights, layout: Layout, transpose_weights: bool):
    """x [P, K], weights [G, K, N] (or [G, N, K]) -> [P, N], zeros in dead tiles."""

    def body(start, group, out):
        y = _dot(_rows(x, start, layout), _weights(weights, group), (1, 1 if transpose_weights else 0))
        return lax.dynamic_update_slice_in_dim(out, y.astype(out.dtype), start, 0)

    columns = weights.shape[1 if transpose_weights else 2]
    return _over_tiles(layout, body, jnp.zeros((x.shape[0], columns), x.dtype))


def weight_gradient(x, dy, layout: Layout):
    """x [P, K], dy [P, N] -> float32 [G, K, N]: the sum of x_tile^T dy_tile over each group's tiles."""

    def body(start, group, out):
        step = _dot(_rows(x, start, layout), _rows(dy, start, layout), (0, 0))
        return lax.dynamic_update_index_in_dim(out, _weights(out, group) + step, group, 0)

    return _over_tiles(layout, body, jnp.zeros((layout.num_groups, x.shape[1], dy.shape[1]), jnp.float32))


@jax.custom_vjp
def _matmul(x, weights, layout):
    return product(x, weights, layout, False)


def _matmul_forward(x, weights, layout):
    return product(x, weights, layout, False), (x, weights, layout)


def _matmul_backward(saved, dy):
    x, weights, layout = saved
    return product(dy, weights, layout, True), weight_gradient(x, dy, layout).astype(weights.dtype), None


_matmul.defvjp(_matmul_forward, _matmul_backward)


@jax.custom_vjp
def _matmul_transposed(x, weights, layout):
    return product(x, weights, layout, True)


def _matmul_transposed_forward(x, weights, layout):
    return product(x, weights, layout, True), (x, weights, layout)


def _matmul_transposed_backward(saved, dy):
    x, weights, layout = saved
    return product(dy, weights, layout, False), weight_gradient(dy, x, layout).astype(weights.dtype), None


_matmul_transposed.defvjp(_matmul_transposed_forward, _matmul_transposed_backward)


def matmul(x, weights, layout: Layout, transpose_weights: bool):
    """x [P, K], weights [G, K, N] (or [G, N, K]) -> [P, N]."""
    return _matmul_transposed(x, weights, layout) if transpose_weights else _matmul(x, weights, layout)


def swiglu(x, w_gate, w_up, layout: Layout):
    """x [P, K], weights [G, K, N] -> [P, N]; silu and the product in float32."""
    gate, up = _matmul(x, w_gate, layout), _matmul(x, w_up, layout)
    return (jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)).astype(x.dtype)
