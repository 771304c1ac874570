"""A model's parameters and operations as a table: by part, by who owns them, and what one token of each group meets."""

from rich.table import Table

from mot_jax.config import Model
from mot_jax.nn import count
from mot_jax.training.flops import forward_flops_by_group


def model_table(model: Model, sequence_length: int) -> Table:
    """Rows are parts; columns what each group stores, what all share, and what a token meets; then its FLOPs."""
    stored, met = count.stored_by_part(model), count.activated_by_part(model)
    owners = [owner for owner, parts in stored.items() if sum(parts.values())]
    tokens = {group: (met[group], parts) for group, parts in forward_flops_by_group(model, sequence_length).items()}
    if all(each == next(iter(tokens.values())) for each in tokens.values()):
        tokens = {"": next(iter(tokens.values()))}
    title = "parameters by owner, and met by a token"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("part", no_wrap=True)
    for owner in owners:
        table.add_column(owner if len(owners) > 1 else "stored", justify="right")
    for group in tokens:
        table.add_column(f"{group} token" if group else "a token", justify="right")
    for part in count.PARTS:
        if any(stored[owner][part] for owner in owners):
            cells = [stored[owner][part] for owner in owners] + [parts[part] for parts, _ in tokens.values()]
            table.add_row(part, *map(_short, cells))
    totals = [sum(stored[owner].values()) for owner in owners] + [sum(parts.values()) for parts, _ in tokens.values()]
    table.add_row("total", *map(_short, totals), style="bold")
    flops = [sum(each.values()) for _, each in tokens.values()]
    table.add_row("forward, FLOPs", *[""] * len(owners), *map(_short, flops))
    return table


def _short(number: int | float) -> str:
    """Three digits: 94.1M."""
    if not number:
        return "0"
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= size * 0.9995:
            scaled = number / size
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f}{letter}"
    return f"{number:.0f}"
