"""Hopper kernels whose result is rows: a job is a block of one tile's rows and its owner's columns.

A tile has one owner, so there is no mask. Dead tiles take no steps and are written as zeros. Jobs run through a band of
row blocks before they move on to the next columns: what runs at the same time shares rows and weights in the L2 cache.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels_pallas.grouped_matmul.activation import activate
from kernels_pallas.grouped_matmul.gpu_stream import PIECE, WIDEST, WORKERS, Job, in_bands, lane, store, stream
from kernels_pallas.grouped_matmul.layout import Layout

BAND = 16  # row blocks


def product(xs: tuple, weights: tuple, layout: Layout, *, transpose: bool):
    """The sum of each x [P, K] times its stack [G, K, N] (or [G, N, K]) -> [P, N]."""
    name = f"{'product' if len(xs) == 1 else 'sum'}{'_transposed' if transpose else ''}"
    return _call(name, lambda sums: sums, 1, xs, weights, layout, transpose)[0]


def swiglu(x, w_gate, w_up, layout: Layout, *, keep: bool):
    """x [P, K], weights [G, K, N] -> silu(gate) * up, and gate and up if they are kept, each [P, N]."""
    name, outs = ("swiglu_kept", 3) if keep else ("swiglu", 1)
    return _call(name, lambda sums: (activate(*sums), *sums)[:outs], outs, (x,), (w_gate, w_up), layout, False)


def block_of(tile: int, width: int, sums: int) -> tuple[int, int]:
    """(rows, columns) of a job. The workers share it by rows where the tile has 128 of them, else by columns."""
    rows = PIECE * WORKERS if tile % (PIECE * WORKERS) == 0 else PIECE
    most = WIDEST // sums
    least = PIECE if rows > PIECE else PIECE * WORKERS
    # A block costs as much as it has columns, and fetching its rows.
    return rows, min(range(least, most + 1, least), key=lambda columns: pl.cdiv(width, columns) * (columns + PIECE))


def _call(
    name: str, finish: Callable, num_outs: int, xs: tuple, weights: tuple, layout: Layout, transpose: bool
) -> tuple[jax.Array, ...]:
    (slots, contracted), width = xs[0].shape, weights[0].shape[1 if transpose else 2]
    sums = len(weights) // len(xs)  # products that are kept apart; of one, all pairs are added up
    rows, columns = block_of(layout.tile, width, sums)
    share = (PIECE, columns) if rows > PIECE else (PIECE, columns // WORKERS)
    row_blocks, column_blocks, depth = slots // rows, pl.cdiv(width, columns), pl.cdiv(contracted, PIECE)

    def job_of(number, inputs):
        groups, live, *_ = inputs
        row, column = in_bands(number, row_blocks, column_blocks, BAND)
        tile = lax.div(row * rows, layout.tile)
        return Job(jnp.where(tile < live[0], depth * len(xs), 0), (row, column, groups[tile]))

    def fetch(job, step, inputs, stages, barrier):
        row, column, group = job.where
        inner = pl.ds(lax.rem(step, depth) * PIECE, PIECE)
        outer = pl.ds(column * columns, columns)
        all_xs, all_weights = inputs[2 : 2 + len(xs)], inputs[2 + len(xs) :]
        for pair, x in enumerate(all_xs):

            def copy(x=x, own=all_weights[pair * sums : (pair + 1) * sums]):
                plgpu.copy_gmem_to_smem(x.at[pl.ds(row * rows, rows), inner], stages[0], barrier)
                for w, stage in zip(own, stages[1:], strict=True):
                    block = w.at[group, outer, inner] if transpose else w.at[group, inner, outer]
                    plgpu.copy_gmem_to_smem(block, stage, barrier)

            pl.when(lax.div(step, depth) == pair)(copy)

    def own(worker):
        """(rows, columns) of the block that the worker multiplies."""
        part = pl.ds(worker * share[0 if rows > PIECE else 1], share[0 if rows > PIECE else 1])
        return (part, slice(None)) if rows > PIECE else (slice(None), part)

    def multiply(worker, stages, accumulators):
        my_rows, my_columns = own(worker)
        x, *ws = stages
        for w, accumulator in zip(ws, accumulators, strict=True):
            w = w.at[my_columns, :].transpose((1, 0)) if transpose else w.at[:, my_columns]
            plgpu.wgmma(accumulator, x.at[my_rows, :], w)

    def write(worker, job, sums, outs, staging):
        row, column, _ = job.where
        across = rows == PIECE
        first_row = row * rows + (0 if across else worker * PIECE)
        first_column = column * columns + (worker * share[1] if across else 0)
        pieces = []
        for at in range(0, share[1], PIECE):
            values = finish([total[:, at : at + PIECE] for total in sums])
            where = pl.ds(first_row, PIECE), pl.ds(first_column + at, PIECE)
            pieces += [(value, out.at[where]) for value, out in zip(values, outs, strict=True)]
        store(pieces, staging)

    kernel = stream(
        job_of,
        row_blocks * column_blocks,
        fetch,
        multiply,
        write,
        buffers=((rows, PIECE), *[(columns, PIECE) if transpose else (PIECE, columns)] * sums),
        accumulator=share,
        accumulators=sums,
        results=(jax.ShapeDtypeStruct((slots, width), xs[0].dtype),) * num_outs,
        num_inputs=2 + len(xs) + len(weights),
        columns=lane(contracted, width),
        name=name,
    )
    return kernel(layout.tile_groups, layout.live_tiles[None], *xs, *weights)
