"""TPU kernels whose result is rows: a grid step takes one tile of rows and a block of its owner's columns.

All of the contracted axis sits in VMEM, so there is no loop over it, and a tile has one owner, so there is no mask.
Tiles run innermost: a group's block of weights is fetched once for all its tiles. Dead tiles fetch nothing, and are
written as zeros.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas.grouped_matmul.activation import activate
from kernels_pallas.grouped_matmul.layout import Layout
from kernels_pallas.grouped_matmul.tpu_tiles import clear, columns, multiply, tuned
from kernels_pallas.tpu_chip import vmem_limit


def product(xs: tuple, weights: tuple, layout: Layout, *, transpose: bool, block: tuple[int, ...] | None = None):
    """The sum of each x [P, K] times its stack [G, K, N] (or [G, N, K]) -> [P, N].

    `block` is how many columns at a time; () leaves it to the rules, None to the table and then the rules.
    """
    name = f"{'product' if len(xs) == 1 else 'sum'}{'_transposed' if transpose else ''}"
    return _call(name, _sum, 1, xs, weights, layout, transpose, block)[0]


def swiglu(x, w_gate, w_up, layout: Layout, *, keep: bool, block: tuple[int, ...] | None = None):
    """x [P, K], weights [G, K, N] -> silu(gate) * up, and gate and up if they are kept, each [P, N]."""
    name, outs = ("swiglu_kept", 3) if keep else ("swiglu", 1)
    return _call(name, _swiglu, outs, (x,), (w_gate, w_up), layout, False, block)


def _sum(outs, products):
    outs[0][...] = sum(products[1:], products[0]).astype(outs[0].dtype)


def _swiglu(outs, products):
    gate, up = products
    for out, value in zip(outs, (activate(gate, up), gate, up)[: len(outs)], strict=True):
        out[...] = value.astype(out.dtype)


def _kernel(groups, live, *refs, num_x: int, num_weights: int, contract: int, finish: Callable):
    del groups  # only the index maps read it
    xs, weights, outs = refs[:num_x], refs[num_x : num_x + num_weights], refs[num_x + num_weights :]
    tile = pl.program_id(1)

    @pl.when(tile < live[0])
    def _():
        xs_of_weights = xs * num_weights if num_x == 1 else xs
        products = [multiply(x[...], w[0], (1, contract)) for x, w in zip(xs_of_weights, weights, strict=True)]
        finish(outs, products)

    @pl.when(tile >= live[0])
    def _():
        for out in outs:
            clear(out)


def _call(
    name: str,
    finish: Callable,
    num_outs: int,
    xs: tuple,
    weights: tuple,
    layout: Layout,
    transpose: bool,
    block: tuple[int, ...] | None,
):
    contracted, width = xs[0].shape[1], weights[0].shape[1 if transpose else 2]
    tile, tiles = layout.tile, layout.tile_groups.shape[0]
    item = xs[0].dtype.itemsize
    if block is None:
        block = tuned(name, xs[0].dtype, tile, contracted, width)
    if not block:
        # Bytes in VMEM a column: blocks are double-buffered, products are float32 until they are written.
        per_column = 2 * item * (len(weights) * contracted + num_outs * tile) + 4 * len(weights) * tile
        block = (columns(width, per_column, fixed=2 * len(xs) * tile * contracted * item),)
    (block,) = block
    blocks, size = pl.cdiv(width, block), tiles * tile * width

    def last_live(i, live):
        return jnp.minimum(i, jnp.maximum(live[0] - 1, 0))

    def rows_map(n, i, groups, live):
        return last_live(i, live), 0

    def weights_map(n, i, groups, live):
        group = groups[last_live(i, live)]
        return (group, n, 0) if transpose else (group, 0, n)

    weights_block = (1, block, contracted) if transpose else (1, contracted, block)
    kernel = functools.partial(
        _kernel, num_x=len(xs), num_weights=len(weights), contract=1 if transpose else 0, finish=finish
    )
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(blocks, tiles),
            in_specs=[
                *(pl.BlockSpec((tile, contracted), rows_map) for _ in xs),
                *(pl.BlockSpec(weights_block, weights_map) for _ in weights),
            ],
            out_specs=[pl.BlockSpec((tile, block), lambda n, i, groups, live: (i, n)) for _ in range(num_outs)],
        ),
        out_shape=[jax.ShapeDtypeStruct((tiles * tile, width), xs[0].dtype) for _ in range(num_outs)],
        compiler_params=pltpu.CompilerParams(
            vmem_limit_bytes=vmem_limit(),
            dimension_semantics=("parallel", "parallel"),  # for the two cores of a v4 or v5p, also where blocks is 1
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * len(weights) * contracted * size,  # as if every tile were live
            transcendentals=size if finish is _swiglu else 0,
            bytes_accessed=item * (sum(x.size for x in xs) * blocks + sum(w.size for w in weights) + num_outs * size),
        ),
        name=f"grouped_{name}",
    )(layout.tile_groups, layout.live_tiles[None], *xs, *weights)
