"""Grouped products against one dense product of the same useful FLOPs: `python benchmarks/grouped_matmul.py`.

The arms of a setting take turns in one run. `forward` is one product; `with gradients` adds those of rows and weights;
`feed-forward` is a SwiGLU layer, forward and backward. Rows are grouped beforehand, as a model groups them once for all
its layers; the arm `moving rows` prices one move in and one out.
"""

import argparse
import functools
import importlib.util
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import report

from kernels_pallas.grouped_matmul import (
    align_rows,
    gpu,
    group_rows,
    grouped_feed_forward,
    grouped_matmul,
    ungroup_rows,
)
from mot_jax.training.host_memory import keep_freed_pages

# shares of the groups: (T, K, N, shares)
SETTINGS = {
    "G=2, 50/50": (8192, 512, 1376, (0.5, 0.5)),
    "G=2, 90/10": (8192, 512, 1376, (0.9, 0.1)),
    "G=2, 100/0": (8192, 512, 1376, (1.0, 0.0)),
    "G=3, as the default config": (1024, 128, 344, (0.46, 0.32, 0.22)),
    "G=8, even": (2048, 256, 1024, (0.125,) * 8),
    "G=8, two empty": (2048, 256, 1024, (0.3, 0.25, 0.15, 0.1, 0.1, 0.1, 0.0, 0.0)),
}


def others() -> tuple[dict[str, Callable], list[str]]:
    """Peers that run on this machine, as (x, weights, sizes) -> y, and a line on each that does not."""
    found, absent = {"lax.ragged_dot": jax.lax.ragged_dot}, []
    if jax.default_backend() == "tpu":
        from jax.experimental.pallas.ops.tpu.megablox import gmm

        tiling = (256, 512, 512)
        found[f"megablox, tiles {tiling}"] = functools.partial(gmm, preferred_element_type=jnp.bfloat16, tiling=tiling)
    else:
        absent.append("megablox: needs a TPU")
    if importlib.util.find_spec("tokamax"):
        import tokamax

        found["tokamax"] = lambda x, w, sizes: tokamax.ragged_dot(x, w, group_sizes=sizes)
    else:
        absent.append("tokamax: not installed")
    return found, absent


def arms(rows: int, depth: int, width: int, shares: tuple[float, ...], dtype) -> dict[str, dict]:
    """What is compared -> arm -> a call."""
    rng = np.random.default_rng(0)
    groups = len(shares)
    counts = np.diff(np.rint(np.cumsum((0, *shares)) * rows)).astype(int)
    ids = rng.permutation(np.repeat(np.arange(groups), counts)).astype(np.int32)
    x = jnp.asarray(rng.normal(size=(rows, depth)), dtype)
    up, gate = (jnp.asarray(rng.normal(size=(groups, depth, width)) / depth**0.5, dtype) for _ in range(2))
    down = jnp.asarray(rng.normal(size=(groups, width, depth)) / width**0.5, dtype)
    layout = jax.jit(functools.partial(align_rows, num_groups=groups))(ids)
    slots = jax.jit(group_rows)(x, layout)
    sizes = jnp.asarray(np.bincount(ids, minlength=groups), jnp.int32)
    in_order = x[np.argsort(ids, kind="stable")]

    dy, dx = (jnp.asarray(rng.normal(size=(rows, size)), dtype) for size in (width, depth))

    def swiglu(x, gate, up, down):
        return (jax.nn.silu((x @ gate).astype(jnp.float32)) * (x @ up)).astype(x.dtype) @ down

    grouped = {"grouped": None}  # arm -> implementation
    if jax.default_backend() == "gpu" and not gpu.unsupported(layout, slots, up, down):
        grouped["grouped, gpu kernels"] = "gpu"  # they have to be asked for

    # (function, arrays that are differentiated, what is not, cotangent); nothing is a constant of the program
    products = {
        "dense": (lambda x, w: x @ w, (x, up[0]), (), dy),
        **{
            arm: (
                functools.partial(grouped_matmul, implementation=name),
                (slots, up),
                (layout,),
                group_rows(dy, layout),
            )
            for arm, name in grouped.items()
        },
        **{name: (function, (in_order, up), (sizes,), dy) for name, function in others()[0].items()},
    }
    layers = {
        "dense": (swiglu, (x, gate[0], up[0], down[0]), (), dx),
        **{
            arm: (
                functools.partial(grouped_feed_forward, implementation=name),
                (slots, gate, up, down),
                (layout,),
                group_rows(dx, layout),
            )
            for arm, name in grouped.items()
        },
    }

    def forward(function, arrays, others, _):
        return functools.partial(jax.jit(function), *arrays, *others)

    def trained(function, arrays, others, cotangent):
        def run(arrays, others, cotangent):
            y, pull = jax.vjp(lambda *a: function(*a, *others), *arrays)
            return y, pull(cotangent)

        return functools.partial(jax.jit(run), arrays, others, cotangent)

    moved = jax.jit(lambda x, y, layout: (group_rows(x, layout), ungroup_rows(y, layout)))
    return {
        "forward": {arm: forward(*of) for arm, of in products.items()},
        "with gradients": {arm: trained(*of) for arm, of in products.items()},
        "feed-forward": {
            **{arm: trained(*of) for arm, of in layers.items()},
            "moving rows": functools.partial(moved, x, slots, layout),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="also write the rows here")
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    keep_freed_pages()  # as train.py does
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    rows = []
    for name, setting in SETTINGS.items():
        for what, calls in arms(*setting, dtype).items():
            seconds = report.alternate(calls, args.repeats)
            rows += [report.row(f"{name} | {what} | {arm}", seconds[arm], "dense", seconds["dense"]) for arm in calls]
    shapes = ", ".join(sorted({f"T={t} K={k} N={n}" for t, k, n, _ in SETTINGS.values()}))
    report.show(f"grouped products, {shapes}", rows, args.json)
    for line in others()[1]:
        print("not here:", line)


if __name__ == "__main__":
    main()
