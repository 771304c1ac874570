"""The Hopper path, one Mosaic GPU kernel: a thread keeps one token's k best of a head's scores, by sorting networks.

Scores come from a product of some tokens at a time, so that they fit in the L2 cache and never all exist. Compiled and
interpreted, never run. Mosaic GPU, not Triton: Pallas' Triton back end is deprecated since jax 0.11.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels_pallas.gpu_chip import not_hopper
from kernels_pallas.product_key.networks import merge, merge_all, power_of_two, sort
from kernels_pallas.product_key.pairs import sorted_runs

DTYPES = (jnp.bfloat16, jnp.float32)
THREADS = 128  # tokens of a thread block
MOST_K = 32  # 32 scores and indices and as many being merged are half of a thread's 255 registers
ROOM = 32 << 20  # bytes of scores at a time
LOWEST = float(jnp.finfo(jnp.float32).min)


def unsupported(queries, sub_keys, k: int) -> str | None:
    """Why this kernel cannot take the call, or None."""
    if queries.dtype not in DTYPES:
        return f"queries are {queries.dtype}, expected bfloat16 or float32"
    if k > MOST_K:
        return f"k is {k}, expected at most {MOST_K}"
    if not queries.size:
        return "there are no queries"
    return not_hopper()


def topk(queries, sub_keys, *, k: int, packed: bool):
    """queries [T, H, 2, d], sub_keys [H, 2, R, d] -> scores float32 and rows int32, each [T, H, k]."""
    del packed  # exact all the same
    tokens, heads = queries.shape[:2]
    num_keys = sub_keys.shape[2]
    fit = max(ROOM // (8 * heads * num_keys) // THREADS, 1) * THREADS
    chunk = min(fit, -(-tokens // THREADS) * THREADS)
    queries = jnp.pad(queries, ((0, -tokens % chunk), (0, 0), (0, 0), (0, 0)))

    def some(queries):
        precision = "highest" if queries.dtype == jnp.float32 else None
        dots = jnp.einsum("hprd,thpd->hprt", sub_keys, queries, precision=precision, preferred_element_type=jnp.float32)
        return _select(dots, k)

    best = lax.map(some, queries.reshape(-1, chunk, *queries.shape[1:]))
    return tuple(a.transpose(0, 3, 1, 2).reshape(-1, heads, k)[:tokens] for a in best)


def _select(dots, k: int):
    """dots [H, 2, R, T] -> the k best sums' scores and rows, each [H, k, T]."""
    heads, _, num_keys, tokens = dots.shape
    most = max(power_of_two(k), 2)  # of one alone the index would be a constant, and no carry of a loop

    def kernel(dots, scores, rows):
        head = lax.axis_index("head")
        here = pl.ds(lax.axis_index("block") * THREADS, THREADS)

        def best_of_half(half):
            def group(number):
                def entry(position):
                    index = number * most + position
                    value = dots[head, half, jnp.minimum(index, num_keys - 1), here]
                    indices = jnp.full((THREADS,), index, jnp.int32)
                    if num_keys % most:
                        value = jnp.where(indices < num_keys, value, jnp.full((THREADS,), LOWEST, jnp.float32))
                    return value, indices

                return sort([entry(position) for position in range(most)])

            def step(number, best):
                return merge(best, group(number), most)

            return lax.fori_loop(1, -(-num_keys // most), step, group(jnp.int32(0)))

        first, second = best_of_half(0), best_of_half(1)
        runs = [
            [(first[i][0] + second[j][0], first[i][1] * num_keys + second[j][1]) for i, j in run]
            for run in sorted_runs(k, min(k, num_keys))
        ]
        for i, (score, row) in enumerate(merge_all(runs, most)[:k]):
            scores[head, i, here] = score
            rows[head, i, here] = row

    return plgpu.kernel(
        kernel,
        out_type=[jax.ShapeDtypeStruct((heads, k, tokens), dtype) for dtype in (jnp.float32, jnp.int32)],
        grid=(heads, tokens // THREADS),
        grid_names=("head", "block"),
        kernel_name="product_key_topk",
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
    )(dots)
