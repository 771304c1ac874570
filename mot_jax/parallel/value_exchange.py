"""Reading a table whose rows are split over a mesh axis and whose columns over another, without moving the table.

Devices of a row group show each other which rows their tokens want, some tokens at a time; each sums what it holds, and
the sums travel back to whose tokens they are. What a device holds meanwhile does not grow with the group.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from kernels_pallas.embedding_bag import embedding_bag, embedding_bag_rows_gradient
from mot_jax.parallel.collectives import axis_size, shard_offset

GROUP_TOKENS = 1024  # of a row group, exchanged at a time
SLOTS = 8  # of a token, summed at a time: those it has here come first, and most tokens have few


def read(
    table: Float[Array, "N C w"],
    rows: Int32[Array, "P K"],
    weights: Float32[Array, "P K"],
    group: str | None,
    *,
    constant: bool = False,
) -> Float[Array, "P Dv"]:
    """Each token's weighted sum of rows, the columns held here; rows past the whole table's last count nothing.

    `group` is the mesh axis that the rows are split over. With `constant` the table gets no gradient; `table_gradient`
    gives it in float32.
    """
    if axis_size(group) > 1:
        return _exchanged(table, rows, weights, group, constant)
    return _bag(jax.lax.stop_gradient(table) if constant else table, rows, weights)


def table_gradient(
    shape: tuple[int, ...],
    rows: Int32[Array, "P K"],
    weights: Float32[Array, "P K"],
    dy: Float[Array, "P Dv"],
    group: str | None,
) -> Float32[Array, "N C w"]:
    """The gradient of this device's part of a table, of this shape: from what the group's tokens read of it."""
    dy = dy.astype(jnp.float32)
    if axis_size(group) == 1:
        _, pull = jax.vjp(lambda table: _bag(table, rows, weights), jnp.zeros(shape, jnp.float32))
        return pull(dy)[0]
    chunks, held = _chunks(group, rows, weights, shape[0], dy), shape[0]

    def add(i, total):
        wanted, weights, dy = _gathered(group, jax.tree.map(lambda x: x[i], chunks), held)
        found = embedding_bag_rows_gradient(dy, wanted, weights, num_rows=held)
        return total.at[found.rows].add(found.values.reshape(-1, *shape[1:]), mode="drop", indices_are_sorted=True)

    return lax.fori_loop(0, len(chunks[0]), add, jnp.zeros(shape, jnp.float32))


def _bag(table, rows, weights):
    """`embedding_bag` of a table [N, C, w], in the form that its kernels read by row."""
    return embedding_bag(table if table.shape[2] == 128 else table.reshape(table.shape[0], -1), rows, weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _exchanged(table, rows, weights, group: str, constant: bool):
    def one(chunk):
        wanted, weights = _gathered(group, chunk, table.shape[0])
        order, front, blocks = _held_first(wanted, table.shape[0])
        front_weights = _padded(jnp.take_along_axis(weights, order, axis=1), 0)

        def add(i, total):
            return total + _bag(table, _slots(front, i), _slots(front_weights, i)).astype(jnp.float32)

        total = lax.fori_loop(0, blocks, add, jnp.zeros((wanted.shape[0], table[0].size), jnp.float32))
        return lax.psum_scatter(total, group, tiled=True).astype(table.dtype)

    return _joined(lax.map(one, _chunks(group, rows, weights, table.shape[0])), rows)


def _forward(table, rows, weights, group: str, constant: bool):
    return _exchanged(table, rows, weights, group, constant), (table, rows, weights)


def _backward(group: str, constant: bool, saved, dy):
    table, rows, weights = saved

    def one(chunk):
        wanted, _, dy = _gathered(group, chunk, table.shape[0])
        order, front, blocks = _held_first(wanted, table.shape[0])

        def dots(i, found):
            some = _slots(front, i)
            _, pull = jax.vjp(lambda w: _bag(table, some, w), jnp.zeros(some.shape, jnp.float32))
            return lax.dynamic_update_slice_in_dim(found, pull(dy)[0], i * SLOTS, axis=1)

        in_front = lax.fori_loop(0, blocks, dots, jnp.zeros(front.shape, jnp.float32))[:, : order.shape[1]]
        d_weights = jnp.take_along_axis(in_front, jnp.argsort(order, axis=1), axis=1)
        return lax.psum_scatter(d_weights, group, tiled=True)

    d_weights = _joined(lax.map(one, _chunks(group, rows, weights, table.shape[0], dy)), rows)
    if constant:
        return jnp.zeros_like(table), None, d_weights
    return table_gradient(table.shape, rows, weights, dy, group).astype(table.dtype), None, d_weights


_exchanged.defvjp(_forward, _backward)


def _chunks(group: str, rows, weights, held: int, *more) -> tuple[Array, ...]:
    """This device's tokens as [chunks, tokens of a chunk, ...]; rows of none are past the table's last."""
    devices = axis_size(group)
    chunk = max(1, min(GROUP_TOKENS // devices, rows.shape[0]))

    def cut(x, fill):
        padded = jnp.pad(x, ((0, -x.shape[0] % chunk), (0, 0)), constant_values=fill)
        return padded.reshape(-1, chunk, x.shape[1])

    return cut(rows, held * devices), cut(weights, 0), *(cut(x, 0) for x in more)


def _gathered(group: str, chunk: tuple[Array, ...], held: int) -> tuple[Array, ...]:
    """A chunk of all devices of the group; rows count from this device's first, `held` stands for others' rows."""
    rows, *others = (lax.all_gather(x, group, tiled=True) for x in chunk)
    rows = rows - shard_offset(group, held)
    return jnp.where((rows >= 0) & (rows < held), rows, held), *others


def _joined(chunks: Array, rows: Array) -> Array:
    return chunks.reshape(-1, chunks.shape[-1])[: rows.shape[0]]


def _held_first(rows, held: int) -> tuple[Array, Array, Array]:
    """(the order that brings each token's rows held here to the front, the rows in it, blocks of slots with any)."""
    order = jnp.argsort(rows >= held, axis=1, stable=True)
    front = _padded(jnp.take_along_axis(rows, order, axis=1), held)
    most = jnp.max(jnp.sum(front < held, axis=1))
    return order, front, -(-most // SLOTS)


def _padded(x: Array, fill) -> Array:
    """To whole blocks of slots."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % SLOTS)), constant_values=fill)


def _slots(x: Array, block) -> Array:
    return lax.dynamic_slice_in_dim(x, block * SLOTS, SLOTS, axis=1)
