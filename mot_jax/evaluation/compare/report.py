"""What a comparison found, as data and as JSON."""

import dataclasses
import math
from collections.abc import Sequence

from mot_jax.evaluation.compare.arms import Arm, what_differs
from mot_jax.evaluation.compare.curves import ALL, WINDOW, curves
from mot_jax.evaluation.compare.held_out import held_out_rows
from mot_jax.evaluation.compare.matching import Curve, Match, common_steps, match
from mot_jax.evaluation.compare.notes import missing
from mot_jax.evaluation.compare.runs import HELD_OUT, TRAIN

KINDS = {TRAIN: "training loss", HELD_OUT: "held-out loss"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One candidate against the reference, by one loss."""

    split: str
    modality: str
    arm: str
    seeds: int  # that have this loss; the intervals are over them
    reference_seeds: int
    match: Match


@dataclasses.dataclass(frozen=True)
class Comparison:
    """`losses[split, modality][arm]` are the runs' curves, the reference's first; `window` in steps.

    An arm without such losses, or whose runs have none at the same step, is left out there; `notes` say so.
    """

    arms: tuple[Arm, ...]
    window: int
    losses: dict[tuple[str, str], dict[str, list[Curve]]]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def compare(arms: Sequence[Arm]) -> Comparison:
    """Every candidate against the first arm: training and held-out loss, over all tokens and by modality."""
    reference, *candidates = arms
    window = _window(reference)
    modalities = (ALL, *reference.runs[0].config.model.modalities)
    measured = {
        (split, modality): {arm.name: curves(arm, split, modality, window) for arm in arms}
        for split in KINDS
        for modality in modalities
    }
    losses = {
        key: {name: found for name, found in by_arm.items() if found and len(common_steps(found))}
        for key, by_arm in measured.items()
    }
    rows = [
        Row(
            *(split, modality, arm.name, len(by_arm[arm.name]), len(by_arm[reference.name])),
            match(by_arm[reference.name], by_arm[arm.name]),
        )
        for (split, modality), by_arm in losses.items()
        for arm in candidates
        if reference.name in by_arm and arm.name in by_arm
    ]
    notes = [
        note
        for split, title in KINDS.items()
        for arm in arms
        for note in missing(arm, measured[split, ALL][arm.name], split, title)
    ]
    return Comparison(tuple(arms), window, losses, tuple(rows), tuple(notes))


def _window(reference: Arm) -> int:
    """Steps that a training loss is a mean over: WINDOW of the reference's, and whole lines of metrics."""
    line = max(1, reference.runs[0].config.train.log_every)
    return max(1, math.ceil(round(WINDOW * reference.steps) / line)) * line


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
            TRAIN: f"mean over the lines of the last {comparison.window} steps",
            HELD_OUT: "none",
            "between steps": "linear",
        },
        "held_out": dict(zip(("rows_at_most", "tokens_a_row"), held_out_rows(reference.runs[0].config), strict=True)),
        "notes": list(comparison.notes),
        "matches": [_row_json(row) for row in comparison.rows],
    }


def _row_json(row: Row) -> dict:
    """None is "not reached"; without draws there is no interval, and nothing is said of one."""
    found = dataclasses.asdict(row)
    if row.match.draws_reached is None:
        del found["match"]["draws_reached"]
        for name in ("steps", "flops", "seconds"):
            found["match"][name] = {"value": found["match"][name]["value"]}
    return found
