"""What a comparison found, as data, a table and JSON."""

import dataclasses
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from mot_jax.evaluation.compare.arms import Arm, what_differs
from mot_jax.evaluation.compare.curves import ALL, WINDOW, curves
from mot_jax.evaluation.compare.matching import Curve, Match, Share, match
from mot_jax.evaluation.compare.runs import HELD_OUT, TRAIN
from mot_jax.training.progress import say

KINDS = {TRAIN: "training loss", HELD_OUT: "held-out loss"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One candidate against the reference, by one loss."""

    split: str
    modality: str
    arm: str
    match: Match


@dataclasses.dataclass(frozen=True)
class Comparison:
    """`losses[split, modality][arm]` are the runs' curves, the reference's first; `window` in steps."""

    arms: tuple[Arm, ...]
    window: int
    losses: dict[tuple[str, str], dict[str, list[Curve]]]
    rows: tuple[Row, ...]


def compare(arms: Sequence[Arm]) -> Comparison:
    """Every candidate against the first arm: training and held-out loss, over all tokens and by modality."""
    reference, *candidates = arms
    window = max(1, round(WINDOW * reference.steps))
    modalities = (ALL, *reference.runs[0].config.model.modalities)
    losses = {
        (split, modality): {arm.name: found for arm in arms if (found := curves(arm, split, modality, window))}
        for split in KINDS
        for modality in modalities
    }
    rows = [
        Row(split, modality, arm.name, match(by_arm[reference.name], by_arm[arm.name]))
        for (split, modality), by_arm in losses.items()
        for arm in candidates
        if reference.name in by_arm and arm.name in by_arm
    ]
    return Comparison(tuple(arms), window, losses, tuple(rows))


def to_json(comparison: Comparison) -> dict:
    reference = comparison.arms[0]
    return {
        "reference": reference.name,
        "arms": {
            arm.name: {
                "runs": [str(run.directory) for run in arm.runs],
                "steps": [run.steps for run in arm.runs],
                "differs": what_differs(reference, arm),
                "training_sees_later_tokens": arm.sees_future,
            }
            for arm in comparison.arms
        },
        "smoothing": {
            TRAIN: f"mean over the {comparison.window} steps before",
            HELD_OUT: "none",
            "between steps": "linear",
        },
        "matches": [dataclasses.asdict(row) for row in comparison.rows],
    }


def show(comparison: Comparison, console: Console) -> None:
    """A table for the training loss and one for the held-out loss."""
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
        smoothed = f", mean over {comparison.window} steps" if split == TRAIN else ""
        table = Table(title=f"{title}{smoothed}: share of {reference.name} until its final loss", title_justify="left")
        for number, column in enumerate(("", "arm", reference.name, "arm's own", "steps", "FLOPs", "time")):
            table.add_column(column, justify="left" if number < 2 else "right")
        for row in rows:
            found = row.match
            cells = [_share(found.steps), _share(found.flops), _share(found.seconds)]
            table.add_row(row.modality, row.arm, f"{found.reference:.4f}", f"{found.candidate:.4f}", *cells)
        if rows:
            console.print(table)
        else:
            say(console, f"no {title} that both have")


def _share(share: Share) -> str:
    if share.value is None and share.low is None:
        return "not reached"
    value = "not reached" if share.value is None else f"{share.value:.3f}"
    if share.low is None:
        return value
    return f"{value}\n{share.low:.3f} to {'not reached' if share.high is None else f'{share.high:.3f}'}"
