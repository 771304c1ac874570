"""`python train.py --aot TOPOLOGY`."""

import functools
import pathlib
from collections.abc import Callable

from rich.console import Console

from mot_jax.aot.advice import what_fits
from mot_jax.aot.compile import compile_step, resolved
from mot_jax.aot.report import make_report, show, to_json
from mot_jax.aot.topology import Target
from mot_jax.config import Run
from mot_jax.training.model_table import model_table
from mot_jax.training.progress import preparation, say
from mot_jax.vocabulary import Vocabulary


def ahead_of_time(run: Run, target: Target, json_file: str | None) -> int:
    """Compiles the train step of `run` for the target and prints what it costs.

    Args:
      json_file: where the same goes as JSON; "-" prints it after the tables.

    Returns:
      0, or 1 if the run does not fit.

    Raises:
      UserError: the target's compiler is not installed, or the run cannot be laid out on it.
    """
    console = Console()
    note = functools.partial(say, console)
    note(f"compiling for {target.description}")
    with preparation(console) as progress:
        run, vocabulary = resolved(run, progress)
    console.print(model_table(run.model, run.data.sequence_length))
    report = make_report(compile_step(run, vocabulary, target), target)
    show(report, console)
    if json_file == "-":
        note(to_json(report))
    elif json_file is not None:
        pathlib.Path(json_file).write_text(to_json(report) + "\n")
    if report.fits:
        return 0
    _advise(run, report.bytes.total, vocabulary, target, console, note)
    return 1


def _advise(
    run: Run, least: int, vocabulary: Vocabulary, target: Target, console: Console, note: Callable[[str], None]
) -> None:
    note("trying what would make it fit:")
    found = what_fits(run, least, vocabulary, target, lambda text: note(f"  {text}"))
    if found is None:
        note("nothing tried makes it fit: expected more devices, or a smaller model")
        return
    flags, compiled = found
    note(f"it fits with {flags}:")
    show(make_report(compiled, target), console)
