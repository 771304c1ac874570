"""Pictures, utterances, captions and prose put together: which document holds what, in which order."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int, Int32

from mot_jax.documents import Document, Span

MODALITIES = ("text", "image", "speech")
PAIRS = tuple(itertools.permutations(MODALITIES, 2))  # all six directions
TRIPLES = tuple(itertools.permutations(MODALITIES))
PAIR_SHARE, TRIPLE_SHARE = 0.60, 0.25  # of the documents; the rest is prose
PROSE = ("prose",)


@dataclasses.dataclass(frozen=True, eq=False)
class Material:
    """What one split may use. N images in V tokenisations of C codes each.

    Attributes:
      images: codes of every tokenisation of every image.
      image_labels: the digit of every image.
      captions: what may be said of each image.
      speech: codes of every utterance.
      speech_labels: the digit of every utterance.
      speech_captions: what may be said of each utterance.
      prose: passages.
      text_codes: codes of every caption and passage.
    """

    images: Int32[np.ndarray, "N V C"]
    image_labels: Int[np.ndarray, "N"]
    captions: Sequence[tuple[str, ...]]
    speech: Sequence[Int32[np.ndarray, "_"]]
    speech_labels: Int[np.ndarray, "U"]
    speech_captions: Sequence[tuple[str, ...]]
    prose: Sequence[str]
    text_codes: Mapping[str, Int32[np.ndarray, "_"]]


def layouts(count: int, rng: np.random.Generator) -> list[tuple[str, ...]]:
    """The modalities of each of `count` documents in order: every pair and every triple equally often, shuffled."""
    pairs, triples = round(PAIR_SHARE * count), round(TRIPLE_SHARE * count)
    chosen = [PAIRS[i % len(PAIRS)] for i in range(pairs)]
    chosen += [TRIPLES[i % len(TRIPLES)] for i in range(triples)]
    chosen += [PROSE] * (count - pairs - triples)
    return [chosen[i] for i in rng.permutation(count)]


def compose(material: Material, count: int, rng: np.random.Generator) -> Iterator[Document]:
    """`count` documents. All spans of a document are of one digit; prose is used evenly, in random order."""
    kinds = layouts(count, rng)
    images, versions = material.images.shape[:2]
    image = rng.integers(images, size=count)
    version = rng.integers(versions, size=count)
    utterance = _utterances(material, material.image_labels[image], rng)
    phrasing = rng.random(count)
    passages = _rounds(len(material.prose), sum(kind == PROSE for kind in kinds), rng)
    for index, kind in enumerate(kinds):
        if kind == PROSE:
            yield (Span("text", material.text_codes[material.prose[next(passages)]]),)
            continue
        sayings = material.captions[image[index]] if "image" in kind else material.speech_captions[utterance[index]]
        spans = {
            "text": material.text_codes[sayings[int(phrasing[index] * len(sayings))]],
            "image": material.images[image[index], version[index]],
            "speech": material.speech[utterance[index]],
        }
        yield tuple(Span(modality, spans[modality]) for modality in kind)


def _utterances(material: Material, digits: Int[np.ndarray, "n"], rng: np.random.Generator) -> Int[np.ndarray, "n"]:
    """An utterance of each digit, drawn at random."""
    order = np.argsort(material.speech_labels, kind="stable")
    counts = np.bincount(material.speech_labels, minlength=digits.max() + 1)
    starts = np.cumsum(counts) - counts
    return order[starts[digits] + rng.integers(counts[digits])]


def _rounds(size: int, count: int, rng: np.random.Generator) -> Iterator[int]:
    """`count` indices below `size`: each as often as any other, up to one, in an order drawn anew every round."""
    rounds = [rng.permutation(size) for _ in range(-(-count // size))]
    return iter(np.concatenate([*rounds, np.zeros(0, np.int64)])[:count].astype(int).tolist())
