"""The Hopper kernels: a warpgroup sums one run of weighted rows, or takes one token's products with its rows.

Mosaic GPU, not Triton: both compile ahead of time and are interpreted on a CPU, but Pallas' Triton back end is
deprecated since jax 0.11. Rows are plain loads straight into registers. Nothing is added by atomics: equal inputs give
equal sums.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

THREADS = 128  # of a warpgroup, among which a row's columns are split
COLUMNS = 1024  # at most, that a warpgroup sums at once: 8 a thread
IN_FLIGHT = 8  # rows of a warpgroup; some of them share a multiprocessor
PARAMETERS = plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup)


def columns_of(width: int) -> int:
    """The most columns, a multiple of 128, that divide the width and fit; 0 where none do."""
    return next((c for c in range(COLUMNS, 0, -THREADS) if width % c == 0), 0)


def sums(offsets, rows, weights, table, dtype):
    """offsets [M + 1], rows and weights [E], table [N, D] -> [M, D]: each run's weighted rows, added up in float32.

    Run i is the entries from offsets[i] up to offsets[i + 1], in order; where there are none its sum is zero.
    """
    columns = columns_of(table.shape[1])

    def kernel(offsets, rows, weights, table, out):
        run, block = lax.axis_index("run"), lax.axis_index("block")
        here = pl.ds(block * columns, columns)

        def add(first, count, total):
            entries = [first + i for i in range(count)]
            own = [rows[entry] for entry in entries]
            picked = [table[row, here] for row in own]  # all are under way before the first is used
            for entry, row in zip(entries, picked, strict=True):
                total += weights[entry] * row.astype(jnp.float32)
            return total

        start, end = offsets[run], offsets[run + 1]
        whole = lax.div(end - start, jnp.int32(IN_FLIGHT))
        total = jnp.zeros((columns,), jnp.float32)
        total = lax.fori_loop(0, whole, lambda i, total: add(start + i * IN_FLIGHT, IN_FLIGHT, total), total)
        total = lax.fori_loop(start + whole * IN_FLIGHT, end, lambda entry, total: add(entry, 1, total), total)
        out[run, here] = total.astype(out.dtype)

    runs = offsets.shape[0] - 1
    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((runs, table.shape[1]), dtype),
        grid=(table.shape[1] // columns, runs),  # only the last axis may have more than 65,535
        grid_names=("block", "run"),
        kernel_name="embedding_bag_sums",
        compiler_params=PARAMETERS,
    )(offsets, rows, weights, table)


def dots(rows, dy, table):
    """rows [T, K], dy [T, D], table [N, D] -> float32 [T, K]: each row times its token's dy."""
    tokens, slots = rows.shape
    width = table.shape[1]
    columns = columns_of(width)
    group = math.gcd(slots, max(1, IN_FLIGHT * columns // width))

    def kernel(rows, dy, table, out):
        token = lax.axis_index("token")
        parts = [pl.ds(first, columns) for first in range(0, width, columns)]
        own = [dy[token, part].astype(jnp.float32) for part in parts]

        def several(i, _):
            slot = i * group
            mine = [rows[token, slot + j] for j in range(group)]
            picked = [[table[row, part] for part in parts] for row in mine]
            for j, pieces in enumerate(picked):
                products = sum(piece.astype(jnp.float32) * part for piece, part in zip(pieces, own, strict=True))
                out[token, slot + j] = jnp.sum(products)

        lax.fori_loop(0, slots // group, several, None)

    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct(rows.shape, jnp.float32),
        grid=(tokens,),
        grid_names=("token",),
        kernel_name="embedding_bag_dots",
        compiler_params=PARAMETERS,
    )(rows, dy, table)
