"""Documents: ordered spans of (modality, codes), and their round trip to token ids."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from mot_jax.errors import DataError
from mot_jax.vocabulary import TEXT, Vocabulary


@dataclasses.dataclass(frozen=True, eq=False)
class Span:
    """A stretch of one modality. `codes` int32[n] are the modality's own codes, not vocabulary ids."""

    modality: str
    codes: np.ndarray

    def __eq__(self, other):
        return isinstance(other, Span) and self.modality == other.modality and np.array_equal(self.codes, other.codes)


Document = tuple[Span, ...]


def canonical(document: Iterable[Span]) -> Document:
    """Joins neighbouring text spans and drops empty ones: what tokens can tell apart."""
    spans: list[Span] = []
    for span in document:
        if span.modality == TEXT and spans and spans[-1].modality == TEXT:
            spans[-1] = Span(TEXT, np.concatenate([spans[-1].codes, span.codes]))
        elif span.modality != TEXT or len(span.codes):
            spans.append(span)
    return tuple(spans)


def to_tokens(vocabulary: Vocabulary, document: Iterable[Span], *, bos: bool = True, eos: bool = True) -> np.ndarray:
    """int32[n]: BOS, text as it is, other spans between their markers, EOS.

    Raises:
      DataError: a code outside its modality's range, or a span of another length than its modality's fixed one.
    """
    parts = [[vocabulary.bos]] if bos else []
    for span in document:
        modality = vocabulary.modality(span.modality)
        tokens = vocabulary.to_tokens(span.modality, span.codes)
        if modality.span_length is not None and len(tokens) != modality.span_length:
            raise DataError(f"{span.modality}: a span has {len(tokens)} codes, expected {modality.span_length}")
        parts += [tokens] if modality.begin is None else [[modality.begin], tokens, [modality.end]]
    if eos:
        parts.append([vocabulary.eos])
    return np.concatenate(parts).astype(np.int32) if parts else np.zeros(0, np.int32)


def from_tokens(vocabulary: Vocabulary, tokens: np.ndarray) -> Document:
    """The inverse, up to `canonical`; BOS, EOS and padding are dropped. A last span may lack its end marker.

    Raises:
      DataError: a token out of place, such as an image code outside an image.
    """
    tokens = np.asarray(tokens)
    begins = {m.begin: m for m in vocabulary.modalities if m.begin is not None}
    ignored = {vocabulary.pad, vocabulary.bos, vocabulary.eos}
    spans, opened, codes = [], vocabulary.modalities[0], []

    def close():
        spans.append(Span(opened.name, np.asarray(codes, np.int32)))
        codes.clear()

    for place, token in enumerate(tokens.tolist()):
        if token >= vocabulary.size or token < 0:
            raise DataError(f"token {token} at {place} is outside the vocabulary of {vocabulary.size}")
        if opened.name == TEXT and token in begins:
            close()
            opened = begins[token]
        elif opened.name != TEXT and token == opened.end:
            close()
            opened = vocabulary.modalities[0]
        elif token in ignored and opened.name == TEXT:
            continue
        elif vocabulary.token_code[token] >= 0 and vocabulary.names[vocabulary.token_modality[token]] == opened.name:
            codes.append(vocabulary.token_code[token])
        else:
            raise DataError(f"token {token} at {place} has no place inside {opened.name}")
    close()
    return canonical(spans)
