"""What a compiled step sends between devices: bytes of every collective, by the mesh axes that it runs along."""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from mot_jax.aot.hlo import Instruction, Module

OPERATIONS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "ragged-all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """All of a step's collectives of one operation along the same mesh axes.

    `sent`: bytes that each device sends in a step, by an algorithm that sends the least.
    """

    operation: str
    axes: tuple[str, ...]
    count: int
    sent: float


def collectives(module: Module, mesh_shape: Mapping[str, int]) -> list[Traffic]:
    """The largest first. `mesh_shape`: sizes by axis, in the mesh's order."""
    counts, sent = collections.Counter(), collections.Counter()
    for computation, instruction, times in module.executed():
        operation = _operation(computation, instruction)
        if operation is None or _a_later_stage(module, computation, instruction):
            continue
        group = _group(instruction, mesh_shape)
        key = operation, axes_of(group, mesh_shape)
        counts[key] += times
        sent[key] += times * sent_bytes(operation, _result_bytes(operation, instruction, len(group)), len(group))
    found = [Traffic(*key, counts[key], sent[key]) for key in counts]
    return sorted(found, key=lambda each: -each.sent)


def sent_bytes(operation: str, result: int, devices: int) -> float:
    """What each of so many devices sends at least, of a collective with this many bytes of result on each."""
    if operation == "collective-permute":
        return float(result)
    if operation == "reduce-scatter":
        return float(result * (devices - 1))
    return result * (devices - 1) / devices * (2 if operation == "all-reduce" else 1)


def axes_of(group: list[int], mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """The axes along which the places of these devices differ; ("?",) if they are no whole part of the mesh."""
    places = np.array(np.unravel_index(group, tuple(mesh_shape.values())))
    varying = [axis for axis, along in zip(mesh_shape, places, strict=True) if len(set(along)) > 1]
    whole = np.prod([mesh_shape[axis] for axis in varying], dtype=int) == len(group)
    return tuple(varying) if whole or len(varying) == 1 else ("?",)


def _operation(computation: str, instruction: Instruction) -> str | None:
    name = instruction.opcode.removesuffix("-start")
    if name == "all-reduce" and computation.startswith("all-reduce-scatter"):
        return "reduce-scatter"  # fused with taking one's own part of the sum
    return name if name in OPERATIONS else None


def _a_later_stage(module: Module, computation: str, instruction: Instruction) -> bool:
    """TPU programs show a collective that overlaps with computation in every stage of it; the first starts it."""
    if "chain_id" not in instruction.rest:
        return False
    return not any('"AsyncCollectiveStart"' in each.rest for each in module.computations[computation])


def _result_bytes(operation: str, instruction: Instruction, devices: int) -> int:
    """Of the result on one device; the -start form shows its operands too, before the results."""
    shapes = instruction.shapes
    if instruction.opcode.endswith("-start") and len(shapes) > 1 and operation != "all-reduce":
        shapes = shapes[1:2] if operation == "collective-permute" else shapes[len(shapes) // 2 :]
    total = sum(shape.bytes for shape in shapes)
    if operation == "reduce-scatter" and instruction.opcode.startswith("all-reduce"):
        total //= devices
    return total


def _group(instruction: Instruction, mesh_shape: Mapping[str, int]) -> list[int]:
    """One of the groups of devices that exchange, by their places in the mesh."""
    devices = int(np.prod(list(mesh_shape.values())))
    if pairs := instruction.attribute(r"source_target_pairs=\{\{([\d,]*)\}"):
        return [int(place) for place in pairs.split(",")]
    if listed := instruction.attribute(r"replica_groups=\{\{([\d,]*)\}"):
        return [int(place) for place in listed.split(",")]
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]*)\](?:T\(([\d,]*)\))?", instruction.rest):
        places = np.arange(devices).reshape([int(size) for size in iota[3].split(",")])
        if iota[4]:
            places = places.transpose([int(axis) for axis in iota[4].split(",")])
        return places.reshape(int(iota[1]), int(iota[2]))[0].tolist()
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}", instruction.rest):
        return _along(re.findall(r"'([^']+)'=(\d+)", named[1]), re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", named[2]))
    return list(range(devices))


def _along(mesh: list[tuple[str, str]], axes: list[tuple[str, str, str]]) -> list[int]:
    """The first group of a mesh along some axes: (name, "", "") is a whole one, (name, before, size) a factor of it."""
    parts = {name: (before, size) for name, before, size in axes}
    shape, varying = [], []
    for name, size in mesh:
        before, own = parts.get(name, ("", ""))
        factors = [int(before or 1), int(own or size)]
        shape += [*factors, int(size) // math.prod(factors)]
        varying += [False, name in parts, False]
    places = np.arange(math.prod(shape)).reshape(shape)
    return places[tuple(slice(None) if varies else 0 for varies in varying)].reshape(-1).tolist()
