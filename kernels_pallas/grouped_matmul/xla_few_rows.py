"""The XLA path's gradient of the weights from few rows: one product of all groups, each row masked out of the others.

A loop over groups writes zeros to each gradient, then reads it, adds and writes again; with few rows that is all the
time it takes. Rows of all groups meet in the one sum, so what is not finite in a row is so in every group's gradient.
"""

import jax
import jax.numpy as jnp

from kernels_pallas.grouped_matmul.layout import Layout
from kernels_pallas.grouped_matmul.xla_runs import dot

MOST = 256  # rows; on 2 cores the loops take 0.9 to 5 times as long below, from 512 on 0.6 to 0.9 (G = 2, 8)


def has_few_rows(layout: Layout) -> bool:
    """Whether the masked product is the faster one."""
    return layout.num_groups > 1 and 0 < layout.slot_of_pair.size <= MOST and layout.num_slots > 0


def weight_gradient(x, dy, layout: Layout) -> jax.Array:
    """x [P, K], dy [P, N] -> [G, K, N], summed in float32."""
    slots = layout.slot_of_pair.reshape(-1)
    owner = layout.tile_groups.at[slots // layout.tile].get(mode="fill", fill_value=-1)
    rows, dys = (a.at[slots].get(mode="fill", fill_value=0) for a in (x, dy))
    own = owner[:, None, None] == jnp.arange(layout.num_groups)[:, None]
    masked = jnp.where(own, rows[:, None], 0).reshape(rows.shape[0], -1)  # [T * A, G * K]
    return dot(masked, dys, (0, 0)).reshape(layout.num_groups, x.shape[1], dy.shape[1]).astype(x.dtype)
