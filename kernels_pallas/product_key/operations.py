"""The operation with its gradient, run by the back end that suits the platform being compiled for."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from kernels_pallas.back_ends import run
from kernels_pallas.product_key import gpu, reference, tpu, xla

KERNELS = {"gpu": gpu, "tpu": tpu}  # by name; XLA serves every platform
DEFAULT = {"tpu": tpu}  # by platform; "gpu" has been compiled and interpreted, not run, so it has to be asked for
TOKENS = 256  # whose one-hot weights the gradient holds at a time


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def topk(queries, sub_keys, k: int, packed: bool, implementation: str | None):
    """queries [T, H, 2, d], sub_keys [H, 2, R, d] -> scores float32 and rows int32, each [T, H, k]."""

    modules, call = {"xla": xla, "reference": reference, **KERNELS}, (queries, sub_keys, k)
    return run("topk", implementation, modules, DEFAULT, call, queries, sub_keys, k=k, packed=packed)


def _forward(queries, sub_keys, k, packed, implementation):
    scores, rows = topk(queries, sub_keys, k, packed, implementation)
    return (scores, rows), (queries, sub_keys, rows)


def _backward(k, packed, implementation, saved, cotangents):
    return gradient(*saved, cotangents[0])


def gradient(queries, sub_keys, rows, d_scores):
    """Gradients of queries and sub_keys, in their dtypes, for those [T, H, k] of the selected scores.

    A selected key is a one-hot row, so both are products with the sum of these, weighted: no scatter. Duplicates add up
    in float32; tokens go in chunks, so that weights for every key and token never exist at once.
    """
    tokens, heads, _, depth = queries.shape
    num_keys, chunk = sub_keys.shape[2], min(TOKENS, tokens)
    precision = lax.Precision.HIGHEST if queries.dtype == jnp.float32 else None

    def chunked(x):
        """[T, H, ...] -> [chunks, H, chunk, ...], zeros past the last token."""
        x = jnp.pad(x, ((0, -tokens % chunk), *((0, 0),) * (x.ndim - 1)))
        return jnp.swapaxes(x.reshape(-1, chunk, *x.shape[1:]), 1, 2)

    def dot(a, b, contract):
        batched = ((contract[:1], contract[1:]), ((0, 1), (0, 1)))
        return lax.dot_general(a, b, batched, precision=precision, preferred_element_type=jnp.float32)

    def step(d_keys, inputs):
        queries, rows, d_scores = inputs
        halves = jnp.stack([rows // num_keys, rows % num_keys], axis=1)  # [H, 2, chunk, k]
        keys = jnp.arange(num_keys, dtype=jnp.int32)
        # Term by term: a sum over an axis of [.., k, R] would not be fused into one pass.
        weights = sum(
            jnp.where(halves[..., j, None] == keys, d_scores[:, None, :, j, None], 0) for j in range(rows.shape[-1])
        ).astype(queries.dtype)
        d_queries = dot(weights, sub_keys, (3, 2))
        return d_keys + dot(weights, jnp.swapaxes(queries, 1, 2), (2, 2)), d_queries.astype(queries.dtype)

    d_keys, d_queries = lax.scan(
        step, jnp.full_like(sub_keys, 0, jnp.float32), tuple(map(chunked, (queries, rows, d_scores)))
    )
    d_queries = d_queries.transpose(0, 3, 1, 2, 4).reshape(-1, heads, 2, depth)[
        :tokens
    ]  # from [chunks, H, 2, chunk, d]
    return d_queries, d_keys.astype(sub_keys.dtype)


topk.defvjp(_forward, _backward)
