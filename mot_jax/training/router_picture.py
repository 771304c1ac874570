"""routers.png: where the tokens of every layer and pool went, and how well auxiliary routers foresee it."""

from collections.abc import Sequence

from etils import epath

from mot_jax.nn.depth import POOL
from mot_jax.objectives.next_token import ROUTER
from mot_jax.training.curves import curve, write_figure

CURVES = ("unserved", "dropped", "selected", "gate", "balance", "precision", "recall", "agreement")


def draw_routers(lines: Sequence[dict], path: epath.PathLike) -> None:
    """A column a pool (and mixture-of-depths): each expert's share of the tokens, and everything else over the steps.

    Nothing where the lines of metrics.jsonl hold no router's metrics.
    """
    names = dict.fromkeys(name.removeprefix(ROUTER) for line in lines for name in line if name.startswith(ROUTER))
    found: dict[str, dict[str, list[int]]] = {}  # pool -> metric -> layers
    for name in names:
        layer, pool, metric = name.split("/")
        found.setdefault(pool, {}).setdefault(metric, []).append(int(layer))
    if not found:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = {pool: found[pool] for pool in sorted(found, key=lambda pool: pool == POOL)}  # depth last
    shown = [metric for metric in CURVES if any(metric in metrics for metrics in found.values())]
    figure = Figure(figsize=(3.6 * len(found) + 0.8, 2.3 * (1 + len(shown))), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(1 + len(shown), len(found), squeeze=False)
    for column, (pool, metrics) in enumerate(found.items()):
        _draw_shares(grid[0, column], lines, pool, metrics)
        for row, metric in enumerate(shown, start=1):
            axes = grid[row, column]
            for layer in metrics.get(metric, ()):
                steps, values = _values(lines, f"{ROUTER}{layer}/{pool}/{metric}")
                axes.plot(steps, values, linewidth=1, marker="." if len(steps) < 3 else None, label=f"layer {layer}")
            if metric not in metrics:
                axes.set_axis_off()
                continue
            axes.set(title=metric, xlabel="step" if row == len(shown) else None, ylim=(0, 1.02))
            axes.grid(alpha=0.3)
            if row == 1 + min(shown.index(m) for m in metrics if m in shown):
                axes.legend(fontsize=7)
    write_figure(figure, path, dpi=100)


def _draw_shares(axes, lines: Sequence[dict], pool: str, metrics: dict[str, list[int]]) -> None:
    """Layers by experts, the latest share of the pool's tokens in each cell."""
    experts = sorted((name for name in metrics if name.startswith("expert_")), key=lambda name: int(name[7:]))
    axes.set_title(f"{pool}: share of tokens" if experts else pool, weight="bold")
    if not experts:
        axes.set_axis_off()
        return
    layers = metrics[experts[0]]
    shares = []
    for layer in layers:
        latest = [_values(lines, f"{ROUTER}{layer}/{pool}/{expert}")[1] for expert in experts]
        shares.append([values[-1] if values else 0.0 for values in latest])
    axes.imshow(shares, vmin=0, vmax=1, aspect="auto", cmap="Blues")
    for row, values in enumerate(shares):
        for column, value in enumerate(values):
            axes.text(
                column,
                row,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if value > 0.6 else "black",
            )
    axes.set(xlabel="expert", ylabel="layer", xticks=range(len(experts)), yticks=range(len(layers)))
    axes.set_yticklabels([str(layer) for layer in layers])


def _values(lines: Sequence[dict], name: str) -> tuple[list[int], list[float]]:
    """Of training, or of validation where training has none."""
    steps, values = curve(lines, "train", name)
    return (steps, values) if steps else curve(lines, "validation", name)
