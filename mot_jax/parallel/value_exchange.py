"""Reading a table whose rows are split over fsdp and whose columns over tensor, without moving the table.

Devices of a row group show each other which rows their tokens want, some tokens at a time; each sums what it holds, and
the sums travel back to whose tokens they are. What a device holds meanwhile does not grow with the group.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from kernels_pallas.embedding_bag import embedding_bag
from mot_jax.parallel.collectives import axis_size, shard_offset

GROUP_TOKENS = 1024  # of a row group, exchanged at a time
SLOTS = 8  # of a token, summed at a time: those it has here come first, and most tokens have few


def read(
    table: Float[Array, "N C w"], rows: Int32[Array, "P K"], weights: Float32[Array, "P K"]
) -> Float[Array, "P Dv"]:
    """Each token's weighted sum of rows, the columns held here; rows past the whole table's last count nothing."""
    group = axis_size("fsdp")
    if group == 1:
        return bag(table, rows, weights)
    tokens, chunk = rows.shape[0], max(1, min(GROUP_TOKENS // group, rows.shape[0]))
    first, held = shard_offset("fsdp", table.shape[0]), table.shape[0]

    # Of a chunk only this device's rows are kept for the backward pass, not the group's.
    @jax.checkpoint
    def exchange(table, rows, weights):
        wanted = lax.all_gather(rows, "fsdp", tiled=True) - first
        wanted = jnp.where((wanted >= 0) & (wanted < held), wanted, held)
        sums = _held_here(table, wanted, lax.all_gather(weights, "fsdp", tiled=True))
        return lax.psum_scatter(sums, "fsdp", tiled=True)

    def chunked(x, fill):
        padded = jnp.pad(x, ((0, -tokens % chunk), (0, 0)), constant_values=fill)
        return padded.reshape(-1, chunk, x.shape[1])

    nowhere = held * group
    y = lax.map(lambda some: exchange(table, *some), (chunked(rows, nowhere), chunked(weights, 0)))
    return y.reshape(-1, y.shape[-1])[:tokens]


def bag(table, rows, weights):
    """`embedding_bag` of a table [N, C, w], in the form that its kernels read by row."""
    return embedding_bag(table if table.shape[2] == 128 else table.reshape(table.shape[0], -1), rows, weights)


@jax.custom_vjp
def _held_here(table, rows, weights):
    """`bag` where most rows are past the table: each token's others are brought to the front, the rest not visited."""
    return _forward(table, rows, weights)[0]


def _blocks(rows, held: int):
    """(rows in front-first order, the order, how many blocks of slots hold any)."""
    order = jnp.argsort(rows >= held, axis=1, stable=True)
    front = jnp.take_along_axis(rows, order, axis=1)
    front = jnp.pad(front, ((0, 0), (0, -rows.shape[1] % SLOTS)), constant_values=held)
    most = jnp.max(jnp.sum(front < held, axis=1))
    return front, order, -(-most // SLOTS)


def _forward(table, rows, weights):
    front, order, count = _blocks(rows, table.shape[0])
    sorted_weights = _padded(jnp.take_along_axis(weights, order, axis=1))

    def add(i, total):
        return total + bag(table, _slots(front, i), _slots(sorted_weights, i)).astype(jnp.float32)

    total = lax.fori_loop(0, count, add, jnp.zeros((rows.shape[0], table[0].size), jnp.float32))
    return total.astype(table.dtype), (table, rows, weights)


def _backward(saved, dy):
    table, rows, weights = saved
    front, order, count = _blocks(rows, table.shape[0])
    _, pull = jax.vjp(lambda table: bag(table, rows, weights), table)

    def dots(i, found):
        some = _slots(front, i)
        _, pull = jax.vjp(lambda w: bag(table, some, w), jnp.zeros(some.shape, jnp.float32))
        return lax.dynamic_update_slice_in_dim(found, pull(dy)[0], i * SLOTS, axis=1)

    in_front = lax.fori_loop(0, count, dots, jnp.zeros(front.shape, jnp.float32))[:, : rows.shape[1]]
    d_weights = jnp.take_along_axis(in_front, jnp.argsort(order, axis=1), axis=1)
    return pull(dy)[0], None, d_weights


_held_here.defvjp(_forward, _backward)


def _padded(x):
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % SLOTS)))


def _slots(x, block):
    return lax.dynamic_slice_in_dim(x, block * SLOTS, SLOTS, axis=1)
