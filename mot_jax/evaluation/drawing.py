"""What tasks that draw have in common: which prompts are asked, in which ways, and what the picture of them shows."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, Int32, UInt8

from mot_jax.documents import Span
from mot_jax.evaluation.completion import complete
from mot_jax.evaluation.tasks import Accuracy, TaskContext

GREEDY = 0.0  # reading asks for the likeliest answer
SHOWN = 10  # drawings of a class in a panel
RIGHT, WRONG = (235, 235, 235), (214, 39, 40)  # frames


def balanced(labels: Int[np.ndarray, "N"], count: int, rng: np.random.Generator) -> Int[np.ndarray, "n"]:
    """At most `count` rows in random order, every class as often as any other while there are enough."""
    order = rng.permutation(len(labels))
    rank = np.zeros(len(labels), np.int64)  # how many rows of the same class came before
    for one in np.unique(labels):
        members = labels[order] == one
        rank[members] = np.arange(members.sum())
    return order[np.argsort(rank, kind="stable")][:count]


def accuracy(right: Bool[np.ndarray, "N"]) -> Accuracy:
    """The share of true ones."""
    return Accuracy(int(np.sum(right)), len(right))


def ways_to_draw(context: TaskContext) -> Sequence[tuple[str, float, float]]:
    """(name, temperature, guidance): temperature 1, `Sample.temperature`, and that with `Eval.guidance`."""
    cool, guidance = context.sample.temperature, context.eval.guidance
    ways = ((1.0, 1.0), (cool, 1.0), (cool, guidance))
    return [(f"temperature_{t:g}" + (f"_guidance_{g:g}" if g != 1 else ""), t, g) for t, g in dict.fromkeys(ways)]


def ask(
    context: TaskContext, prompts: Sequence[Span], to: str, temperature: float, guidance: float = 1.0
) -> list[Int32[np.ndarray, "_"]]:
    """The codes of the span of modality `to` that the model puts after each prompt."""
    run = context.run
    return complete(
        run.config.model,
        run.params,
        run.vocabulary,
        [[prompt] for prompt in prompts],
        to=to,
        sample=dataclasses.replace(context.sample, temperature=temperature, guidance=guidance),
        seed=context.eval.seed,
    )


def panel(
    images: UInt8[np.ndarray, "N h w *channels"], asked: Int[np.ndarray, "N"], read: Int[np.ndarray, "N"], classes: int
) -> UInt8[np.ndarray, "height width 3"]:
    """One row a class asked for; a drawing that the judge read as another class has a red frame."""
    h, w = images.shape[1:3]
    grid = np.full((classes, SHOWN, h + 3, w + 3, 3), 255, np.uint8)
    for one in range(classes):
        for column, row in enumerate(np.flatnonzero(asked == one)[:SHOWN]):
            grid[one, column, :-1, :-1] = RIGHT if read[row] == one else WRONG
            grid[one, column, 1:-2, 1:-2] = images[row].reshape(h, w, -1)
    return grid.transpose(0, 2, 1, 3, 4).reshape(classes * (h + 3), SHOWN * (w + 3), 3)
