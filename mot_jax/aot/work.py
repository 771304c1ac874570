"""What one device computes and moves in a compiled step: operations by part of the model, bytes of its memory."""

import collections
import math
import re

import numpy as np

from mot_jax.aot.hlo import Instruction, Module, Shape

# Scopes of the model's code (jax.named_scope).
PARTS = ("projections", "scores", "feed_forward", "memory", "auxiliary", "head")
_SCOPE = re.compile(rf"\b({'|'.join(PARTS)})\b")
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"),
    *("partition-id", "replica-id", "iota", "async-start", "async-update", "async-done", "opt-barrier"),
}
_SLICES = {"dynamic-slice", "slice", "gather", "slice-start"}


def flops(module: Module) -> dict[str, float]:
    """Of matrix products, by part; "other" has no part's name. "recomputed" is in the parts too."""
    found = collections.Counter(dict.fromkeys((*PARTS, "other", "recomputed"), 0.0))
    for computation, instruction, times in module.executed():
        if count := _product(module.computations[computation], instruction):
            names = _SCOPE.findall(instruction.op_name)
            found[names[-1] if names else "other"] += times * count
            if "rematted_computation" in instruction.op_name:
                found["recomputed"] += times * count
    return dict(found)


def _product(around: tuple[Instruction, ...], instruction: Instruction) -> float:
    """Operations of one run; of a kernel what it says of itself."""
    if instruction.opcode == "custom-call":
        if said := instruction.attribute(r'"cost_estimate":\{"flops":"(\d+)"'):
            return float(said)
        if "gemm" not in (instruction.attribute(r'custom_call_target="([^"]*)"') or ""):
            return 0.0
        contracted = instruction.attribute(r'"lhs_contracting_dimensions":\["?([\d",]*)\]')
    elif instruction.opcode == "dot":
        contracted = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}")
    elif instruction.opcode == "convolution":
        left, right = (_shape(around, name) for name in instruction.operands[:2])
        return _convolution(instruction, left, right)
    else:
        return 0.0
    left = _shape(around, instruction.operands[0])
    depth = math.prod(left.sizes[int(axis)] for axis in re.findall(r"\d+", contracted or ""))
    return 2.0 * math.prod(instruction.shapes[0].sizes) * depth


def _convolution(instruction: Instruction, left: Shape, right: Shape) -> float:
    """TPU products are convolutions: a batch axis is a window whose stride meets one element of each."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    window = instruction.attribute(r"window=\{([^}]*)\}") or ""
    settings = {key: value.split("x") for key, value in (part.split("=") for part in window.split())}
    out, total = instruction.shapes[0], 2.0
    for place, letter in enumerate(labels[3]):
        if letter in "bf":
            total *= out.sizes[place]
            continue
        axis = int(letter)
        inputs, outputs = left.sizes[labels[1].index(letter)], out.sizes[place]
        size = int(settings["size"][axis]) if "size" in settings else 1
        stride, dilate, rhs_dilate = (
            int(settings[key][axis]) if key in settings else 1 for key in ("stride", "lhs_dilate", "rhs_dilate")
        )
        low = int(settings["pad"][axis].split("_")[0]) if "pad" in settings else 0
        reach = np.arange(outputs)[:, None] * stride - low + np.arange(size) * rhs_dilate
        total *= int(np.sum((reach >= 0) & (reach % dilate == 0) & (reach // dilate < inputs)))
    return total * right.sizes[labels[2].index("i")]


def _shape(around: tuple[Instruction, ...], name: str) -> Shape:
    return next(each for each in around if each.name == name).shapes[0]


def memory_traffic(module: Module) -> float:
    """Bytes that a step reads from and writes to a device's memory, as far as the program's text tells.

    Of a slice only what is taken counts, of an update in place only what is written; what stays on the chip does not.
    """
    total = 0.0
    for name, times in module.executions.items():
        if name in module.fused:
            continue
        around = {each.name: each for each in module.computations[name]}
        total += times * sum(_moved(module, around, each) for each in around.values())
    return total


def _moved(module: Module, around: dict[str, Instruction], instruction: Instruction) -> float:
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done"):
        return 0.0
    if opcode == "custom-call":
        said = instruction.attribute(r'"bytes_accessed":"(\d+)"')
        return float(said) if said else 0.0
    written = sum(_bytes(shape) for shape in instruction.shapes)
    if opcode.endswith("-start"):  # its result names operand and result
        moved = min((shape.bytes for shape in instruction.shapes if shape.sizes), default=0)
        return float(moved * len({shape.space for shape in instruction.shapes[:2] if shape.space == 0}))
    read = [sum(_bytes(s) for s in around[name].shapes) if name in around else 0 for name in instruction.operands]
    if opcode in _SLICES:
        return float(min(2 * written, written + read[0]))
    if opcode == "dynamic-update-slice":
        return 2.0 * read[1]
    if opcode == "fusion":
        called = instruction.attribute(r"calls=%?([\w.\-]+)")
        return _fusion(module.computations[called], read, written)
    return float(written + sum(read))


def _fusion(body: tuple[Instruction, ...], read: list[int], written: int) -> float:
    users, same = collections.defaultdict(list), {}
    for each in body:  # operands stand before their users
        if each.opcode in ("bitcast", "reshape"):
            same[each.name] = same.get(each.operands[0], each.operands[0])
            continue
        for name in each.operands:
            users[same.get(name, name)].append(each)
    for each in body:
        if each.opcode != "parameter" or not (index := re.match(r"\d+", _index(each))):
            continue
        place, using = int(index[0]), users[each.name]
        if place >= len(read):
            continue
        taken = [
            user
            for user in using
            if user.opcode in _SLICES and same.get(user.operands[0], user.operands[0]) == each.name
        ]
        updated = [
            u
            for u in using
            if u.opcode == "dynamic-update-slice" and same.get(u.operands[0], u.operands[0]) == each.name
        ]
        if using and len(taken) + len(updated) == len(using):
            if updated and read[place]:  # in place, in main memory
                written = max(written - read[place], 0) + sum(_shape(body, u.operands[1]).bytes for u in updated)
            read[place] = min(read[place], sum(user.shapes[0].bytes for user in taken))
    return float(written + sum(read))


def _index(parameter: Instruction) -> str:
    return parameter.operands[0] if parameter.operands else ""


def _bytes(shape: Shape) -> int:
    return shape.bytes if shape.space == 0 else 0
