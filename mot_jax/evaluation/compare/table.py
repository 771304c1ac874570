"""A comparison as tables on the console."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from mot_jax.evaluation.compare.arms import what_differs
from mot_jax.evaluation.compare.held_out import held_out_rows
from mot_jax.evaluation.compare.matching import Share
from mot_jax.evaluation.compare.report import KINDS, Comparison, Row
from mot_jax.evaluation.compare.runs import TRAIN
from mot_jax.training.progress import say


def show(comparison: Comparison, console: Console) -> None:
    """The arms, a table for the training loss and one for the held-out loss, and what they leave out."""
    reference = comparison.arms[0]
    for arm in comparison.arms:
        seeds = f"{len(arm.runs)} seed{'s' if len(arm.runs) > 1 else ''}"
        for run in arm.runs:
            if run.steps < run.wanted:
                say(console, f"{run.directory}: unfinished, {run.steps:,} of {run.wanted:,} steps; losses end there")
        differs = "; ".join(what_differs(reference, arm)) or "the reference"
        future = "; its training loss had later tokens to choose by" if arm.sees_future else ""
        say(console, f"{arm.name}: {seeds}, {arm.steps:,} steps; {differs}{future}")
    for split, title in KINDS.items():
        rows = [row for row in comparison.rows if row.split == split]
        if not rows:
            say(console, f"no {title} that both have")
            continue
        console.print(_table(comparison, split, rows))
        if earlier := _reached_before_its_end(rows):
            say(console, f"{reference.name} itself first had its final {title} at, of its own steps: {earlier}")
    for note in comparison.notes:
        say(console, note)


def _table(comparison: Comparison, split: str, rows: Sequence[Row]) -> Table:
    reference = comparison.arms[0].name
    title = f"{KINDS[split]}, {_over(comparison, split)}: share of {reference} until its final loss"
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(("", "arm", reference, "arm's own", "steps", "FLOPs", "time")):
        table.add_column(column, justify="left" if number < 2 else "right")
    runs = {arm.name: len(arm.runs) for arm in comparison.arms}
    for row in rows:
        found, drawn = row.match, row.match.draws_reached is not None
        name = row.arm if row.seeds == runs[row.arm] else f"{row.arm} ({row.seeds} of {runs[row.arm]} seeds)"
        cells = [_share(share, drawn) for share in (found.steps, found.flops, found.seconds)]
        table.add_row(row.modality, name, f"{found.reference:.4f}", f"{found.candidate:.4f}", *cells)
    return table


def _over(comparison: Comparison, split: str) -> str:
    """What each loss of a table is a mean over."""
    if split == TRAIN:
        return f"mean over the lines of the last {comparison.window} steps"
    rows, length = held_out_rows(comparison.arms[0].runs[0].config)
    part = "the whole split" if rows is None else f"the split's first {rows:,} rows, or fewer"
    return f"mean over {part}, {length:,} tokens a row"


def _reached_before_its_end(rows: Sequence[Row]) -> str:
    """`image 0.930, speech 0.970`: where the reference's loss is lower before its end than there."""
    first = {row.modality: row.match.reference_first for row in rows}
    return ", ".join(f"{modality} {share:.3f}" for modality, share in first.items() if share < 1)


def _share(share: Share, drawn: bool) -> str:
    if not drawn or (share.value is None and share.low is None):
        return _text(share.value)
    return f"{_text(share.value)}\n{_text(share.low)} to {_text(share.high)}"


def _text(share: float | None) -> str:
    return "not reached" if share is None else f"{share:.3f}"
