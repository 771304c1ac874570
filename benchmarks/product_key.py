"""The k best of R^2 keys against einsum and `lax.top_k` over all pairs: `python benchmarks/product_key.py`.

Both take turns in one run, forward alone and with the gradients of queries and keys. `--target v5e v6e` compiles for
TPUs that are not there instead, and tells what their compilers' schedules say of the kernel, exact and packed
(T = 8,192, R = 1,024, d = 128, bfloat16, if not said otherwise).
"""

import argparse
import functools
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import report

from kernels_pallas.ahead_of_time import TPU_TOPOLOGIES, compile_for, missing
from kernels_pallas.product_key import product_key_topk
from kernels_pallas.schedule import dump_schedules, empty, read_schedules
from mot_jax.training.host_memory import keep_freed_pages

SIZES = {False: (2048, 128, 64), True: (8192, 1024, 128)}  # compiled only? -> T, R, d


def naive(queries, sub_keys, k: int):
    """All k x k pairs of the halves' best, as one would write it."""
    num_keys = sub_keys.shape[2]
    values, indices = jax.lax.top_k(jnp.einsum("thpd,hprd->thpr", queries, sub_keys), k)
    shape = (*queries.shape[:2], k * k)
    sums = (values[:, :, 0, :, None] + values[:, :, 1, None, :]).reshape(shape)
    rows = (indices[:, :, 0, :, None] * num_keys + indices[:, :, 1, None, :]).reshape(shape)
    best, at = jax.lax.top_k(sums, k)
    return best, jnp.take_along_axis(rows, at, axis=-1)


def timed(tokens: int, heads: int, num_keys: int, depth: int, k: int, repeats: int) -> list[dict]:
    rng = np.random.default_rng(0)
    queries = jnp.asarray(rng.normal(size=(tokens, heads, 2, depth)), jnp.float32)
    sub_keys = jnp.asarray(rng.normal(size=(heads, 2, num_keys, depth)), jnp.float32)
    cotangent = jnp.asarray(rng.normal(size=(tokens, heads, k)), jnp.float32)
    arms = {"einsum + lax.top_k": naive, "product_key_topk": product_key_topk}

    def trained(function):
        def run(queries, sub_keys, cotangent):
            scores, pull, rows = jax.vjp(lambda *a: function(*a, k), queries, sub_keys, has_aux=True)
            return scores, rows, pull(cotangent)

        return functools.partial(jax.jit(run), queries, sub_keys, cotangent)

    what = {
        "forward": {
            name: functools.partial(jax.jit(functools.partial(f, k=k)), queries, sub_keys) for name, f in arms.items()
        },
        "with gradients": {name: trained(f) for name, f in arms.items()},
    }
    rows = []
    for label, functions in what.items():
        seconds = report.alternate(functions, repeats)
        baseline = next(iter(arms))
        rows += [report.row(f"{label}: {name}", s, baseline, seconds[baseline]) for name, s in seconds.items()]
    return rows


def scheduled(targets: list[str], tokens: int, heads: int, num_keys: int, depth: int, k: int) -> list[dict]:
    rows = []
    queries = jax.ShapeDtypeStruct((tokens, heads, 2, depth), jnp.bfloat16)
    sub_keys = jax.ShapeDtypeStruct((heads, 2, num_keys, depth), jnp.bfloat16)
    with tempfile.TemporaryDirectory() as dump:
        dump_schedules(pathlib.Path(dump))
        for target in targets:
            for name, packed in (("exact", False), ("packed", True)):
                function = functools.partial(product_key_topk, k=k, packed=packed)
                compiled, traced = compile_for(target, function, queries, sub_keys)
                (schedule,) = read_schedules(pathlib.Path(dump), traced)
                temporary = compiled.memory_analysis().temp_size_in_bytes / 2**20
                for metric, value, unit in (
                    ("grid step", schedule.cycles, "cycles"),
                    ("time", 1e3 * schedule.seconds(target)[0], "ms"),
                    ("temporary memory", temporary, "MiB"),
                ):
                    row = {"name": f"{target} {name}", "metric": metric, "value": value, "unit": unit}
                    rows.append({**row, "against": None, "ratio": None})
                empty(pathlib.Path(dump))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", nargs="+", choices=TPU_TOPOLOGIES, help="compile for these TPUs instead of timing")
    parser.add_argument("--tokens", type=int, help="T")
    parser.add_argument("--heads", type=int, default=4, help="H (default: 4)")
    parser.add_argument("--keys", type=int, help="R, sub-keys a half")
    parser.add_argument("--depth", type=int, help="d, numbers a half")
    parser.add_argument("--k", type=int, default=32, help="keys a token and head (default: 32)")
    parser.add_argument("--repeats", type=int, default=15, help="rounds of the timing (default: 15)")
    parser.add_argument("--json", help="also write the rows here")
    args = parser.parse_args()
    tokens, keys, depth = SIZES[bool(args.target)]
    sizes = args.tokens or tokens, args.heads, args.keys or keys, args.depth or depth, args.k
    if args.target:
        if reasons := [reason for target in args.target if (reason := missing(target))]:
            parser.error(reasons[0])
        jax.config.update("jax_platforms", "cpu")  # the TPUs are only compiled for
        rows = scheduled(args.target, *sizes)
    else:
        keep_freed_pages()
        rows = timed(*sizes, args.repeats)
    title = "product keys, T={} H={} R={} d={} k={}".format(*sizes)
    report.show(title, rows, args.json)


if __name__ == "__main__":
    main()
