"""Matrix products where each row's group owns the weights: T rows, G groups, P slots in tile-aligned groups."""

from kernels_pallas.grouped_matmul.api import grouped_feed_forward, grouped_matmul, grouped_swiglu
from kernels_pallas.grouped_matmul.layout import (
    Layout,
    align_rows,
    group_of_slot,
    group_pairs,
    group_rows,
    move_rows,
    ungroup_rows,
)

__all__ = [
    "Layout",
    "align_rows",
    "group_of_slot",
    "group_pairs",
    "group_rows",
    "grouped_feed_forward",
    "grouped_matmul",
    "grouped_swiglu",
    "move_rows",
    "ungroup_rows",
]
