"""A figure a modality: the losses of all arms against steps, FLOPs and seconds."""

import numpy as np
from etils import epath

from mot_jax.evaluation.compare.matching import mean_curve
from mot_jax.evaluation.compare.report import KINDS, Comparison
from mot_jax.evaluation.compare.runs import HELD_OUT, TRAIN
from mot_jax.training.curves import write_figure

AXES = {"steps": "steps", "flops": "training FLOPs", "seconds": "seconds of training"}


def draw(comparison: Comparison, modality: str, path: epath.Path) -> None:
    """Training losses above held-out ones; seeds thin, their mean thick, the reference's last loss dotted."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(AXES), 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(KINDS), len(AXES))
    for row, split in enumerate((TRAIN, HELD_OUT)):
        by_arm = comparison.losses[split, modality]
        for column, (field, label) in enumerate(AXES.items()):
            axes = grid[row, column]
            axes.set(xlabel=label, title=f"{modality}, {KINDS[split]}" if column == 0 else None)
            axes.grid(alpha=0.3)
            for number, arm in enumerate(comparison.arms):
                if not (curves := by_arm.get(arm.name)):
                    continue
                color, mean = f"C{number}", mean_curve(curves)
                for curve in curves if len(curves) > 1 else ():
                    axes.plot(getattr(curve, field), curve.losses, color=color, alpha=0.3, linewidth=0.8)
                axes.plot(getattr(mean, field), mean.losses, color=color, label=arm.name)
                if number == 0:
                    axes.axhline(mean.losses[-1], color=color, linestyle=":", linewidth=1)
            known = [curve.losses for curves in by_arm.values() for curve in curves]
            if known:
                _frame(axes, np.concatenate(known))
                axes.legend(fontsize=8)
    write_figure(figure, path)


def _frame(axes, losses: np.ndarray) -> None:
    """Leaves the first steep part out, which would flatten all the rest."""
    low, high = losses.min(), np.quantile(losses, 0.9)
    margin = 0.05 * (high - low) or 0.1
    axes.set_ylim(low - margin, high + margin)
