"""The XLA path, for the CPU, the GPU and every platform without a kernel: loops that never hold T x K x D.

Deterministic but for a GPU's scatter-add, which is atomic there unless XLA is told --xla_gpu_deterministic_ops.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

SLOTS = 8  # of a token in one pass over the result: one slot a pass would move the result as often as the rows
# Bytes of float32 rows at a time, in gradients: a CPU's cache; elsewhere a loop's fixed cost counts more.
CPU_ROOM, ROOM = 2 << 20, 256 << 20


def bag(rows, values, weights):
    """rows [T, K], values [N, ...], weights [T, K] -> [T, D]."""
    table = values.reshape(values.shape[0], -1)
    slots = rows.shape[1]

    def add(total, rows, weights):
        for slot in range(rows.shape[1]):
            total += weights[:, slot, None] * _take(table, rows[:, slot])
        return total

    def some(i, total):
        return add(total, *(lax.dynamic_slice_in_dim(a, i * SLOTS, SLOTS, axis=1) for a in (rows, weights)))

    total = jnp.zeros((rows.shape[0], table.shape[1]), jnp.float32)
    done = slots - slots % SLOTS
    if done:
        total = lax.fori_loop(0, slots // SLOTS, some, total)
    return add(total, rows[:, done:], weights[:, done:]).astype(values.dtype)


def weights_gradient(rows, values, dy):
    """rows [T, K], values [N, ...], dy [T, D] -> float32 [T, K]: each row's product with its token's dy."""
    table = values.reshape(values.shape[0], -1)

    def body(start, tokens, out):
        picked = _take(table, _tokens(rows, start, tokens))
        own = _tokens(dy, start, tokens).astype(jnp.float32)
        dots = jnp.einsum("tkd,td->tk", picked, own, precision="highest")
        return lax.dynamic_update_slice_in_dim(out, dots, start, axis=0)

    return _over_tokens(body, jnp.zeros(rows.shape, jnp.float32), *rows.shape, table.shape[1])


def values_gradient(rows, dy, weights, *, shape: tuple[int, ...]):
    """rows [T, K], dy [T, D], weights [T, K] -> values' gradient, of their shape and dy's dtype."""
    return _scatter(rows, dy, weights, shape[0]).astype(dy.dtype).reshape(shape)


def rows_gradient(rows, dy, weights, *, num_rows: int):
    """rows [T, K] (N: nowhere), dy [T, D], weights [T, K] -> the rows read [M], their float32 sums [M, D]."""
    size = min(rows.size, num_rows)
    ordered = jnp.sort(rows.reshape(-1))
    again = jnp.concatenate([jnp.zeros(1, bool), ordered[1:] == ordered[:-1]])
    found = jnp.sort(jnp.where(again, num_rows, ordered))[:size]
    places = jnp.searchsorted(found, rows).astype(jnp.int32)
    return found, _scatter(places, dy, weights, size)


def _scatter(rows, dy, weights, num_rows: int):
    """float32 [num_rows, D]: every entry's share added to its row; rows past the last are dropped."""

    def body(start, tokens, total):
        own, weight = _tokens(dy, start, tokens).astype(jnp.float32), _tokens(weights, start, tokens)
        return total.at[_tokens(rows, start, tokens)].add(weight[..., None] * own[:, None], mode="drop")

    return _over_tokens(body, jnp.zeros((num_rows, dy.shape[1]), jnp.float32), *rows.shape, dy.shape[1])


def _take(table, rows):
    return table.at[rows].get(mode="promise_in_bounds").astype(jnp.float32)


def _tokens(array, start, tokens: int):
    return lax.dynamic_slice_in_dim(array, start, tokens, axis=0)


def _over_tokens(body: Callable, carry: jax.Array, tokens: int, slots: int, width: int) -> jax.Array:
    """body(first token, how many, carry) -> carry, over all tokens, as many at a time as there is room for."""

    def run(carry, room: int):
        chunk = max(1, min(tokens, room // max(1, 4 * slots * width)))
        carry = lax.fori_loop(0, tokens // chunk, lambda i, c: body(i * chunk, chunk, c), carry)
        rest = tokens % chunk
        return body(tokens - rest, rest, carry) if rest else carry

    return lax.platform_dependent(
        carry, cpu=functools.partial(run, room=CPU_ROOM), default=functools.partial(run, room=ROOM)
    )
