"""The TPU kernel of d(values): a walk over the table's tiles, each written once, with dy at hand in VMEM.

A tile's entries come in one order, so equal inputs give equal sums: no atomics, nothing to race.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas.embedding_bag.tpu_order import CHUNK, Entries, Visits, visits
from kernels_pallas.embedding_bag.tpu_stream import LANES, SLACK, SUBLANES
from kernels_pallas.tpu_chip import vmem_limit

SUMS = 2  # of a tile, taking turns: an entry need not wait until the one before it, perhaps of its row, is stored
UNROLL = 8  # entries, or rows of a tile, whose instructions are written out
TILE_BYTES = 1 << 20  # of float32 sums, unless that makes more tiles than this:
MOST_TILES = 1 << 14  # the visits have to fit in SMEM


def tile_rows(num_rows: int, height: int) -> int:
    """Rows of a table tile, each [height, 128]."""
    rows = TILE_BYTES // (4 * LANES * _padded(height))
    while rows * MOST_TILES < num_rows:
        rows *= 2
    return max(min(rows, -(-num_rows // UNROLL) * UNROLL) // UNROLL * UNROLL, UNROLL)


def needed(tokens: int, height: int, num_rows: int, itemsize: int) -> int:
    """Bytes of VMEM that a walk takes: dy [tokens, height, 128], the sums, the tile and its copy on the way out.

    Not all there is: what XLA keeps in VMEM beside the kernel, the sort among it, would be moved out.
    """
    tile = 4 * tile_rows(num_rows, height) * _padded(height)
    return LANES * (tokens * _padded(height) * itemsize + (SUMS + 2) * tile) + SLACK


def cut(tokens: int, height: int, num_rows: int, itemsize: int) -> tuple[int, int]:
    """(tokens, sublanes) of dy that fit in VMEM beside a tile: all of them, or fewer columns, or fewer tokens."""
    heights = [height, *(h for h in range(height - 1, 0, -1) if height % h == 0 and h % SUBLANES == 0)]
    for h in heights:
        if needed(tokens, h, num_rows, itemsize) <= vmem_limit():
            return tokens, h
    most = tokens
    while most > 1 and needed(most, heights[-1], num_rows, itemsize) > vmem_limit():
        most = -(-most // 2)
    return most, heights[-1]


def _padded(height: int) -> int:
    """Sublanes that `height` of them take in VMEM."""
    return -(-height // SUBLANES) * SUBLANES if height > SUBLANES // 2 else 1 << (height - 1).bit_length()


def _kernel(tiles, chunks, count, offsets, rows, tokens, weights, dy, out, *totals):
    visit = pl.program_id(1)
    tile = tiles[visit]
    start = chunks[visit] * CHUNK
    first = jnp.maximum(offsets[tile] - start, 0)
    end = jnp.where(visit < count[0], jnp.minimum(offsets[tile + 1] - start, CHUNK), first)
    height = totals[0].shape[0] // UNROLL

    @pl.when((visit == 0) | (tiles[jnp.maximum(visit - 1, 0)] != tile))
    def _():
        def clear(i, _):
            for total in totals:
                total[pl.ds(i * UNROLL, UNROLL)] = jnp.zeros((UNROLL, *total.shape[1:]), total.dtype)

        lax.fori_loop(0, height, clear, None)

    def add(i, total):
        total[rows[0, 0, i]] += dy[tokens[0, 0, i]].astype(jnp.float32) * weights[0, 0, i]

    def several(i, _):
        for j in range(UNROLL):
            add(first + i * UNROLL + j, totals[j % len(totals)])

    whole = jnp.maximum(end - first, 0) // UNROLL
    lax.fori_loop(0, whole, several, None)
    lax.fori_loop(first + whole * UNROLL, end, lambda i, _: add(i, totals[0]), None)

    @pl.when((visit == count[0] - 1) | (tiles[jnp.minimum(visit + 1, tiles.shape[0] - 1)] != tile))
    def _():
        def write(i, _):
            some = pl.ds(i * UNROLL, UNROLL)
            out[some] = sum((total[some] for total in totals[1:]), totals[0][some]).astype(out.dtype)

        lax.fori_loop(0, height, write, None)


def add_up(entries: Entries, dy, num_rows: int, dtype):
    """Entries by row, dy [T, S, 128] -> [N, S, 128]: each row's sum of weight times dy; rows past N are left out.

    All tokens at once where they fit in VMEM, as they nearly always do, and then a table tile is written once.
    """
    tokens = dy.shape[0]
    most, columns = cut(*dy.shape[:2], num_rows, dy.dtype.itemsize)
    if most == tokens:
        return _walk(entries, dy, num_rows, columns, dtype)
    parts = jnp.pad(dy, ((0, -tokens % most), (0, 0), (0, 0))).reshape(-1, most, *dy.shape[1:])

    def add(total, part):
        number, own_dy = part
        token = entries.tokens - number * most
        own = (token >= 0) & (token < most)
        masked = entries._replace(tokens=jnp.where(own, token, 0), weights=jnp.where(own, entries.weights, 0))
        return total + _walk(masked, own_dy, num_rows, columns, jnp.float32), None

    zeros = jnp.zeros((num_rows, *dy.shape[1:]), jnp.float32)
    return lax.scan(add, zeros, (jnp.arange(parts.shape[0]), parts))[0].astype(dtype)


def _walk(entries: Entries, dy, num_rows: int, columns: int, dtype):
    """`add_up` of tokens that fit, `columns` of S at a time."""
    tokens, height, _ = dy.shape
    tile = tile_rows(num_rows, columns)
    tiles = pl.cdiv(num_rows, tile)
    walk = visits(entries, tiles, tile)
    chunks = entries.rows.shape[0]
    local = entries._replace(rows=entries.rows % tile)

    def chunk_map(column, visit, tiles, chunks, count, offsets):
        return chunks[visit], 0, 0

    def table_map(column, visit, tiles, chunks, count, offsets):
        return tiles[visit], column, 0

    return pl.pallas_call(
        _kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(Visits._fields),
            grid=(height // columns, tiles + chunks),
            in_specs=[
                *(pl.BlockSpec((1, 1, CHUNK), chunk_map, memory_space=pltpu.SMEM) for _ in local),
                pl.BlockSpec((tokens, columns, LANES), lambda column, *_: (0, column, 0), pipeline_mode=pl.Buffered(1)),
            ],
            out_specs=pl.BlockSpec((tile, columns, LANES), table_map),
            scratch_shapes=[pltpu.VMEM((tile, columns, LANES), jnp.float32)] * SUMS,
        ),
        out_shape=jax.ShapeDtypeStruct((num_rows, height, LANES), dtype),
        compiler_params=pltpu.CompilerParams(
            vmem_limit_bytes=needed(tokens, columns, num_rows, dy.dtype.itemsize),
            dimension_semantics=("parallel", "arbitrary"),
            disable_bounds_checks=True,
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * chunks * CHUNK * height * LANES,
            transcendentals=0,
            bytes_accessed=dy.size * dy.dtype.itemsize
            + num_rows * height * LANES * jnp.dtype(dtype).itemsize
            + 12 * chunks * CHUNK,
        ),
        name="embedding_bag_table",
    )(*walk, *(a[:, None] for a in local), dy)
