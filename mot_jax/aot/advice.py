"""What would make a run fit that does not: the changes in the order in which they cost least, tried by compiling."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mot_jax.aot.compile import Compiled, compile_step
from mot_jax.aot.topology import Target
from mot_jax.config import Run
from mot_jax.errors import UserError
from mot_jax.vocabulary import Vocabulary

Change = Mapping[str, Any]  # bindings, as in {"Model.remat": "full"}


def what_fits(
    run: Run, least: int, vocabulary: Vocabulary, target: Target, note: Callable[[str], None]
) -> tuple[str, Compiled] | None:
    """The first changes that fit, as flags, and the program; None if none did. `note` is told of every attempt.

    Each attempt keeps the changes before it that took less than `least`, the bytes that `run` needs, and each other.
    """
    made = {}
    for propose in proposals():
        if (change := propose(run, target)) is None:
            continue
        flags = " ".join(f"--gin.{name}={value}" for name, value in (made | change).items())
        changed = apply(run, change)
        try:
            compiled = compile_step(changed, vocabulary, target)
        except UserError as error:
            note(f"{flags}: no, {error}")
            continue
        note(f"{flags}: {'fits' if compiled.fits else 'no'}, {compiled.bytes.total / 2**30:,.1f} GiB")
        if compiled.fits:
            return flags, compiled
        if compiled.bytes.total < least:
            run, made, least = changed, made | change, compiled.bytes.total
    return None


def apply(run: Run, change: Change) -> Run:
    for name, value in change.items():
        part, field = name.lower().split(".")
        run = dataclasses.replace(run, **{part: dataclasses.replace(getattr(run, part), **{field: value})})
    return run


def proposals() -> Iterator[Callable[[Run, Target], Change | None]]:
    """Rematerialisation, more microbatches, parameters over more devices, fewer rows; each None where it cannot be."""
    yield lambda run, _: {"Model.remat": "dots"} if run.model.remat == "none" else None
    yield lambda run, _: {"Model.remat": "full"} if run.model.remat != "full" else None
    yield _microbatches
    yield _microbatches
    yield _parameters_over_all
    yield _tensor
    yield _fewer_rows
    yield _fewer_rows


def _microbatches(run: Run, target: Target) -> Change | None:
    twice = 2 * run.train.accumulation
    return None if run.data.global_batch_size % (twice * _row_devices(run, target)) else {"Train.accumulation": twice}


def _parameters_over_all(run: Run, target: Target) -> Change | None:
    sizes = run.parallel
    fsdp = _row_devices(run, target) // sizes.expert
    return None if fsdp == sizes.fsdp else {"Parallel.data": 1, "Parallel.fsdp": fsdp}


def _tensor(run: Run, target: Target) -> Change | None:
    sizes = run.parallel
    odd = sizes.fsdp < 2 or sizes.fsdp % 2
    return None if odd else {"Parallel.fsdp": sizes.fsdp // 2, "Parallel.tensor": sizes.tensor * 2}


def _fewer_rows(run: Run, target: Target) -> Change | None:
    rows, parts = run.data.global_batch_size, run.train.accumulation * _row_devices(run, target)
    return None if rows % (2 * parts) else {"Data.global_batch_size": rows // 2}


def _row_devices(run: Run, target: Target) -> int:
    """Devices that the rows of a batch are divided over."""
    return max(1, target.devices // run.parallel.tensor)
