"""Which colours a picture is drawn in, as a person would name them."""

import numpy as np
from jaxtyping import Float, Int, UInt8

# Anchors of each name, after the palette that the pictures are drawn with; a pixel has the name of the nearest one.
ANCHORS = {
    "red": ((210, 47, 39), (234, 90, 71)),
    "orange": ((226, 112, 34), (241, 160, 60)),
    "yellow": ((252, 234, 43), (241, 195, 40)),
    "green": ((92, 158, 49), (177, 204, 51), (30, 110, 50)),
    "blue": ((30, 80, 160), (97, 178, 228), (146, 211, 245)),
    "purple": ((104, 73, 152), (179, 153, 200)),
    "pink": ((255, 167, 192), (230, 122, 148)),
    "brown": ((165, 121, 57), (106, 70, 47)),
    "beige": ((250, 220, 188), (222, 187, 144), (193, 154, 101)),
}
NAMES = (*ANCHORS, "grey", "black", "white")
GREY, BLACK, WHITE = range(len(ANCHORS), len(NAMES))
PALE, DARK, BRIGHT, INK = 50, 90, 235, 60  # of 255: chroma without a hue; of those the darkest and lightest; any black
# What counts for less: paper and lines are in every picture, and where they meet is grey.
WEIGHTS = np.array([1.0] * len(ANCHORS) + [0.25, 0.1, 1e-8])
SECOND = 0.25  # of what is coloured a second colour must have to be named


def shares(pictures: UInt8[np.ndarray, "N h w 3"]) -> Float[np.ndarray, "N colours"]:
    """What part of each picture has each colour's name."""
    anchors = np.array([anchor for some in ANCHORS.values() for anchor in some], np.float32)
    owner = np.repeat(np.arange(len(ANCHORS)), [len(some) for some in ANCHORS.values()])
    counts = np.zeros((len(pictures), len(NAMES)))
    for row, picture in enumerate(pictures):
        pixels = picture.reshape(-1, 3).astype(np.float32)
        name = owner[((anchors**2).sum(1) - 2 * pixels @ anchors.T).argmin(1)]
        high, low = pixels.max(1), pixels.min(1)
        without_hue = np.select([high > BRIGHT, high < DARK], [WHITE, BLACK], GREY)
        name = np.where(high < INK, BLACK, np.where(high - low < PALE, without_hue, name))
        counts[row] = np.bincount(name, minlength=len(NAMES))
    return counts / counts.sum(1, keepdims=True)


def main_colour(pictures: UInt8[np.ndarray, "N h w 3"]) -> Int[np.ndarray, "N"]:
    """The index in NAMES of what most is drawn in; black lines and white paper count where there is nothing else."""
    return (shares(pictures) * WEIGHTS).argmax(1)


def described(pictures: UInt8[np.ndarray, "N h w 3"]) -> list[str]:
    """ "red", or "red and blue" where a second colour has a quarter of what is coloured; the main one comes first."""
    texts = []
    for part in shares(pictures) * WEIGHTS:
        first, second = np.argsort(-part, kind="stable")[:2]
        both = part[second] >= SECOND * part.sum() and WEIGHTS[second] == 1
        texts.append(f"{NAMES[first]} and {NAMES[second]}" if both else NAMES[first])
    return texts
