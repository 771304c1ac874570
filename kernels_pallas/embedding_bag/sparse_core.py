"""Unverified: the bag on a TPU's SparseCores, which has been compiled for v5p, v6e and TPU7x and never run.

jax has no interpreter for it on a CPU. A vector subcore takes every so-many-th token, gathers some of its rows with one
indirect copy and adds them up while the next are under way; the TensorCore is free meanwhile. Gradients are the
TensorCore's.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import tpu_sc as plsc

from kernels_pallas.embedding_bag import tpu
from kernels_pallas.embedding_bag.tpu_stream import LANES
from kernels_pallas.tpu_chip import chip

WINDOW = 32  # rows of a copy, at most
BUFFERS = 2
ABREAST = 4  # registers of columns that share a row's weight

weights_gradient, values_gradient, rows_gradient = tpu.weights_gradient, tpu.values_gradient, tpu.rows_gradient


def unsupported(table: jax.ShapeDtypeStruct, rows) -> str | None:
    """Why this kernel, or one of its gradients, cannot take a call on a table [N, D] by rows [T, K], or None."""
    if not (found := chip()) or not found.sparse_core:
        return "the device has no SparseCores that can be programmed"
    if table.dtype != jnp.float32:
        return f"values are {table.dtype}, expected float32"
    if reason := tpu.unsupported(table, rows):
        return reason
    if _window(table.shape[1]) < found.sparse_core.num_lanes:
        return f"rows of {table.shape[1]} columns do not fit in a subcore's memory"
    return None


def _window(width: int) -> int:
    """Rows of a copy: half of a subcore's memory is for them."""
    room = plsc.get_sparse_core_info().vmem_capacity_bytes // 2 // (BUFFERS * 4 * width)
    return min(WINDOW, 1 << (room.bit_length() - 1)) if room else 0


def bag(rows, values, weights):
    """rows [T, K], values [N, D] or [N, D / 128, 128], weights [T, K] -> [T, D]."""
    table = values.reshape(values.shape[0], -1)
    core = plsc.get_sparse_core_info()
    tokens, width = rows.shape[0], table.shape[1]
    window = _window(width)
    # Whole rows of 128 slots, as SparseCores copy them; the slots added have a weight of zero.
    padded = [jnp.pad(a, ((0, 0), (0, -a.shape[1] % LANES))) for a in (rows, weights)]
    windows = -(-rows.shape[1] // window)
    workers = core.num_cores * core.num_subcores
    lanes = core.num_lanes

    def kernel(rows, weights, table, out, own_rows, own_weights, picked, total, arrived):
        worker = lax.axis_index("core") * core.num_subcores + lax.axis_index("subcore")

        def copy(number):
            buffer = lax.rem(number, BUFFERS)
            some = own_rows.at[pl.ds(number * window, window)]
            return pltpu.make_async_copy(table.at[some], picked.at[buffer], arrived.at[buffer])

        def add(number, _):
            pl.when(number + 1 < windows)(lambda: copy(number + 1).start())
            copy(number).wait()
            buffer = lax.rem(number, BUFFERS)

            def columns(block, _):
                parts = [pl.ds((block * ABREAST + i) * lanes, lanes) for i in range(ABREAST)]
                sums = [jnp.where(number == 0, 0.0, total[part]) for part in parts]
                for first in range(0, window, lanes):
                    weight = own_weights[pl.ds(number * window + first, lanes)]
                    for lane in range(lanes):
                        row = picked.at[buffer, first + lane]
                        sums = [s + weight[lane] * row[part] for s, part in zip(sums, parts, strict=True)]
                for part, s in zip(parts, sums, strict=True):
                    total[part] = s

            lax.fori_loop(0, width // (ABREAST * lanes), columns, None)

        def one(i, _):
            token = i * workers + worker

            @pl.when(token < tokens)
            def _():
                pltpu.sync_copy(rows.at[token], own_rows)
                pltpu.sync_copy(weights.at[token], own_weights)
                copy(0).start()
                lax.fori_loop(0, windows, add, None)
                pltpu.sync_copy(total, out.at[token])

        lax.fori_loop(0, -(-tokens // workers), one, None)

    slots = padded[0].shape[1]
    return pl.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((tokens, width), table.dtype),
        mesh=plsc.VectorSubcoreMesh(core_axis_name="core", subcore_axis_name="subcore"),
        scratch_types=[
            pltpu.VMEM((slots,), jnp.int32),
            pltpu.VMEM((slots,), jnp.float32),
            pltpu.VMEM((BUFFERS, window, width), table.dtype),
            pltpu.VMEM((width,), jnp.float32),
            pltpu.SemaphoreType.DMA((BUFFERS,)),
        ],
        name="embedding_bag_sparse_core",
    )(*padded, table)
