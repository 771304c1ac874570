"""Sample pictures of any data set: what the model makes of held-out prompts, one band of cells a direction."""

import dataclasses
import textwrap
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from mot_jax.codecs.protocol import Codec
from mot_jax.config import Model, Sample
from mot_jax.data.dataset import Dataset, Documents
from mot_jax.documents import Document, Span
from mot_jax.evaluation.completion import complete
from mot_jax.vocabulary import TEXT, Vocabulary

Shown = str | np.ndarray  # what Codec.show returns
Box = tuple[float, float, float, float]  # left, bottom, width, height
SEARCHED = 4096  # documents looked at for prompts

# Inches.
CELL_WIDTH, CELL_HEIGHT, GAP = 1.4, 0.95, 0.06
LABEL_WIDTH, HEADER_HEIGHT = 0.85, 0.27
FONT_SIZE, LINE_HEIGHT, CHARACTER_WIDTH = 8.5, 0.145, 0.07


@dataclasses.dataclass(frozen=True)
class Band:
    """One direction's prompts and, below them, what the model made of each."""

    label: str
    given: Sequence[Shown]
    generated: Sequence[Shown]


def sample_picture(
    model: Model,
    params: Mapping,
    vocabulary: Vocabulary,
    codecs: Mapping[str, Codec],
    dataset: Dataset,
    sample: Sample,
    seed: int,
    path: epath.PathLike,
    *,
    split: str = "validation",
) -> epath.Path | None:
    """Draws `sample.prompts` held-out prompts of every direction between two modalities, and the model's answers.

    The prompts are the first spans of the split's documents, the same ones every time; the direction is that of a
    document's first two spans. Generation goes by `sample` and `seed`.

    Returns:
      the path written, or None where the split has no document of two spans.
    """
    directions = find_prompts(dataset.split(split), vocabulary, sample)
    bands = []
    for to in dict.fromkeys(to for _, to in directions):  # all that asks for one modality in one batch: fewer programs
        asked = [(source, span) for (source, target), spans in directions.items() if target == to for span in spans]
        prompts = [[span] for _, span in asked]
        answers = complete(model, params, vocabulary, prompts, to=to, sample=sample, seed=seed)
        for source in dict.fromkeys(source for source, _ in asked):
            pairs = [(span, codes) for (name, span), codes in zip(asked, answers, strict=True) if name == source]
            given = [codecs[source].show(span.codes) for span, _ in pairs]
            bands.append(Band(f"{source} → {to}", given, [codecs[to].show(codes) for _, codes in pairs]))
    return draw_bands(bands, path) if bands else None


def find_prompts(
    documents: Documents | Sequence[Document], vocabulary: Vocabulary, sample: Sample
) -> dict[tuple[str, str], list[Span]]:
    """First spans by direction (from, to) of the first documents that have it; captions to pictures come first.

    Documents of exactly two spans are preferred; longer ones serve where a split has no such document.
    """
    found: dict[int, dict[tuple[str, str], list[Span]]] = {2: {}, 3: {}}
    for index in range(min(len(documents), SEARCHED)):
        document = documents[index]
        if len(document) < 2:
            continue
        first, second = document[:2]
        spans = found[min(len(document), 3)].setdefault((first.modality, second.modality), [])
        if len(spans) < sample.prompts:
            # A long text is continued from its end: all of it would cost more than it shows.
            codes = first.codes[-sample.max_tokens :] if first.modality == TEXT else first.codes
            spans.append(Span(first.modality, codes))
    order = {name: index for index, name in enumerate((*vocabulary.names[1:], TEXT))}

    def place(direction: tuple[str, str]) -> tuple[int, int]:
        source, to = direction
        return order[to], -1 if source == TEXT else order[source]

    prompts = found[2] or found[3]
    return {direction: prompts[direction] for direction in sorted(prompts, key=place)}


def draw_bands(bands: Sequence[Band], path: epath.PathLike) -> epath.Path:
    """Writes the labelled grid as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(len(band.given) for band in bands)
    width = LABEL_WIDTH + columns * (CELL_WIDTH + GAP) + GAP
    rows = [(band, ("given", band.given, "#e9edf2"), ("generated", band.generated, "#fdf3dc")) for band in bands]
    height = GAP + sum(HEADER_HEIGHT + sum(_row_height(row[1]) + GAP for row in both) for _, *both in rows)
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    top = height
    for band, *both in rows:
        axes.text(GAP, top - HEADER_HEIGHT / 2, band.label, fontsize=10, weight="bold", va="center", parse_math=False)
        top -= HEADER_HEIGHT
        for what, cells, colour in both:
            row_height = _row_height(cells)
            axes.text(
                LABEL_WIDTH - GAP, top - row_height / 2, what, fontsize=9, color="#555555", ha="right", va="center"
            )
            for column, shown in enumerate(cells):
                left = LABEL_WIDTH + column * (CELL_WIDTH + GAP)
                _cell(axes, shown, (left, top - row_height, CELL_WIDTH, row_height), colour)
            top -= row_height + GAP
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    return _write(figure, path)


def _row_height(cells: Sequence[Shown]) -> float:
    """A row of short texts is as low as its longest text allows."""
    if any(isinstance(shown, np.ndarray) for shown in cells):
        return CELL_HEIGHT
    return min(CELL_HEIGHT, 3 * GAP + LINE_HEIGHT * max(wrap(shown).count("\n") + 1 for shown in cells))


def _cell(axes, shown: Shown, box: Box, colour: str) -> None:
    from matplotlib.patches import Rectangle

    left, bottom, width, height = box
    axes.add_patch(Rectangle((left, bottom), width, height, facecolor=colour, edgecolor="#b8bfc8", lw=0.6))
    if isinstance(shown, np.ndarray) and shown.size:
        _image(axes, shown, box)
        return
    text = shown.strip() if isinstance(shown, str) else ""
    axes.text(
        left + GAP,
        bottom + height - GAP,
        wrap(text) if text else "(nothing)",
        fontsize=FONT_SIZE,
        color="black" if text else "#888888",
        va="top",
        linespacing=1.15,
        parse_math=False,
    )


def _image(axes, image: np.ndarray, box: Box) -> None:
    """Fits a grey [h, w] or colour [h, w, 3] uint8 image into its cell, proportions kept."""
    left, bottom, cell_width, cell_height = box
    scale = min((cell_width - 2 * GAP) / image.shape[1], (cell_height - 2 * GAP) / image.shape[0])
    width, height = image.shape[1] * scale, image.shape[0] * scale
    x, y = left + (cell_width - width) / 2, bottom + (cell_height - height) / 2
    axes.imshow(
        image,
        cmap="gray",
        vmin=0,
        vmax=255,
        extent=(x, x + width, y, y + height),
        aspect="auto",
        interpolation="nearest",
        zorder=2,  # above the cell's background
    )


def wrap(text: str) -> str:
    """Text broken into a cell's lines, cut with an ellipsis where it does not fit; control characters become dots."""
    shown = "".join(character if character.isprintable() else "·" for character in " ".join(text.split()))
    return "\n".join(
        textwrap.wrap(
            shown,
            width=int((CELL_WIDTH - 2 * GAP) / CHARACTER_WIDTH),
            max_lines=int((CELL_HEIGHT - 2 * GAP) / LINE_HEIGHT),
            placeholder=" …",
        )
    )


def draw_panels(
    panels: Mapping[str, np.ndarray], path: epath.PathLike, *, columns: int, labels: Sequence[str]
) -> epath.Path:
    """Writes colour images [h, w, 3] uint8 side by side, `columns` a row, each under its title.

    Args:
      labels: written beside each image, from its top to its bottom at equal distances.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.3 * columns, 4.1 * rows), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    for index, (title, image) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, index + 1)
        axes.imshow(image, interpolation="nearest")
        axes.set_title(title, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks((np.arange(len(labels)) + 0.5) * image.shape[0] / len(labels), labels)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return _write(figure, path)


def _write(figure, path: epath.PathLike) -> epath.Path:
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a character without a glyph shows as a box
        figure.savefig(file, format="png", dpi=100)
    return path
