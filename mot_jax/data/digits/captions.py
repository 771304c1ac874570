"""What can be said about a digit: its word, and where it is drawn, how thick and how slanted the strokes are."""

import numpy as np
from jaxtyping import Float, Int, UInt8

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
THICKNESSES = ("thin", "medium", "bold")
SLANTS = ("leaning left", "upright", "leaning right")
UPRIGHT = 10.0  # degrees either way

IMAGE_PROMPTS = (
    "a handwritten {digit}",
    "a picture of the digit {digit}",
    "the digit {digit}, drawn by hand",
)
IMAGE_DESCRIPTIONS = (
    "a {thickness} {digit}, {slant}",
    "a handwritten {digit}, {thickness} and {slant}",
    "the digit {digit} in {thickness} strokes, {slant}",
)
SPEECH_PROMPTS = (
    "the spoken word {digit}",
    "someone says {digit}",
    "a voice that says {digit}",
)


def stroke_thickness(images: UInt8[np.ndarray, "N h w"]) -> Float[np.ndarray, "N"]:
    """Mean stroke width in pixels: twice the ink's area over the length of its outline."""
    ink = images.astype(np.float64) / 255
    down, right = np.diff(ink, axis=1, prepend=0), np.diff(ink, axis=2, prepend=0)
    return 2 * ink.sum((1, 2)) / np.hypot(down, right).sum((1, 2))


def slant(images: UInt8[np.ndarray, "N h w"]) -> Float[np.ndarray, "N"]:
    """Degrees by which the ink leans to the right, from its second moments (a vertical line: 0)."""
    ink = images.astype(np.float64)
    ink /= ink.sum((1, 2), keepdims=True)
    y, x = np.arange(images.shape[1])[:, None], np.arange(images.shape[2])
    y_from_mean = y - (ink * y).sum((1, 2), keepdims=True)
    x_from_mean = x - (ink * x).sum((1, 2), keepdims=True)
    along_both, along_y = (ink * y_from_mean * x_from_mean).sum((1, 2)), (ink * y_from_mean**2).sum((1, 2))
    return np.degrees(np.arctan(-along_both / along_y))


def thickness_thirds(images: UInt8[np.ndarray, "N h w"]) -> Float[np.ndarray, "2"]:
    """The stroke widths between which a third of the pictures lies."""
    return np.quantile(stroke_thickness(images), (1 / 3, 2 / 3))


def image_captions(
    images: UInt8[np.ndarray, "N h w"],
    labels: Int[np.ndarray, "N"],
    thirds: Float[np.ndarray, "2"],
) -> list[tuple[str, ...]]:
    """All that may be said of each picture: half of it names the digit alone, half describes the strokes too."""
    thickness = np.digitize(stroke_thickness(images), thirds)
    leaning = np.digitize(slant(images), (-UPRIGHT, UPRIGHT))
    return [
        tuple(
            phrasing.format(digit=WORDS[digit], thickness=THICKNESSES[thick], slant=SLANTS[lean])
            for phrasing in IMAGE_PROMPTS + IMAGE_DESCRIPTIONS
        )
        for digit, thick, lean in zip(labels, thickness, leaning, strict=True)
    ]


def speech_captions(labels: Int[np.ndarray, "N"]) -> list[tuple[str, ...]]:
    """All that may be said of each utterance. It promises nothing about strokes: no picture is beside it."""
    return [tuple(phrasing.format(digit=WORDS[digit]) for phrasing in SPEECH_PROMPTS) for digit in labels]
