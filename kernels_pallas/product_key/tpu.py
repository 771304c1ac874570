"""The TPU path, one Mosaic kernel: a grid step scores 1,024 tokens against one head's keys and keeps the k best.

Tokens fill a register tile (8 sublanes x 128 lanes) and keys run along lists of such tiles, so a sorting network is
elementwise and nothing crosses lanes. The scores of a chunk of keys live in VMEM, and only there.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas.product_key.networks import merge, merge_all, power_of_two, sort
from kernels_pallas.product_key.pairs import sorted_runs
from kernels_pallas.tpu_chip import chip, vmem_limit

DTYPES = (jnp.bfloat16, jnp.float32)
SUBLANES, LANES = 8, 128
TOKENS = SUBLANES * LANES  # of a grid step
CHUNK = 256  # keys scored at a time
MOST_K = 32  # 32 scores and as many indices are all 64 vector registers
LOWEST = float(jnp.finfo(jnp.float32).min)  # with index bits in its mantissa still finite, as -inf is not


def unsupported(queries, sub_keys, k: int) -> str | None:
    """Why this kernel cannot take the call, or None."""
    if queries.dtype not in DTYPES:
        return f"queries are {queries.dtype}, expected bfloat16 or float32"
    if k > MOST_K:
        return f"k is {k}, expected at most {MOST_K}"
    if (tpu := chip()) and tpu.generation < 4:
        return f"TPU generation {tpu.generation}, expected 4 or later"
    wide, item = _up(queries.shape[3], LANES // 2), queries.dtype.itemsize
    scores = 2 * CHUNK * TOKENS * 4
    need = 4 * item * wide * (TOKENS + _up(sub_keys.shape[2], CHUNK)) + scores  # blocks are double-buffered
    if need > (room := vmem_limit() * 7 // 8):
        return f"one head's keys and 1,024 tokens take {need} bytes of VMEM, expected at most {room}"
    return None


def topk(queries, sub_keys, *, k: int, packed: bool):
    """queries [T, H, 2, d], sub_keys [H, 2, R, d] -> scores float32 and rows int32, each [T, H, k]."""
    tokens, heads, _, depth = queries.shape
    num_keys = sub_keys.shape[2]
    chunk = min(CHUNK, _up(num_keys, max(power_of_two(k), SUBLANES)))
    wide = _up(depth, LANES // 2)  # so that two halves are whole lanes; zeros add nothing to a score
    queries = jnp.pad(queries, ((0, max(0, TOKENS - tokens)), (0, 0), (0, 0), (0, wide - depth)))
    sub_keys = jnp.pad(sub_keys, ((0, 0), (0, 0), (0, -num_keys % chunk), (0, wide - depth)))
    steps = pl.cdiv(queries.shape[0], TOKENS)
    out_block = pl.BlockSpec((1, k, SUBLANES, LANES), lambda h, t: (h, 0, t, 0))
    out_shape = (heads, k, steps * SUBLANES, LANES)
    outs = pl.pallas_call(
        functools.partial(_kernel, k=k, num_keys=num_keys, chunk=chunk, packed=packed),
        grid=(heads, steps),
        in_specs=[
            pl.BlockSpec((TOKENS, 2 * wide), lambda h, t: (t, h)),
            pl.BlockSpec((1, *sub_keys.shape[1:]), lambda h, t: (h, 0, 0, 0)),
        ],
        out_specs=[out_block, out_block],
        out_shape=[jax.ShapeDtypeStruct(out_shape, dtype) for dtype in (jnp.float32, jnp.int32)],
        scratch_shapes=[pltpu.VMEM((chunk * SUBLANES, LANES), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            vmem_limit_bytes=vmem_limit(), dimension_semantics=("parallel", "parallel")
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * queries.size * sub_keys.shape[2],
            transcendentals=0,
            bytes_accessed=queries.nbytes + sub_keys.nbytes + 8 * steps * TOKENS * heads * k,
        ),
        name="product_key_topk",
    )(queries.reshape(-1, heads * 2 * wide), sub_keys)
    return tuple(out.reshape(heads, k, -1).transpose(2, 0, 1)[:tokens] for out in outs)


def _kernel(queries, keys, scores, rows, scratch, *, k: int, num_keys: int, chunk: int, packed: bool):
    """queries [1,024, 2d], keys [1, 2, R, d] -> scores and rows [1, k, 8, 128]."""
    first, second = (
        _best_of_half(queries, keys, scratch, half, k=k, num_keys=num_keys, chunk=chunk, packed=packed)
        for half in range(2)
    )
    runs = [
        [(first[i][0] + second[j][0], first[i][1] * num_keys + second[j][1]) for i, j in run]
        for run in sorted_runs(k, min(k, num_keys))
    ]
    best = merge_all(runs, power_of_two(k))
    for i in range(k):
        scores[0, i], rows[0, i] = best[i]


def _best_of_half(queries, keys, scratch, half: int, *, k: int, num_keys: int, chunk: int, packed: bool) -> list:
    """The k best keys of one half, sorted: (scores, indices), each [8, 128]."""
    depth, most, bits = keys.shape[3], power_of_two(k), (num_keys - 1).bit_length()
    tile = (SUBLANES, LANES)

    def entry(position: int, start):
        value, index = scratch[pl.ds(position * SUBLANES, SUBLANES), :], start + position
        if num_keys % chunk:
            value = jnp.where(index < num_keys, value, LOWEST)
        return (_pack(value, index, bits),) if packed else (value, jnp.full(tile, index, jnp.int32))

    def step(i, best):
        start = i * chunk
        products = lax.dot_general(
            keys[0, half, pl.ds(pl.multiple_of(start, chunk), chunk), :],
            queries[:, half * depth : (half + 1) * depth],
            (((1,), (1,)), ((), ())),
            preferred_element_type=jnp.float32,
            precision=lax.Precision.HIGHEST if keys.dtype == jnp.float32 else None,
        )
        for block in range(SUBLANES):  # [chunk, 1,024] to a register tile a key
            scratch[pl.ds(block, chunk, stride=SUBLANES), :] = products[:, block * LANES : (block + 1) * LANES]
        for group in range(0, chunk, most):
            best = merge(best, sort([entry(group + e, start) for e in range(most)]), most)
        return best

    lowest = jnp.full(tile, LOWEST, jnp.float32)
    none = (lowest,) if packed else (lowest, jnp.zeros(tile, jnp.int32))
    best = lax.fori_loop(0, keys.shape[2] // chunk, step, [none] * most)
    return [_unpack(*e, bits) for e in best] if packed else best


def _pack(score, index, bits: int):
    """The index in the low bits of the score's mantissa, so that one array carries both."""
    kept = lax.bitcast_convert_type(score, jnp.int32) & jnp.int32(-(1 << bits))
    return lax.bitcast_convert_type(kept | index, jnp.float32)


def _unpack(packed, bits: int):
    both = lax.bitcast_convert_type(packed, jnp.int32)
    return lax.bitcast_convert_type(both & jnp.int32(-(1 << bits)), jnp.float32), both & jnp.int32((1 << bits) - 1)


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
