"""The TPU kernel of the weights' gradient: each group's block stays in VMEM while the group's tiles are added to it."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas.grouped_matmul.layout import Layout
from kernels_pallas.grouped_matmul.tpu_tiles import clear, gradient_blocks, multiply, tuned
from kernels_pallas.tpu_chip import vmem_limit

ADD, START, EMPTY, NOTHING = range(4)  # what a visit does to its group's block


def visits(layout: Layout) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(tile, group, what to do), each int32[tiles + G]: every live tile once, and once every group that has none."""
    tiles = layout.tile_groups.shape[0]
    of_group = (layout.group_sizes + layout.tile - 1) // layout.tile
    first_tile = jnp.cumsum(of_group, dtype=jnp.int32) - of_group
    count = jnp.maximum(of_group, 1)
    end = jnp.cumsum(count, dtype=jnp.int32)
    visit = jnp.arange(tiles + layout.num_groups, dtype=jnp.int32)
    group = jnp.minimum(jnp.sum(visit[:, None] >= end, axis=1, dtype=jnp.int32), layout.num_groups - 1)
    nth = jnp.minimum(visit - (end - count)[group], count[group] - 1)  # visits after the last stay where it was
    what = jnp.where(of_group[group] == 0, EMPTY, jnp.where(nth == 0, START, ADD))
    what = jnp.where(visit < end[-1], what, NOTHING).astype(jnp.int32)
    return jnp.minimum(first_tile[group] + nth, tiles - 1), group, what


def _kernel(tile_of, group_of, what_of, x, dy, out):
    del tile_of, group_of  # only the index maps read them
    what = what_of[pl.program_id(2)]

    @pl.when(what <= START)
    def _():
        step = multiply(x[...], dy[...], (0, 0))
        out[0] = jnp.where(what == START, 0.0, out[0]) + step

    @pl.when(what == EMPTY)
    def _():
        clear(out.at[0])


def weight_gradient(x, dy, layout: Layout, *, block: tuple[int, ...] | None = None):
    """x [P, K], dy [P, N] -> [G, K, N]: the sum of x^T dy over each group's rows, in float32 until it is written.

    `block` is how many columns of x and of dy meet in a grid step; () leaves it to the rules, None to the table first.
    """
    (slots, depth), width = x.shape, dy.shape[1]
    tile, dtype = layout.tile, x.dtype
    if block is None:
        block = tuned("weight_gradient", dtype, tile, depth, width)
    inner, outer = block or gradient_blocks(depth, width, tile, dtype.itemsize)
    grid = (pl.cdiv(depth, inner), pl.cdiv(width, outer), slots // tile + layout.num_groups)
    total = pl.pallas_call(
        _kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=grid,
            in_specs=[
                pl.BlockSpec((tile, inner), lambda k, n, v, tile_of, group_of, what: (tile_of[v], k)),
                pl.BlockSpec((tile, outer), lambda k, n, v, tile_of, group_of, what: (tile_of[v], n)),
            ],
            out_specs=pl.BlockSpec((1, inner, outer), lambda k, n, v, tile_of, group_of, what: (group_of[v], k, n)),
        ),
        out_shape=jax.ShapeDtypeStruct((layout.num_groups, depth, width), jnp.float32),
        compiler_params=pltpu.CompilerParams(
            vmem_limit_bytes=vmem_limit(), dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * grid[2] * tile * depth * width,  # as if every visit were to a live tile
            transcendentals=0,
            bytes_accessed=(grid[1] * x.size + grid[0] * dy.size) * dtype.itemsize
            + 4 * layout.num_groups * depth * width,
        ),
        name="grouped_weight_gradient",
    )(*visits(layout), x, dy)
    return total.astype(dtype)
