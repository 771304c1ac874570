"""What the TPU compiler itself says a kernel costs: the final schedule, cycle by cycle, of one grid step.

`dump_schedules` has to run before libtpu is loaded. The cycles are issue slots: they leave out waiting for memory, and
count every branch of a kernel, so they bound the time of a step that waits for nothing.
"""

import collections
import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Iterator

import jax

# bfloat16 FLOPs of one core's matrix units a cycle, cycles a second, bytes a second from HBM, cores that share the grid
PEAKS = {
    "v4": (131_072, 1.05e9, 1_228e9, 2),
    "v5e": (131_072, 1.5e9, 819e9, 1),
    "v5p": (131_072, 1.75e9, 2_765e9, 2),
    "v6e": (524_288, 1.75e9, 1_640e9, 1),
    "tpu7x": (524_288, 2.2e9, 7_380e9 / 2, 1),  # each of its two cores is a device of its own
}
UNITS = ("MXU", "XLU", "VALU", "VPOP", "EUP", "VLOAD", "FILL", "VSTORE", "SPILL", "SALU")  # the dump's columns


@dataclasses.dataclass(frozen=True)
class Schedule:
    """One kernel: `cycles` of a grid step, register `spills` in its code; `steps`, `flops`, `moved` bytes a call.

    `parallel`: into how many equal parts cores may divide the steps.
    A loop within the step counts as often as it runs, if its trips are known and no branch holds it, else once.
    `loops`: cycles of one turn of each such loop, in the code's order.
    """

    kernel: str
    cycles: int
    spills: int
    steps: int
    parallel: int
    flops: int
    moved: int
    loops: tuple[int, ...]

    def utilisation(self, target: str) -> float:
        """Share of one core's matrix units' peak that the schedule reaches."""
        return self.flops / (self.cycles * self.steps * PEAKS[target][0])

    def seconds(self, target: str) -> tuple[float, float]:
        """(by the schedule of the core with most steps, by the bytes): the larger is the floor of the call's time."""
        _, clock, bandwidth, cores = PEAKS[target]
        of_one_core = math.ceil(self.parallel / cores) * self.steps // self.parallel
        return self.cycles * of_one_core / clock, self.moved / bandwidth


def dump_schedules(directory: pathlib.Path) -> None:
    """Has libtpu write its schedules there: some 40 MB a kernel."""
    wanted = f"--xla_jf_dump_to={directory} --xla_jf_dump_llo_text=true"
    os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {wanted}".strip()


def read_schedules(directory: pathlib.Path, traced: jax.stages.Traced) -> list[Schedule]:
    """The dumped schedules of the kernels that a trace calls, by name; empties the directory.

    Raises:
      ValueError: two calls of one name differ, and the dump does not say which is which; or the compiler made other
        loops of a kernel's.
    """
    calls = _pallas_calls(traced.jaxpr.jaxpr)
    found = []
    for path in sorted(directory.glob("*packed-bundles-post-ra.txt")):
        match = re.match(r"(\d+)-(.*)-\d+-packed-bundles-post-ra\.txt", path.name)
        name = re.sub(r"\.\d+$", "", match[2]) if match else None
        if name in calls:
            units = _units(directory, f"{match[1]}-{match[2]}")
            steps, parallel, flops, moved, trips = calls[name]
            cycles, loops = _cycles(path, trips), _loops(path)
            found.append(Schedule(name, cycles, units["SPILL"], steps, parallel, flops, moved, loops))
    empty(directory)
    return found


def empty(directory: pathlib.Path) -> None:
    for path in directory.iterdir():
        path.unlink()


# Grid steps, parts of them that cores may divide, FLOPs, bytes, how often each loop of a step runs.
_Call = tuple[int, int, int, int, tuple[int, ...]]


def _pallas_calls(jaxpr) -> dict[str, _Call]:
    """Every kernel's call, by name."""
    calls = {}
    for name, call in _every_call(jaxpr):
        if calls.setdefault(name, call) != call:
            raise ValueError(f"kernel {name} is called with two shapes; ask for one call at a time")
    return calls


def _every_call(jaxpr) -> Iterator[tuple[str, _Call]]:
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "pallas_call":
            grid = eqn.params["grid_mapping"].grid
            kinds = getattr(eqn.params["compiler_params"], "dimension_semantics", None) or ()
            parallel = math.prod(size for size, kind in zip(grid, kinds, strict=False) if kind == "parallel")
            cost, trips = eqn.params["cost_estimate"], tuple(_trips(eqn.params["jaxpr"]))
            yield eqn.params["name"], (math.prod(grid), parallel, cost.flops, cost.bytes_accessed, trips)
        for inner in _inner(eqn):
            yield from _every_call(inner)


def _trips(jaxpr, branch: bool = False) -> Iterator[int]:
    """How often each outermost loop of a kernel runs."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("scan", "while"):
            yield 1 if branch else eqn.params.get("length", 1)
        else:
            for inner in _inner(eqn):
                yield from _trips(inner, branch or eqn.primitive.name == "cond")


def _inner(eqn) -> Iterator:
    for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
            yield inner


_BUNDLE = re.compile(r"^\s*(?:0x[0-9a-f]+|0)\s+(LH|LB|LE|PB|PF|CT)?\s*:\s*((?:>\s?)*)\{(.*)")


def _depths(path: pathlib.Path) -> Iterator[tuple[int, bool]]:
    """Of every bundle, in order: how many loops hold it, and whether it begins one.

    A bundle of the code around a loop may stand within the loop's: only a beginning tells where the next one is.
    """
    depth = 0
    for line in path.read_text(errors="replace").splitlines():
        if not (match := _BUNDLE.match(line)):
            continue
        if match[2] or not match[3].lstrip().startswith("}"):
            depth = match[2].count(">")
        yield depth, match[1] == "LB"


def _cycles(path: pathlib.Path, trips: tuple[int, ...]) -> int:
    """Bundles in the loop over grid steps, the longest at depth one: each issues in one cycle."""
    steps = [(0, [])]  # bundles of each loop at depth one, and of the loops in it
    for depth, begins in _depths(path):
        if begins and depth == 1:
            steps.append((0, []))
        count, loops = steps[-1]
        if begins and depth == 2:
            loops.append(0)
        if depth >= 2:
            loops[-1] += 1
        steps[-1] = count + (depth >= 1), loops
    count, loops = max(steps)
    if all(n == 1 for n in trips):
        return count
    if len(loops) != len(trips):
        raise ValueError(f"{path.name}: the compiler made {len(loops)} loops of the kernel's {len(trips)}")
    return count + sum((n - 1) * length for n, length in zip(trips, loops, strict=True))


def _loops(path: pathlib.Path) -> tuple[int, ...]:
    """Bundles of each loop within a grid step."""
    lengths = []
    for depth, begins in _depths(path):
        if begins and depth == 2:
            lengths.append(0)
        if depth >= 2:
            lengths[-1] += 1
    return tuple(lengths) or (0,)


def _units(directory: pathlib.Path, kernel: str) -> collections.Counter:
    """How many instructions of the kernel each unit gets."""
    used = collections.Counter()
    for path in directory.glob(f"{kernel}-*pre-delay_hlo-static-per-bundle-utilization.txt"):
        _, _, table = path.read_text().partition("== UTIL")
        for line in table.splitlines()[1:]:
            used.update({unit: int(count) for unit, count in zip(UNITS, line.split(), strict=False)})
    return used
