"""Tile-aligned groups: every group's rows are contiguous and start at a tile, so a tile has one owner.

T rows, G groups, P slots (a multiple of the tile). Rows move into slots and back by gathers only.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, Shaped

from kernels_pallas.grouped_matmul.tiles import choose_tile, num_tiles


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("row_of_slot", "slot_of_row", "tile_groups", "live_tiles", "group_sizes"),
    meta_fields=("tile", "num_groups"),
)
@dataclasses.dataclass(frozen=True)
class Layout:
    """Where each row lives. Slots run group by group; the live tiles come first."""

    # Any: a tree map may put shapes or shardings in place of arrays.
    row_of_slot: Any  # int32[P], T where the slot is padding
    slot_of_row: Any  # int32[T], P where nobody owns the row
    tile_groups: Any  # int32[P / tile], a valid group also for dead tiles
    live_tiles: Any  # int32[]
    group_sizes: Any  # int32[G]
    tile: int
    num_groups: int

    @property
    def num_rows(self) -> int:
        return self.slot_of_row.shape[-1]

    @property
    def num_slots(self) -> int:
        return self.row_of_slot.shape[-1]


def align_rows(group_ids: Int32[Array, " T"], num_groups: int, *, tile: int | None = None) -> Layout:
    """Gives every row with an id in 0..G-1 a slot; rows keep their order within a group, other rows own none.

    Raises ValueError for ids that are not a vector of integers, no group at all, or a tile below one row.
    """
    if group_ids.ndim != 1 or not jnp.issubdtype(group_ids.dtype, jnp.integer):
        raise ValueError(f"group_ids: got {group_ids.dtype}{list(group_ids.shape)}, expected integers [T]")
    if num_groups < 1:
        raise ValueError(f"num_groups: got {num_groups}, expected at least 1")
    rows = group_ids.shape[0]
    tile = choose_tile(rows, num_groups) if tile is None else tile
    if tile < 1:
        raise ValueError(f"tile: got {tile}, expected at least 1 row")
    tiles = num_tiles(rows, num_groups, tile)
    slots = tiles * tile

    owned = (group_ids[:, None] == jnp.arange(num_groups, dtype=group_ids.dtype)).astype(jnp.int32)  # [T, G]
    seen = jnp.cumsum(owned, axis=0, dtype=jnp.int32)
    sizes = jnp.sum(owned, axis=0, dtype=jnp.int32)
    tiles_of_group = (sizes + tile - 1) // tile
    end_tile = jnp.cumsum(tiles_of_group, dtype=jnp.int32)
    start = (end_tile - tiles_of_group) * tile
    slot = jnp.sum(owned * (seen - 1 + start), axis=1, dtype=jnp.int32)
    slot_of_row = jnp.where(jnp.any(owned, axis=1), slot, slots).astype(jnp.int32)
    row_of_slot = jnp.full((slots,), rows, jnp.int32)
    row_of_slot = row_of_slot.at[slot_of_row].set(jnp.arange(rows, dtype=jnp.int32), mode="drop")
    index = jnp.arange(tiles, dtype=jnp.int32)
    tile_groups = jnp.sum(index[:, None] >= end_tile, axis=1, dtype=jnp.int32)
    return Layout(
        row_of_slot=row_of_slot,
        slot_of_row=slot_of_row,
        tile_groups=jnp.minimum(tile_groups, num_groups - 1),
        live_tiles=end_tile[-1],
        group_sizes=sizes,
        tile=tile,
        num_groups=num_groups,
    )


def group_of_slot(layout: Layout) -> Int32[Array, " P"]:
    """The group that owns each slot; a padding slot gets its tile's."""
    return jnp.repeat(layout.tile_groups, layout.tile, total_repeat_length=layout.num_slots)


def group_rows(x: Shaped[Array, "T ..."], layout: Layout) -> Shaped[Array, "P ..."]:
    """Rows to slots; padding slots are exact zeros. Raises ValueError unless `x` has the layout's T rows."""
    if x.ndim < 1 or x.shape[0] != layout.num_rows:
        raise ValueError(f"x: got {x.dtype}{list(x.shape)}, expected [T={layout.num_rows}, ...]")
    return _move(x, layout.row_of_slot, layout.slot_of_row)


def ungroup_rows(y: Shaped[Array, "P ..."], layout: Layout) -> Shaped[Array, "T ..."]:
    """Slots to rows; rows nobody owns are exact zeros. Raises ValueError unless `y` has the layout's P slots."""
    if y.ndim < 1 or y.shape[0] != layout.num_slots:
        raise ValueError(f"y: got {y.dtype}{list(y.shape)}, expected [P={layout.num_slots}, ...]")
    return _move(y, layout.slot_of_row, layout.row_of_slot)


def _move(x, source, destination):
    # Integers carry no gradient, and a custom gradient would have to return float0 for them.
    return _gather_with_gradient(x, source, destination) if jnp.issubdtype(x.dtype, jnp.inexact) else _gather(x, source)


def _gather(x, source):
    return x.at[source].get(mode="fill", fill_value=0)


@jax.custom_vjp
def _gather_with_gradient(x, source, destination):
    """x[source], zeros where out of range. The two index maps undo each other, so the gradient gathers too."""
    return _gather(x, source)


def _gather_forward(x, source, destination):
    return _gather(x, source), destination


def _gather_backward(destination, dy):
    return _gather(dy, destination), None, None


_gather_with_gradient.defvjp(_gather_forward, _gather_backward)
