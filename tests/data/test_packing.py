"""What packing must keep, whatever the documents: checked on random ones, token by token."""

import numpy as np
import pytest

from mot_jax.config import Data
from mot_jax.data import packing
from mot_jax.data.pipeline import evaluation_batches
from mot_jax.documents import Span, canonical, from_tokens, to_tokens
from mot_jax.errors import ConfigError
from mot_jax.vocabulary import build_vocabulary

VOCABULARY = build_vocabulary(50, [("image", 300, 6), ("speech", 20, None)])


def segments(batches):
    """The token pieces of every packed document, in row order, with their positions."""
    for batch in batches:
        for row in range(len(batch.tokens)):
            ids = batch.segment_ids[row]
            for segment in range(1, ids.max() + 1):
                (where,) = np.nonzero(ids == segment)
                assert np.array_equal(where, np.arange(where[0], where[-1] + 1)), "a document lies in one stretch"
                assert np.array_equal(batch.positions[row, where, 0], np.arange(len(where)))
                yield batch.tokens[row, where]


def multiset(pieces):
    return sorted(tuple(piece.tolist()) for piece in pieces)


def read(dataset, length, bins=4, rows=3):
    return evaluation_batches(dataset, Data(sequence_length=length, global_batch_size=rows, packing_bins=bins))


@pytest.mark.parametrize("bins", [1, 4, 16])
def test_every_document_is_packed_once_and_whole(write, random_documents, bins):
    documents = random_documents(100)
    packed = list(segments(read(write(validation=documents), 96, bins)))
    assert multiset(packed) == multiset(to_tokens(VOCABULARY, document) for document in documents)
    read_back = sorted(map(repr, (from_tokens(VOCABULARY, piece) for piece in packed)))
    assert read_back == sorted(map(repr, map(canonical, documents)))


@pytest.mark.parametrize("length", [10, 13, 40])
def test_long_documents_are_cut_in_their_text_alone(random_documents, length):
    for document in map(canonical, random_documents(100, text=60)):
        whole = to_tokens(VOCABULARY, document)
        pieces = packing.document_pieces(VOCABULARY, document, length)
        assert np.array_equal(np.concatenate(pieces), whole)
        assert all(0 < len(piece) <= length for piece in pieces)
        if len(whole) <= length:
            assert len(pieces) == 1
        for number, piece in enumerate(pieces):
            from_tokens(VOCABULARY, piece)  # raises where a span is cut from its markers
            opened = np.isin(piece, [m.begin for m in VOCABULARY.modalities[1:]]).sum()
            closed = np.isin(piece, [m.end for m in VOCABULARY.modalities[1:]]).sum()
            assert opened == closed
            assert (piece == VOCABULARY.bos).any() == (number == 0)
            assert (piece == VOCABULARY.eos).any() == (number == len(pieces) - 1)
            assert len(piece) > 1 or piece[0] not in (VOCABULARY.bos, VOCABULARY.eos)


def test_pieces_are_as_long_as_they_can_be():
    text, speech = Span("text", np.arange(20)), Span("speech", np.arange(5))
    lengths = [len(piece) for piece in packing.document_pieces(VOCABULARY, (text, speech, text), 10)]
    assert lengths == [10, 10, 1 + 7 + 2, 10, 8 + 1]  # BOS and 9; 10; 1, the speech, 2; 10; 8 and EOS
    lengths = [len(piece) for piece in packing.document_pieces(VOCABULARY, (Span("text", np.arange(19)),), 10)]
    assert lengths == [10, 9, 2]  # EOS keeps the last code with it


def test_a_document_with_a_span_longer_than_a_row_is_left_out(write):
    long, short = (Span("speech", np.zeros(30, np.int32)),), (Span("speech", np.ones(3, np.int32)),)
    assert packing.document_pieces(VOCABULARY, long, 32) == []
    assert packing.document_pieces(VOCABULARY, long, 34) != []
    packed = list(segments(read(write(validation=[short, long, short]), 32)))
    assert multiset(packed) == multiset([to_tokens(VOCABULARY, short)] * 2)


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (9, "Data.sequence_length: 9 is shorter than an image span of 6 codes with its markers (10)"),
        (1, "Data.sequence_length: 1 is shorter than an image span of 6 codes with its markers (10)"),
    ],
)
def test_rows_too_short_for_a_fixed_span_are_refused(write, random_documents, length, message):
    dataset = write(validation=random_documents(3))
    with pytest.raises(ConfigError) as caught:
        next(read(dataset, length))
    assert str(caught.value) == message
    next(read(dataset, 10))


def expected_columns(tokens, segment_ids):
    """Token by token, what a row's derived columns must be."""
    spans = modalities = targets = weights = ()
    span = 0
    for place, (token, segment) in enumerate(zip(tokens, segment_ids, strict=True)):
        modality = 0
        for index, m in enumerate(VOCABULARY.modalities):
            if any(first <= token < first + count for first, count in m.ranges):
                modality = index
        follows = place > 0 and segment == segment_ids[place - 1]
        span += segment > 0 and not (follows and modality == modalities[-1])
        leads = place + 1 < len(tokens) and segment > 0 and segment == segment_ids[place + 1]
        modalities += (modality,)
        spans += (span if segment > 0 else 0,)
        targets += (tokens[place + 1] if leads else VOCABULARY.pad,)
        weights += (float(leads),)
    return modalities, spans, targets, weights


def test_a_batch_says_of_each_token_what_it_is(write, random_documents):
    batches = list(read(write(validation=random_documents(60, text=40)), 33))
    for batch in batches:
        for name, dtype in (("loss_weights", np.float32), ("tokens", np.int32), ("span_ids", np.int32)):
            assert getattr(batch, name).shape == (3, 33) and getattr(batch, name).dtype == dtype
        assert batch.positions.shape == (3, 33, 1)
        for row in range(3):
            modalities, spans, targets, weights = expected_columns(batch.tokens[row], batch.segment_ids[row])
            assert batch.modality_ids[row].tolist() == list(modalities)
            assert batch.span_ids[row].tolist() == list(spans)
            assert batch.targets[row].tolist() == list(targets)
            assert batch.loss_weights[row].tolist() == list(weights)
            padding = batch.segment_ids[row] == 0
            assert (batch.tokens[row][padding] == VOCABULARY.pad).all()
            assert not (padding[:-1] & ~padding[1:]).any(), "padding is at the end"
    assert sum((batch.span_ids > 1).sum() for batch in batches)


def test_more_bins_waste_less(write, random_documents):
    dataset = write(validation=random_documents(100))
    fill = {bins: np.mean([(b.segment_ids > 0).mean() for b in list(read(dataset, 96, bins))[:-1]]) for bins in (1, 16)}
    assert fill[16] > fill[1] > 0.5
