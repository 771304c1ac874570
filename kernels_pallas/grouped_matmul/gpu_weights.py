"""The Hopper kernel of the weights' gradient: a job is a block of one group's matrix, its steps the group's rows."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels_pallas.grouped_matmul.gpu_rows import block_of
from kernels_pallas.grouped_matmul.gpu_stream import PIECE, WORKERS, Job, in_bands, lane, store, stream
from kernels_pallas.grouped_matmul.layout import Layout

BAND = 8  # blocks of the result's rows


def weight_gradient(x, dy, layout: Layout):
    """x [P, K], dy [P, N] -> [G, K, N]: the sum of x^T dy over each group's rows, in float32 until it is written."""
    depth, width = x.shape[1], dy.shape[1]
    inner, outer = block_of(PIECE * WORKERS, width, 1)
    blocks = pl.cdiv(depth, inner), pl.cdiv(width, outer)
    of_group = pl.cdiv(layout.group_sizes, PIECE)  # what is left of a group's last tile is zeros
    tiles = pl.cdiv(layout.group_sizes, layout.tile)
    start = (jnp.cumsum(tiles, dtype=jnp.int32) - tiles) * (layout.tile // PIECE)

    def job_of(number, inputs):
        starts, steps, *_ = inputs
        group = lax.div(number, jnp.int32(blocks[0] * blocks[1]))
        number = lax.rem(number, jnp.int32(blocks[0] * blocks[1]))
        row, column = in_bands(number, *blocks, BAND)
        return Job(steps[group], (row, column, group, starts[group]))

    def fetch(job, step, inputs, stages, barrier):
        row, column, _, first = job.where
        rows = pl.ds((first + step) * PIECE, PIECE)
        _, _, x, dy = inputs
        plgpu.copy_gmem_to_smem(x.at[rows, pl.ds(row * inner, inner)], stages[0], barrier)
        plgpu.copy_gmem_to_smem(dy.at[rows, pl.ds(column * outer, outer)], stages[1], barrier)

    def multiply(worker, stages, accumulators):
        x, dy = stages
        plgpu.wgmma(accumulators[0], x.at[:, pl.ds(worker * PIECE, PIECE)].transpose((1, 0)), dy)

    def write(worker, job, sums, outs, staging):
        row, column, group, _ = job.where
        rows = pl.ds(row * inner + worker * PIECE, PIECE)
        pieces = []
        for at in range(0, outer, PIECE):
            out = outs[0].at[group, rows, pl.ds(column * outer + at, PIECE)]
            pieces.append((sums[0][:, at : at + PIECE], out))
        store(pieces, staging)

    kernel = stream(
        job_of,
        layout.num_groups * blocks[0] * blocks[1],
        fetch,
        multiply,
        write,
        buffers=((PIECE, inner), (PIECE, outer)),
        accumulator=(PIECE, outer),
        accumulators=1,
        results=(jax.ShapeDtypeStruct((layout.num_groups, depth, width), x.dtype),),
        num_inputs=4,
        columns=lane(depth, width),
        name="weight_gradient",
    )
    return kernel(start, of_group, x, dy)[0]
