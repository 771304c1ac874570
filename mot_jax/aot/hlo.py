"""Reading compiled HLO text: its computations, and how often a step runs each."""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16, "c64": 64, "c128": 128}  # others end in their width
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(
    r"^\s+(ROOT )?%?([\w.\-]+) = ((?:\([^()]*(?:\([^()]*\)[^()]*)*\)|[^\s(]+)(?:\{[^}]*\})?) ([\w\-]+)\((.*)$"
)
_CALLED = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array of an instruction's result. `space`: 0 is the device's main memory, others are on the chip."""

    dtype: str
    sizes: tuple[int, ...]
    space: int

    @property
    def bytes(self) -> int:
        return -(-math.prod(self.sizes) * bits(self.dtype) // 8)


def bits(dtype: str) -> int:
    if dtype in BITS:
        return BITS[dtype]
    width = re.match(r"[a-z]+(\d+)", dtype)
    return int(width[1]) if width else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`%name = shapes opcode(operands), rest`; what operands are called, and all that follows their names."""

    name: str
    opcode: str
    result: str
    operands: tuple[str, ...]
    rest: str
    root: bool

    @functools.cached_property
    def shapes(self) -> tuple[Shape, ...]:
        found = []
        for dtype, sizes, layout in _SHAPE.findall(self.result):
            space = re.search(r"S\((\d+)\)", layout)
            found.append(Shape(dtype, tuple(map(int, filter(None, sizes.split(",")))), int(space[1]) if space else 0))
        return tuple(found)

    @functools.cached_property
    def op_name(self) -> str:
        """Where it was traced: the names of the functions and scopes around it."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    def attribute(self, pattern: str) -> str | None:
        found = re.search(pattern, self.rest)
        return found[1] if found else None


@dataclasses.dataclass(frozen=True)
class Module:
    """`executions`: how often one step runs each computation; bodies of fusions count as often as the fusion runs.

    A loop whose length the program does not say counts as one turn and is in `unknown_loops`. Of branches each counts.
    """

    computations: Mapping[str, tuple[Instruction, ...]]
    executions: Mapping[str, int]
    fused: frozenset[str]
    unknown_loops: int

    def executed(self) -> Iterator[tuple[str, Instruction, int]]:
        """(computation, instruction, how often a step runs it)."""
        for name, times in self.executions.items():
            for instruction in self.computations[name]:
                yield name, instruction, times


def parse(text: str) -> Module:
    """A module's text, as `jax.stages.Compiled.as_text()` gives it."""
    computations, entry = _computations(text)
    executions, fused, unknown = collections.Counter(), set(), 0

    def run(name: str, times: int) -> None:
        nonlocal unknown
        executions[name] += times
        for instruction in computations[name]:
            if instruction.opcode == "while":
                body = instruction.attribute(r"body=%?([\w.\-]+)")
                condition = instruction.attribute(r"condition=%?([\w.\-]+)")
                turns = _turns(instruction, computations[condition], computations)
                unknown += turns is None
                run(body, times * (1 if turns is None else turns))
            elif instruction.opcode == "conditional":
                branches = instruction.attribute(_BRANCHES.pattern)
                names = re.findall(r"[\w.\-]+", branches) if branches else _CALLED.findall(instruction.rest)
                for branch in names:
                    run(branch, times)
            elif instruction.opcode in ("fusion", "call", "async-start"):
                for called in _CALLED.findall(instruction.rest):
                    if instruction.opcode == "fusion":
                        fused.add(called)
                    run(called, times)

    run(entry, 1)
    return Module(computations, dict(executions), frozenset(fused), unknown)


def _computations(text: str) -> tuple[dict[str, tuple[Instruction, ...]], str]:
    found, entry, current = {}, None, None
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = found[match[2]] = []
            entry = match[2] if match[1] else entry
        elif current is not None and (match := _INSTRUCTION.match(re.sub(r"/\*.*?\*/", "", line))):
            arguments, rest = _split(match[5])
            operands = tuple(re.findall(r"%([\w.\-]+)", arguments)) or tuple(re.findall(r"[\w.\-]+$", arguments))
            rest = arguments if match[4] == "constant" else rest
            current.append(Instruction(match[2], match[4], match[3], operands, rest, bool(match[1])))
    return {name: tuple(lines) for name, lines in found.items()}, entry


def _split(text: str) -> tuple[str, str]:
    """At the parenthesis that ends the operands."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[:place], text[place + 1 :]
    return text, ""


def _turns(loop: Instruction, condition: tuple[Instruction, ...], computations) -> int | None:
    """How often a loop runs: what the compiler noted, else the one constant that its condition compares with."""
    if noted := loop.attribute(r'known_trip_count":\{"n":"(\d+)"'):
        return int(noted)
    inner = [i for c in condition for name in _CALLED.findall(c.rest) for i in computations[name]]
    constants = [i for i in (*condition, *inner) if i.opcode == "constant" and re.fullmatch(r"-?\d+", i.rest)]
    compares = [i for i in (*condition, *inner) if i.opcode == "compare"]
    below = len(compares) == 1 and "direction=LT" in compares[0].rest
    return int(constants[0].rest) if below and len(constants) == 1 else None
