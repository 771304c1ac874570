"""Tile-aligned groups: every group's rows are contiguous and start at a tile, so a tile has one owner.

T rows, A groups at most that a row belongs to, G groups, P slots (a multiple of the tile). A row has a slot in each of
its groups. Rows move into slots and back by gathers only.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Integer, Shaped

from kernels_pallas.grouped_matmul.tiles import choose_tile, num_tiles


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("pair_of_slot", "slot_of_pair", "tile_groups", "live_tiles", "group_sizes"),
    meta_fields=("tile", "num_groups"),
)
@dataclasses.dataclass(frozen=True)
class Layout:
    """Where each row lives. Slots run group by group; the live tiles come first.

    A pair is a row and one of its groups.
    """

    # Any: a tree map may put shapes or shardings in place of arrays.
    pair_of_slot: Any  # int32[P]: row * A + which of its groups, T * A where the slot is padding
    slot_of_pair: Any  # int32[T, A], P or more where there is no such pair
    tile_groups: Any  # int32[P / tile], a valid group also for dead tiles
    live_tiles: Any  # int32[]
    group_sizes: Any  # int32[G]
    tile: int
    num_groups: int

    @property
    def num_rows(self) -> int:
        return self.slot_of_pair.shape[-2]

    @property
    def num_slots(self) -> int:
        return self.pair_of_slot.shape[-1]

    @property
    def row_of_slot(self) -> Int32[Array, " P"]:
        """T where the slot is padding."""
        return self.pair_of_slot // self.slot_of_pair.shape[-1]


def align_rows(
    group_ids: Integer[Array, "T *A"], num_groups: int, *, tile: int | None = None, max_pairs: int | None = None
) -> Layout:
    """Gives every row a slot in each group its ids name; rows keep their order within a group.

    Args:
      group_ids: [T], or [T, A] where a row may belong to several groups, each named once. An id that is not in
        0..G-1 names none.
      tile: rows of a tile; None chooses it by the shapes.
      max_pairs: how many ids at most name a group, if fewer than T * A: slots are made for no more. Should more of
        them do so, the last groups may lose their last rows.

    Raises ValueError for ids of another rank or type, no group at all, or a tile below one row.
    """
    if group_ids.ndim not in (1, 2) or not jnp.issubdtype(group_ids.dtype, jnp.integer):
        raise ValueError(f"group_ids: got {group_ids.dtype}{list(group_ids.shape)}, expected integers [T] or [T, A]")
    if num_groups < 1:
        raise ValueError(f"num_groups: got {num_groups}, expected at least 1")
    shape = group_ids.shape if group_ids.ndim == 2 else (*group_ids.shape, 1)
    ids = group_ids.reshape(-1)
    pairs = ids.shape[0]
    most = pairs if max_pairs is None else min(pairs, max_pairs)
    tile = choose_tile(most, num_groups) if tile is None else tile
    if tile < 1:
        raise ValueError(f"tile: got {tile}, expected at least 1 row")
    tiles = num_tiles(most, num_groups, tile)
    slots = tiles * tile

    # Compared in a type that holds both: group 256 is no uint8, and would wrap around to group 0.
    owned = (ids[:, None] == jnp.arange(num_groups, dtype=jnp.int32)).astype(jnp.int32)  # [T * A, G]
    seen = jnp.cumsum(owned, axis=0, dtype=jnp.int32)
    sizes = jnp.sum(owned, axis=0, dtype=jnp.int32)
    tiles_of_group = (sizes + tile - 1) // tile
    end_tile = jnp.cumsum(tiles_of_group, dtype=jnp.int32)
    start = (end_tile - tiles_of_group) * tile
    end_tile = jnp.minimum(end_tile, tiles)  # less where max_pairs was passed
    slot = jnp.sum(owned * (seen - 1 + start), axis=1, dtype=jnp.int32)
    slot_of_pair = jnp.where(jnp.any(owned, axis=1), slot, slots).astype(jnp.int32)
    pair_of_slot = jnp.full((slots,), pairs, jnp.int32)
    pair_of_slot = pair_of_slot.at[slot_of_pair].set(jnp.arange(pairs, dtype=jnp.int32), mode="drop")
    index = jnp.arange(tiles, dtype=jnp.int32)
    tile_groups = jnp.sum(index[:, None] >= end_tile, axis=1, dtype=jnp.int32)
    return Layout(
        pair_of_slot=pair_of_slot,
        slot_of_pair=slot_of_pair.reshape(shape),
        tile_groups=jnp.minimum(tile_groups, num_groups - 1),
        live_tiles=end_tile[-1],
        group_sizes=jnp.minimum(sizes, jnp.maximum(slots - start, 0)),
        tile=tile,
        num_groups=num_groups,
    )


def group_of_slot(layout: Layout) -> Int32[Array, " P"]:
    """The group that owns each slot; a padding slot gets its tile's."""
    return jnp.repeat(layout.tile_groups, layout.tile, total_repeat_length=layout.num_slots)


def group_rows(x: Shaped[Array, "T ..."], layout: Layout) -> Shaped[Array, "P ..."]:
    """Rows to slots, a copy for each group a row belongs to; padding slots are exact zeros.

    Raises ValueError unless `x` has the layout's T rows.
    """
    if x.ndim < 1 or x.shape[0] != layout.num_rows:
        raise ValueError(f"x: got {x.dtype}{list(x.shape)}, expected [T={layout.num_rows}, ...]")
    return move_rows(x, layout.row_of_slot, layout.slot_of_pair)


def group_pairs(x: Float[Array, "T A"], layout: Layout) -> Float[Array, " P"]:
    """A number for each row and group of it (a router's weight, say) to slots; padding slots are zeros.

    Raises ValueError unless `x` is as large as the group ids were.
    """
    if x.shape != layout.slot_of_pair.shape:
        raise ValueError(f"x: got {x.dtype}{list(x.shape)}, expected {list(layout.slot_of_pair.shape)}")
    return move_rows(x.reshape(-1), layout.pair_of_slot, layout.slot_of_pair.reshape(-1, 1))


def ungroup_rows(y: Shaped[Array, "P ..."], layout: Layout) -> Shaped[Array, "T ..."]:
    """Slots to rows, the sum over a row's groups; rows nobody owns are exact zeros.

    Raises ValueError unless `y` has the layout's P slots.
    """
    if y.ndim < 1 or y.shape[0] != layout.num_slots:
        raise ValueError(f"y: got {y.dtype}{list(y.shape)}, expected [P={layout.num_slots}, ...]")
    return move_rows(y, layout.slot_of_pair, layout.row_of_slot)


def move_rows(
    x: Shaped[Array, "N ..."], source: Int32[Array, "M *A"], destination: Int32[Array, "N *B"]
) -> Shaped[Array, "M ..."]:
    """Row i of the result is the sum of x[source[i]], out of range counting as zeros; so is its gradient, by gathers.

    `destination` undoes `source`: destination[n] holds every i whose source names n.
    """
    # Integers carry no gradient, and a custom gradient would have to return float0 for them.
    return _move(x, source, destination) if jnp.issubdtype(x.dtype, jnp.inexact) else _gather(x, source)


def _gather(x, source):
    if not (x.shape[0] and source.size):  # jax gathers nothing from no rows
        return jnp.zeros((source.shape[0], *x.shape[1:]), x.dtype)
    if source.ndim == 1:
        return x.at[source].get(mode="fill", fill_value=0)
    first, *rest = (_gather(x, source[:, i]) for i in range(source.shape[1]))
    if x.dtype == jnp.bfloat16 and rest:
        return sum((part.astype(jnp.float32) for part in rest), first.astype(jnp.float32)).astype(x.dtype)
    return functools.reduce(jnp.add, rest, first)  # which of booleans is "or"


@jax.custom_vjp
def _move(x, source, destination):
    return _gather(x, source)


def _move_forward(x, source, destination):
    return _gather(x, source), destination


def _move_backward(destination, dy):
    return _gather(dy, destination), None, None


_move.defvjp(_move_forward, _move_backward)
