"""The operations with their gradients, each run by the back end that suits the platform being compiled for."""

import functools

import jax
from jax.ad_checkpoint import checkpoint_name

from kernels_pallas.back_ends import run
from kernels_pallas.grouped_matmul import gpu, tpu, xla
from kernels_pallas.grouped_matmul.layout import Layout

KERNELS = {"gpu": gpu, "tpu": tpu}  # by name; XLA serves every platform
DEFAULT = {"tpu": tpu}  # by platform; "gpu" has been compiled and interpreted, not run, so it has to be asked for


def _run(name: str, implementation: str | None, layout: Layout, *arrays, **static):
    modules = {"xla": xla, **KERNELS}
    return run(name, implementation, modules, DEFAULT, (layout, *arrays), *arrays, layout, **static)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def matmul(x, weights, layout: Layout, transpose: bool, implementation: str | None):
    """x [P, K], weights [G, K, N] (or [G, N, K]) -> [P, N]."""
    return _run("matmul", implementation, layout, x, weights, transpose=transpose)


def _matmul_forward(x, weights, layout, transpose, implementation):
    return matmul(x, weights, layout, transpose, implementation), (x, weights, layout)


def _matmul_backward(transpose, implementation, saved, dy):
    x, weights, layout = saved
    return *_run("matmul_gradient", implementation, layout, x, weights, dy, transpose=transpose), None


matmul.defvjp(_matmul_forward, _matmul_backward)


def _named(gate, up):
    # Saved, not recomputed: that would add two products to the backward; jax.checkpoint can still drop them.
    return checkpoint_name(gate, "grouped_matmul"), checkpoint_name(up, "grouped_matmul")


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def swiglu(x, w_gate, w_up, layout: Layout, implementation: str | None):
    """x [P, K], weights [G, K, N] -> [P, N]."""
    return _run("swiglu", implementation, layout, x, w_gate, w_up, keep=False)[0]


def _swiglu_forward(x, w_gate, w_up, layout, implementation):
    y, *products = _run("swiglu", implementation, layout, x, w_gate, w_up, keep=True)
    return y, (x, w_gate, w_up, *_named(*products), layout)


def _swiglu_backward(implementation, saved, dy):
    *arrays, layout = saved
    return *_run("swiglu_gradient", implementation, layout, *arrays, dy), None


swiglu.defvjp(_swiglu_forward, _swiglu_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def feed_forward(x, w_gate, w_up, w_down, layout: Layout, implementation: str | None):
    """x [P, K], w_gate and w_up [G, K, F], w_down [G, F, N] -> [P, N]."""
    return _run("feed_forward", implementation, layout, x, w_gate, w_up, w_down, keep=False)[0]


def _feed_forward_forward(x, w_gate, w_up, w_down, layout, implementation):
    y, *products = _run("feed_forward", implementation, layout, x, w_gate, w_up, w_down, keep=True)
    return y, (x, w_gate, w_up, w_down, *_named(*products), layout)


def _feed_forward_backward(implementation, saved, dy):
    *arrays, layout = saved
    return *_run("feed_forward_gradient", implementation, layout, *arrays, dy), None


feed_forward.defvjp(_feed_forward_forward, _feed_forward_backward)
