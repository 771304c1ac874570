"""What would make a run fit that does not: the changes in the order in which they cost least, tried by compiling."""

import dataclasses
from collections.abc import Callable, Iterator

from mot_jax.aot.compile import Compiled, compile_step
from mot_jax.aot.topology import Target
from mot_jax.config import Run
from mot_jax.errors import ConfigError
from mot_jax.vocabulary import Vocabulary


def what_fits(
    run: Run, vocabulary: Vocabulary, target: Target, note: Callable[[str], None]
) -> tuple[tuple[str, ...], Compiled] | None:
    """The first change that fits, as bindings, and its program; None if none did. `note` is told of every attempt."""
    for bindings, changed in changes(run, target):
        shown = " ".join(bindings)
        try:
            compiled = compile_step(changed, vocabulary, target)
        except ConfigError as error:
            note(f"{shown}: no, {error}")
            continue
        total = f"{compiled.bytes.total / 2**30:,.1f} GiB"
        note(f"{shown}: {'fits' if compiled.fits else 'no'}, {total}")
        if compiled.fits:
            return bindings, compiled
    return None


def changes(run: Run, target: Target) -> Iterator[tuple[tuple[str, ...], Run]]:
    """Rematerialisation, more microbatches, parameters over more devices, fewer rows; each keeps those before it."""
    bindings = {}

    def with_(part: str, **fields) -> tuple[tuple[str, ...], Run]:
        nonlocal run
        run = dataclasses.replace(run, **{part: dataclasses.replace(getattr(run, part), **fields)})
        for field, value in fields.items():
            bindings[f"{part.capitalize()}.{field}"] = value
        return tuple(f"--gin.{name}={value}" for name, value in bindings.items()), run

    for remat in {"none": ("dots", "full"), "dots": ("full",), "full": ()}[run.model.remat]:
        yield with_("model", remat=remat)
    for factor in (2, 2):
        accumulation = run.train.accumulation * factor
        if run.data.global_batch_size % (accumulation * _rows_over(run, target)) == 0:
            yield with_("train", accumulation=accumulation)
    sizes = run.parallel
    data = _data(run, target)
    if data > 1:
        yield with_("parallel", data=1, fsdp=sizes.fsdp * data)
    if run.parallel.fsdp > 1 and run.parallel.fsdp % 2 == 0:
        yield with_("parallel", fsdp=run.parallel.fsdp // 2, tensor=run.parallel.tensor * 2)
    for _ in range(2):
        if run.data.global_batch_size % (2 * run.train.accumulation * _rows_over(run, target)) == 0:
            yield with_("data", global_batch_size=run.data.global_batch_size // 2)


def _data(run: Run, target: Target) -> int:
    sizes = run.parallel
    fixed = sizes.fsdp * sizes.expert * sizes.tensor
    return target.devices // abs(fixed) if sizes.data == -1 else sizes.data


def _rows_over(run: Run, target: Target) -> int:
    """Devices that the rows of a batch are divided over."""
    return max(1, target.devices // max(1, run.parallel.tensor))
