"""Documents -> rows: token ids, splitting what is too long, first-fit packing, and the batch made of packed rows."""

from collections.abc import Callable, Sequence

import grain
import numpy as np
from jaxtyping import Int32

from mot_jax.batch import Batch
from mot_jax.documents import Document, to_tokens
from mot_jax.errors import ConfigError
from mot_jax.vocabulary import TEXT, Vocabulary

VERSION = 1  # of everything here and in the pipeline that decides which token lands where; part of the fingerprint


def check_row_length(vocabulary: Vocabulary, row_length: int) -> None:
    """Raises ConfigError where a document of one fixed-length span could not fit a row."""
    for modality in vocabulary.modalities:
        needed = (modality.span_length or 0) + 4  # BOS, begin, end, EOS
        if modality.span_length is not None and row_length < needed:
            raise ConfigError(
                f"Data.sequence_length: {row_length} is shorter than an {modality.name} span of "
                f"{modality.span_length} codes with its markers ({needed})"
            )
    if row_length < 2:
        raise ConfigError(f"Data.sequence_length: expected at least 2, got {row_length}")


def document_pieces(vocabulary: Vocabulary, document: Document, row_length: int) -> list[np.ndarray]:
    """A document's tokens as int32[<= row_length] pieces: one when it fits, none when a span alone is too long.

    Cuts fall between text tokens or between spans, never inside a span of another modality or between it and its
    markers. BOS is in the first piece and EOS in the last, each together with a neighbour.
    """
    tokens = to_tokens(vocabulary, document)
    if len(tokens) <= row_length:
        return [tokens]
    lengths = [1]
    for span in document:
        lengths += [1] * len(span.codes) if span.modality == TEXT else [len(span.codes) + 2]
    cuts = np.cumsum(lengths)
    cuts[0], cuts[-1] = 0, len(tokens)  # neither BOS nor EOS alone
    pieces, start = [], 0
    while start < len(tokens):
        end = cuts[np.searchsorted(cuts, start + row_length, side="right") - 1]
        if end <= start:
            return []
        pieces.append(tokens[start:end])
        start = end
    return pieces


class _Flatten(grain.experimental.FlatMapTransform):
    max_fan_out = 1 << 30

    def __init__(self, observe: Callable[[Sequence[np.ndarray]], None]):
        self._observe = observe

    def flat_map(self, element: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        self._observe(element)
        return [{"tokens": piece} for piece in element]


def pack(
    documents: grain.IterDataset,
    row_length: int,
    *,
    bins: int,
    seed: int,
    shuffle: bool,
    observe: Callable[[Sequence[np.ndarray]], None] = lambda pieces: None,
) -> grain.IterDataset:
    """First-fit packing of documents, each a list of pieces, into rows.

    Args:
      documents: elements are lists of int32[<= row_length].
      row_length: tokens of a row.
      bins: rows filled side by side; they are handed on together once a piece fits none of them.
      seed: of the order in which they are handed on, with `shuffle`.
      observe: called with the pieces of each document, once each time it is read.

    Returns:
      Rows {"tokens", "tokens_segment_ids" (from 1, 0 is padding), "tokens_positions"}, each int32[row_length].
    """
    return grain.experimental.FirstFitPackIterDataset(
        grain.experimental.FlatMapIterDataset(documents, _Flatten(observe)),
        length_struct={"tokens": row_length},
        num_packing_bins=bins,
        seed=seed,
        shuffle_bins=shuffle,
    )


def make_batch(vocabulary: Vocabulary, rows: Sequence[dict[str, np.ndarray]]) -> Batch:
    """Rows of `pack` -> a Batch of NumPy arrays, in the same order."""
    return batch_of(
        vocabulary,
        np.stack([row["tokens"] for row in rows]),
        np.stack([row["tokens_segment_ids"] for row in rows]),
        np.stack([row["tokens_positions"] for row in rows]),
    )


def batch_of(
    vocabulary: Vocabulary,
    tokens: Int32[np.ndarray, "B S"],
    segment_ids: Int32[np.ndarray, "B S"],
    positions: Int32[np.ndarray, "B S"],
) -> Batch:
    """Derives from packed tokens all that a Batch holds. Tokens of segment 0 become padding."""
    live = segment_ids > 0
    tokens = np.where(live, tokens, np.int32(vocabulary.pad))
    modality_ids = vocabulary.token_modality[tokens]
    same_document = live[:, 1:] & (segment_ids[:, 1:] == segment_ids[:, :-1])
    new_span = np.ones(tokens.shape, bool)
    new_span[:, 1:] = ~same_document | (modality_ids[:, 1:] != modality_ids[:, :-1])
    targets = np.full_like(tokens, vocabulary.pad)
    targets[:, :-1] = np.where(same_document, tokens[:, 1:], targets[:, :-1])
    loss_weights = np.zeros(tokens.shape, np.float32)
    loss_weights[:, :-1] = same_document
    return Batch(
        tokens=tokens,
        modality_ids=modality_ids,
        segment_ids=segment_ids,
        span_ids=np.where(live, np.cumsum(new_span, axis=1, dtype=np.int32), np.int32(0)),
        positions=positions[..., None],
        targets=targets,
        loss_weights=loss_weights,
    )
