"""The TPU kernels that read the table by row: the weighted sums, and the products with dy that are d(weights)."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas.embedding_bag.tpu_stream import (
    LANES,
    Plan,
    block_spec,
    blocks,
    needed,
    plan,
    scratch,
    stream,
    with_ahead,
)

SMEM, HBM = pltpu.SMEM, pltpu.HBM


def _sum_kernel(rows, weights, table, out, ring, arrived, *, plan: Plan):
    def use(first, token, picked, total):
        total = jnp.where(first % plan.slots == 0, 0.0, total)
        for i in range(plan.group):
            total += picked[i].astype(jnp.float32) * weights[0, 0, first + i]
        out[token] = total.astype(out.dtype)  # the token's last group has the last word
        return total

    stream(plan, rows, table, ring, arrived, use, jnp.zeros(out.shape[1:], jnp.float32))


def _dot_kernel(rows, dy, table, out, ring, arrived, *, plan: Plan):
    lane = lax.broadcasted_iota(jnp.int32, (plan.group, LANES), 1)

    def use(first, token, picked, _):
        products = picked.astype(jnp.float32) * dy[token].astype(jnp.float32)
        # Here, where the copies' instructions leave the vector units idle; a group's results are one lane's.
        dots = jnp.sum(jnp.sum(products, axis=1), axis=1, keepdims=True)
        group = first // plan.group
        block = group // LANES
        out[0, block] = jnp.where(lane == group % LANES, dots, out[0, block])

    stream(plan, rows, table, ring, arrived, use, None)


@jax.jit  # it cannot run on its own
def _in_hbm(table):
    """The table where it is: XLA would move a small one to VMEM, from where a copy is a loop."""
    return pltpu.with_memory_space_constraint(table, HBM)


def _call(name: str, kernel, plan: Plan, out_spec, out_shape, specs, arrays):
    *others, table = arrays
    read = plan.cores * plan.steps * plan.entries * math.prod(table.shape[1:])
    return pl.pallas_call(
        functools.partial(kernel, plan=plan),
        grid=(plan.cores, plan.steps),
        in_specs=[*specs, pl.BlockSpec(memory_space=HBM)],
        out_specs=out_spec,
        out_shape=out_shape,
        scratch_shapes=scratch(plan, table),
        compiler_params=pltpu.CompilerParams(
            vmem_limit_bytes=needed(plan, jax.ShapeDtypeStruct((table.shape[0], table[0].size), table.dtype)),
            dimension_semantics=("parallel", "arbitrary"),  # a core's steps follow each other: the ring runs on
            disable_bounds_checks=True,  # rows are in range, and the checks would treble a row's cost
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * read,
            transcendentals=0,
            bytes_accessed=read * table.dtype.itemsize + 4 * plan.cores * plan.steps * plan.entries,
        ),
        name=f"embedding_bag_{name}",
    )(*others, _in_hbm(table))


def sums(rows, weights, table):
    """rows [T, K] in range, weights [T, K], table [N, S, 128] -> [T, S, 128]."""
    cut = plan(*rows.shape)
    own_rows, own_weights = blocks(rows, cut), blocks(weights, cut)
    tile = table.shape[1:]
    y = _call(
        "sums",
        _sum_kernel,
        cut,
        block_spec(cut, (cut.tokens, *tile)),
        jax.ShapeDtypeStruct((cut.cores * cut.steps * cut.tokens, *tile), table.dtype),
        [
            block_spec(cut, (1, 1, cut.entries + cut.ahead), memory_space=SMEM),
            block_spec(cut, (1, 1, cut.entries), memory_space=SMEM),
        ],
        (with_ahead(own_rows, cut), own_weights, table),
    )
    return y[: rows.shape[0]]


def dots(rows, dy, table):
    """rows [T, K] in range, dy [T, S, 128], table [N, S, 128] -> float32 [T, K]: each row times its token's dy."""
    cut = plan(*rows.shape)
    tokens, slots = rows.shape
    steps = cut.cores * cut.steps
    own_dy = jnp.pad(dy, ((0, steps * cut.tokens - tokens), (0, 0), (0, 0)))
    full = -(-cut.entries // (cut.group * LANES))
    d_weights = _call(
        "dots",
        _dot_kernel,
        cut,
        block_spec(cut, (1, full, cut.group, LANES)),
        jax.ShapeDtypeStruct((steps, full, cut.group, LANES), jnp.float32),
        [
            block_spec(cut, (1, 1, cut.entries + cut.ahead), memory_space=SMEM),
            block_spec(cut, (cut.tokens, *table.shape[1:])),
        ],
        (with_ahead(blocks(rows, cut), cut), own_dy, table),
    )
    entries = jnp.swapaxes(d_weights, 2, 3).reshape(steps, -1)[:, : cut.entries]
    return entries.reshape(steps * cut.tokens, cut.slots)[:tokens, :slots]
