"""What an evaluation found, as tables for the terminal."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mot_jax.evaluation.losses import HeldOutLoss
from mot_jax.evaluation.tasks import Accuracy, Scores

if TYPE_CHECKING:
    from rich.console import Console


def print_losses(console: "Console", losses: Mapping[str, HeldOutLoss], by: str = "") -> None:
    """A row for each modality: loss in nats, perplexity, number of target tokens; `by` says by which routers."""
    table = _table(f"targets{by and f' ({by})'}", "loss", "perplexity", "tokens")
    for name, loss in losses.items():
        table.add_row(name, f"{loss.loss:.4f}", f"{loss.perplexity:.3f}", f"{loss.tokens:,}")
    console.print(table)


def print_scores(console: "Console", task: str, scores: Scores) -> None:
    """A row for each score; an accuracy with its standard error and number of trials."""
    table = _table(f"task {task}", "value", "standard error", "trials")
    for name, score in scores.items():
        if isinstance(score, Accuracy):
            table.add_row(name, f"{score.value:.3f}", f"{score.standard_error:.3f}", f"{score.count:,}")
        else:
            table.add_row(name, f"{score:.4g}", "", "")
    console.print(table)


def _table(first: str, *others: str):
    from rich.table import Table

    table = Table()
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table
