"""Pictures and captions put together: a document is one picture beside one thing that can be said of it."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int32

from mot_jax.documents import Document, Span


@dataclasses.dataclass(frozen=True, eq=False)
class Material:
    """What one split may use. N pictures in V tokenisations of C codes each.

    Attributes:
      codes: of every tokenisation of every picture.
      names: the name of every picture; skin tones of one person have the same.
      captions: what may be said of each picture.
      text_codes: codes of every caption.
    """

    codes: Int32[np.ndarray, "N V C"]
    names: Sequence[str]
    captions: Sequence[tuple[str, ...]]
    text_codes: Mapping[str, Int32[np.ndarray, "_"]]


def compose(material: Material, count: int, rng: np.random.Generator) -> Iterator[Document]:
    """`count` documents, half of them caption first. Every name is as likely as any other, then every skin tone."""
    of_name: dict[str, list[int]] = {}
    for picture, name in enumerate(material.names):
        of_name.setdefault(name, []).append(picture)
    variants = list(of_name.values())
    caption_first = rng.permutation(count) % 2 == 0
    for index in range(count):
        alike = variants[rng.integers(len(variants))]
        picture = alike[rng.integers(len(alike))]
        sayings = material.captions[picture]
        text = Span("text", material.text_codes[sayings[rng.integers(len(sayings))]])
        image = Span("image", material.codes[picture, rng.integers(material.codes.shape[1])])
        yield (text, image) if caption_first[index] else (image, text)
