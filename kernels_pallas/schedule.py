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

    `loops`: cycles of one turn of each loop within a grid step, in the code's order. `cycles` count each once.
    """

    kernel: str
    cycles: int
    spills: int
    steps: int
    flops: int
    moved: int
    loops: tuple[int, ...]

    def utilisation(self, target: str) -> float:
        """Share of one core's matrix units' peak that the schedule reaches."""
        return self.flops / (self.cycles * self.steps * PEAKS[target][0])

    def seconds(self, target: str) -> tuple[float, float]:
        """(by the schedule, by the bytes): the larger is the floor of the call's time."""
        _, clock, bandwidth, cores = PEAKS[target]
        return self.cycles * self.steps / (clock * cores), self.moved / bandwidth


def dump_schedules(directory: pathlib.Path) -> None:
    """Has libtpu write its schedules there: some 40 MB a kernel."""
    wanted = f"--xla_jf_dump_to={directory} --xla_jf_dump_llo_text=true"
    os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {wanted}".strip()


def read_schedules(directory: pathlib.Path, traced: jax.stages.Traced) -> list[Schedule]:
    """The dumped schedules of the kernels that a trace calls, by name; empties the directory.

    Raises:
      ValueError: two calls of one name differ, and the dump does not say which is which.
    """
    calls = _pallas_calls(traced.jaxpr.jaxpr)
    found = []
    for path in sorted(directory.glob("*packed-bundles-post-ra.txt")):
        match = re.match(r"(\d+)-(.*)-\d+-packed-bundles-post-ra\.txt", path.name)
        name = re.sub(r"\.\d+$", "", match[2]) if match else None
        if name in calls:
            units = _units(directory, f"{match[1]}-{match[2]}")
            steps, flops, moved = calls[name]
            found.append(Schedule(name, max(_loops(path, 1)), units["SPILL"], steps, flops, moved, _loops(path, 2)))
    empty(directory)
    return found


def empty(directory: pathlib.Path) -> None:
    for path in directory.iterdir():
        path.unlink()


def _pallas_calls(jaxpr) -> dict[str, tuple[int, int, int]]:
    """(grid steps, FLOPs, bytes) of every kernel, by name."""
    calls = {}
    for name, call in _every_call(jaxpr):
        if calls.setdefault(name, call) != call:
            raise ValueError(f"kernel {name} is called with two shapes; ask for one call at a time")
    return calls


def _every_call(jaxpr) -> Iterator[tuple[str, tuple[int, int, int]]]:
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "pallas_call":
            steps = math.prod(eqn.params["grid_mapping"].grid)
            cost = eqn.params["cost_estimate"]
            yield eqn.params["name"], (steps, cost.flops, cost.bytes_accessed)
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _every_call(inner)


_BUNDLE = re.compile(r"^\s*(?:0x[0-9a-f]+|0)\s+(LH|LB|LE|PB|PF|CT)?\s*:\s*((?:>\s?)*)\{(.*)")


def _loops(path: pathlib.Path, level: int) -> tuple[int, ...]:
    """Bundles of each loop at this depth, each issued in a cycle: 1 is that of the loop over grid steps."""
    lengths, current, depth = [0], 0, 0
    for line in path.read_text(errors="replace").splitlines():
        if not (match := _BUNDLE.match(line)):
            continue
        if match[2] or not match[3].lstrip().startswith("}"):
            depth = match[2].count(">")
        if match[1] == "LB" and depth == level:
            lengths.append(current)
            current = 0
        if depth >= level:
            current += 1
        elif current:
            lengths.append(current)
            current = 0
    return tuple(length for length in (*lengths, current) if length) or (0,)


def _units(directory: pathlib.Path, kernel: str) -> collections.Counter:
    """How many instructions of the kernel each unit gets."""
    used = collections.Counter()
    for path in directory.glob(f"{kernel}-*pre-delay_hlo-static-per-bundle-utilization.txt"):
        _, _, table = path.read_text().partition("== UTIL")
        for line in table.splitlines()[1:]:
            used.update({unit: int(count) for unit, count in zip(UNITS, line.split(), strict=False)})
    return used
