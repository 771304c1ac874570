"""memory.png: how much of each memory layer's table the held-out tokens read, and how evenly, over the steps."""

from collections.abc import Sequence

from etils import epath

from mot_jax.evaluation.usage import MEMORY
from mot_jax.training.curves import curve, write_figure

SHOWN = {"used": "share of values read", "kl_to_uniform": "KL of usage to uniform (nats)"}


def draw_memory(lines: Sequence[dict], path: epath.PathLike) -> None:
    """Nothing where the lines of metrics.jsonl hold no memory's metrics."""
    lines = [line for line in lines if line["split"] == "validation"]
    layers = sorted({int(name.split("/")[1]) for line in lines for name in line if name.startswith(MEMORY)})
    if not layers:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(SHOWN), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, title) in zip(figure.subplots(1, len(SHOWN)), SHOWN.items(), strict=True):
        for layer in layers:
            axes.plot(*curve(lines, "validation", f"{MEMORY}{layer}/{name}"), marker=".", label=f"layer {layer}")
        axes.set(title=title, xlabel="step")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    write_figure(figure, path)
