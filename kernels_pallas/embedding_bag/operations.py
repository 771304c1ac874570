"""The operation with its gradients, each run by the back end that suits the platform being compiled for."""

import functools

import jax

from kernels_pallas.back_ends import run
from kernels_pallas.embedding_bag import gpu, sparse_core, tpu, xla

KERNELS = {"gpu": gpu, "sparse_core": sparse_core, "tpu": tpu}  # by name; XLA serves every platform
DEFAULT = {"tpu": tpu}  # by platform; the others have been compiled, not run, so they have to be asked for


def table_of(values) -> jax.ShapeDtypeStruct:
    """The table [N, D] that values [N, D] or [N, D / 128, 128] hold."""
    return jax.ShapeDtypeStruct((values.shape[0], values.size // values.shape[0]), values.dtype)


def _run(name: str, implementation: str | None, table: jax.ShapeDtypeStruct, rows, *arrays, **static):
    return run(name, implementation, {"xla": xla, **KERNELS}, DEFAULT, (table, rows), rows, *arrays, **static)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def bag(values, rows, weights, implementation: str | None):
    """values [N, D] or [N, D / 128, 128], rows [T, K] in range, weights [T, K] -> [T, D]."""
    return _run("bag", implementation, table_of(values), rows, values, weights)


def _bag_forward(values, rows, weights, implementation):
    return bag(values, rows, weights, implementation), (values, rows, weights)


def _bag_backward(implementation, saved, dy):
    values, rows, weights = saved
    table = table_of(values)
    # Two calls: whoever asks for one gradient only does not pay for the other.
    d_values = _run("values_gradient", implementation, table, rows, dy, weights, shape=values.shape)
    d_weights = _run("weights_gradient", implementation, table, rows, values, dy)
    return d_values, None, d_weights


bag.defvjp(_bag_forward, _bag_backward)


def rows_gradient(dy, rows, weights, num_rows: int, implementation: str | None):
    """dy [T, D], rows [T, K] (N: nowhere), weights [T, K] -> rows int32 [M], sums float32 [M, D], M = min(T K, N)."""
    table = jax.ShapeDtypeStruct((num_rows, dy.shape[1]), dy.dtype)
    return _run("rows_gradient", implementation, table, rows, dy, weights, num_rows=num_rows)
