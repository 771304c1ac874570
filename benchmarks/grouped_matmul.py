"""Grouped products against one dense product of the same useful FLOPs: `python benchmarks/grouped_matmul.py`.

The arms of a setting take turns in one run. `forward` is one product; `weight gradient` its weights' alone; `both
gradients` the product, its rows' and its weights'; `feed-forward` a SwiGLU layer, forward and backward, the peers' made
of three products; `norm` an RMSNorm, forward and backward, with one gain and with one a group. Rows are grouped
beforehand, as a model groups them once for all its layers; `align_rows` and `moving rows` (one move in, one out) price
that beside a layer. `floor` is the time of the same work at the best rates of this run: the useful FLOPs at that of the
fastest dense arm of the dtype, or the bytes at that of reading a large array, whichever takes longer.
"""

import argparse
from collections.abc import Mapping

import jax
import numpy as np
import report
from bandwidth import memory_reader
from grouped_arms import Product, arms, call, draw, first_line, peers
from grouped_beside import around, norms
from grouped_settings import MEASURED, Setting, settings

from mot_jax.training.host_memory import keep_freed_pages

Seconds = dict[str, dict[str, list[float]]]  # what is measured -> arm -> of each round
BESIDE = ("align_rows", "moving rows")


def measure(setting: Setting, others: Mapping[str, Product], repeats: int) -> tuple[Seconds, list[str]]:
    """Seconds of every arm, and a line on each call that one of the others does not take."""
    problem, refused = draw(setting), []
    every = arms(setting, problem, others)
    beside = {"feed-forward": around(setting, problem), "norm": norms(setting, problem)}
    seconds = {}
    for what in MEASURED:
        calls = {}
        for name, arm in every.items():
            made = call(what, arm, problem)
            try:
                if name in others:
                    jax.block_until_ready(made())
            except Exception as error:  # whatever it is, the run goes on without it
                refused.append(f"{name}, {what}: {first_line(error)}")
            else:
                calls[name] = made
        seconds[what] = report.alternate(calls | beside.get(what, {}), repeats)
    if beside["norm"]:
        seconds["norm"] = report.alternate(beside["norm"], repeats)
    return seconds, refused


def table(every: Mapping[str, Setting], measured: Mapping[str, Seconds], read: float) -> list[dict]:
    """A row for each arm, and in the products' one for the floor; `read` is in bytes a second."""
    best = dict.fromkeys([setting.dtype for setting in every.values()], 0.0)  # FLOPs a second of a dense arm
    for name, seconds in measured.items():
        for what in MEASURED:
            rate = every[name].work(what)[0] / float(np.median(seconds[what]["dense"]))
            best[every[name].dtype] = max(best[every[name].dtype], rate)
    rows = []
    for name, seconds in measured.items():
        for what, taken in seconds.items():
            found = [report.row(f"{name} | {what} | {arm}", taken[arm], "dense", taken["dense"]) for arm in taken]
            if what in MEASURED:
                flops, size = every[name].work(what)
                floor = max(flops / best[every[name].dtype], size / read)
                ratio = floor / float(np.median(taken["dense"]))
                found.append(report.figure(f"{name} | {what} | floor", "time", 1e3 * floor, "ms", "dense", ratio))
                found = [r if r["name"].endswith(BESIDE) else r | {"TFLOP/s": flops / r["value"] / 1e9} for r in found]
            rows += found
    rates = [report.figure(f"dense, {dtype}, at best", "rate", rate / 1e12, "TFLOP/s") for dtype, rate in best.items()]
    return [*rows, *rates, report.figure("memory, read in order", "rate", read / 1e9, "GB/s")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="also write the rows here")
    parser.add_argument("--repeats", type=int, default=15, help="rounds (default: %(default)s)")
    args = parser.parse_args()
    keep_freed_pages()  # as train.py does
    every, (others, absent) = settings(jax.default_backend()), peers()
    measured, read = {}, 0.0
    for number, (name, setting) in enumerate(every.items(), 1):
        print(f"{number}/{len(every)}: {name}", flush=True)
        reader, size = memory_reader()
        read = max(read, size / float(np.median(report.alternate({"read": reader}, args.repeats)["read"])))
        del reader  # the array is large
        measured[name], refused = measure(setting, others, args.repeats)
        absent += [f"{line} ({name})" for line in refused]
    shapes = ", ".join(sorted({f"T={s.rows} K={s.depth} N={s.width}" for s in every.values()}))
    report.show(f"grouped products, {shapes}", table(every, measured, read), args.json)
    for line in absent:
        print("not here:", line)


if __name__ == "__main__":
    main()
