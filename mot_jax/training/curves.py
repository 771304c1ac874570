"""losses.png: the loss of every modality over the steps, training smoothed, validation as points."""

import io
from collections.abc import Sequence

from etils import epath

SMOOTHING = 0.3  # share of the newest line in the running mean; a line is a mean already


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential running mean, without the bias towards its start."""
    smoothed, mean, weight = [], 0.0, 0.0
    for value in values:
        mean = (1 - SMOOTHING) * mean + SMOOTHING * value
        weight = (1 - SMOOTHING) * weight + SMOOTHING
        smoothed.append(mean / weight)
    return smoothed


def curve(lines: Sequence[dict], split: str, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric, lines without a value left out."""
    points = [(line["step"], line[name]) for line in lines if line["split"] == split and line.get(name) is not None]
    return [step for step, _ in points], [value for _, value in points]


def draw_losses(lines: Sequence[dict], path: epath.PathLike) -> None:
    """Draws the losses (nats per target token) found in the lines of metrics.jsonl; nothing when there are none."""
    names = list(dict.fromkeys(name for line in lines for name in line if name.startswith("loss/")))
    names = [name for name in names if curve(lines, "train", name)[0] or curve(lines, "validation", name)[0]]
    if not names:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(names), 3.4), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display and without pyplot's global state
    for index, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), index + 1)
        steps, losses = curve(lines, "train", name)
        axes.plot(steps, losses, color="C0", alpha=0.25, linewidth=0.8)
        axes.plot(steps, smooth(losses), color="C0", label="train")
        axes.plot(*curve(lines, "validation", name), color="C3", marker="o", markersize=3, label="validation")
        axes.set(title=name.removeprefix("loss/"), xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend()
        if index == 0:
            axes.set_ylabel("loss (nats per token)")
    write_figure(figure, path)


def write_figure(figure, path: epath.PathLike, dpi: int = 110) -> None:
    """As PNG, to any file system."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=dpi)
    epath.Path(path).write_bytes(image.getvalue())
