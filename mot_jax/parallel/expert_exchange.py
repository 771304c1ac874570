"""A feed-forward whose experts are split over a mesh axis: tokens travel to their experts, and their outputs back.

A pair is a token and one of its experts. Every device queues its pairs by the device that holds the expert; in a round
it sends each device the next `room` of its queue, in one all-to-all of a static size. No pair is dropped: where the
fullest queue may be longer than `room` there are as many rounds as it needs. What a device holds is the room of one
round, so it does not grow with the number of devices.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from kernels_pallas.grouped_matmul import align_rows, group_rows, grouped_feed_forward, move_rows, ungroup_rows
from mot_jax.config.rules import BATCH_AXES
from mot_jax.parallel.collectives import axis_size, max_over

Stack = tuple[Float[Array, "e D F"], Float[Array, "e D F"], Float[Array, "e F D"]]


def exchanged_feed_forward(
    x: Float[Array, "P D"],
    ids: Int32[Array, "P A"],
    weights: Float[Array, "P A"],
    stack: Stack,
    *,
    axis: str,
    room: int,
    most: int,
) -> Float[Array, "P D"]:
    """The weighted sum of each token's experts, wherever on `axis` they are; over tensor still to be summed.

    Args:
      ids: numbers in the whole stack, each named once by a token; -1 where there is none.
      stack: gate, up and down of the e experts held here.
      room: pairs sent to each device in a round.
      most: pairs that there can be for one device. Of more than `room` the further rounds are a loop, which keeps
        nothing for the gradient and computes it anew.
    """
    queue = _queue(ids, stack[0].shape[0], axis, room)
    y = _round(queue, 0, x, weights, stack)
    if most <= room:
        return y
    return (y.astype(jnp.float32) + _further_rounds(queue, x, weights, stack)).astype(y.dtype)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("ids", "device", "place", "rounds"),
    meta_fields=("axis", "devices", "held", "room"),
)
@dataclasses.dataclass(frozen=True)
class _Queue:
    """Of each pair [P, A] the device that holds its expert, -1 for none, and its place among the pairs for it."""

    # Any: a tree map may put shapes in place of arrays.
    ids: Any
    device: Any
    place: Any
    rounds: Any  # int32[], the same on all devices
    axis: str
    devices: int
    held: int
    room: int


def _queue(ids, held: int, axis: str, room: int) -> _Queue:
    devices = axis_size(axis)
    device = jnp.where(ids >= 0, ids // held, -1)
    owned = (device.reshape(-1, 1) == jnp.arange(devices, dtype=jnp.int32)).astype(jnp.int32)
    seen = jnp.cumsum(owned, axis=0, dtype=jnp.int32)
    place = jnp.sum(owned * (seen - 1), axis=1, dtype=jnp.int32).reshape(ids.shape)
    rounds = -(-jnp.max(seen[-1]) // room)
    for name in BATCH_AXES:  # also those that do not exchange: all take the same turns of the loop
        rounds = max_over(rounds, name)
    return _Queue(ids, device, place, rounds, axis, devices, held, room)


def _round(queue: _Queue, number, x, weights, stack: Stack) -> Float[Array, "P D"]:
    """What the pairs of one round add to their tokens."""
    slots, (_, ways) = queue.devices * queue.room, queue.ids.shape
    turn = queue.place - number * queue.room
    goes = (queue.device >= 0) & (turn >= 0) & (turn < queue.room)
    slot = jnp.where(goes, queue.device * queue.room + turn, slots)  # [P, A]
    pairs = jnp.arange(slot.size, dtype=jnp.int32)
    pair = jnp.full((slots,), slot.size, jnp.int32).at[slot.reshape(-1)].set(pairs, mode="drop")
    wanted = queue.ids.reshape(-1).at[pair].get(mode="fill", fill_value=-1)
    wanted = _travel(queue, jnp.where(wanted >= 0, wanted % queue.held, -1))
    layout = align_rows(wanted, queue.held)
    came = _travel(queue, move_rows(x, pair // ways, slot))
    y = grouped_feed_forward(group_rows(came, layout), *stack, layout)
    y = _travel(queue, ungroup_rows(y, layout))
    weight = move_rows(weights.reshape(-1), pair, slot.reshape(-1, 1))
    return move_rows((y * weight[:, None]).astype(y.dtype), slot, pair // ways)


def _travel(queue: _Queue, x: Array) -> Array:
    """Block d of what is here to device d; block s of the result is from device s."""
    return lax.all_to_all(x, queue.axis, split_axis=0, concat_axis=0, tiled=True)


@jax.custom_vjp
def _further_rounds(queue: _Queue, x, weights, stack: Stack) -> Float[Array, "P D"]:
    def add(number, total):
        return total + _round(queue, number, x, weights, stack).astype(jnp.float32)

    return lax.fori_loop(1, queue.rounds, add, jnp.zeros(x.shape, jnp.float32))


def _forward(queue, x, weights, stack):
    return _further_rounds(queue, x, weights, stack), (queue, x, weights, stack)


def _backward(saved, dy):
    queue, *arrays = saved

    def add(number, total):
        y, pull = jax.vjp(functools.partial(_round, queue, number), *arrays)
        return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), total, pull(dy.astype(y.dtype)))

    start = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), tuple(arrays))
    grads = lax.fori_loop(1, queue.rounds, add, start)
    return None, *jax.tree.map(lambda grad, a: grad.astype(a.dtype), grads, tuple(arrays))


_further_rounds.defvjp(_forward, _backward)
