"""Documents and tokens: a round trip for every document, and damage is named."""

import numpy as np
import pytest

from mot_jax.documents import Span, canonical, from_tokens, to_tokens
from mot_jax.errors import DataError
from mot_jax.vocabulary import build_vocabulary

VOCABULARY = build_vocabulary(50, [("image", 32, 4), ("speech", 20, None)])
IMAGE, SPEECH = VOCABULARY.modality("image"), VOCABULARY.modality("speech")


def random_document(rng):
    spans = []
    for _ in range(rng.integers(0, 7)):
        modality = VOCABULARY.modalities[rng.integers(3)]
        length = rng.integers(0, 6) if modality.span_length is None else modality.span_length
        spans.append(Span(modality.name, rng.integers(0, modality.size, length).astype(np.int32)))
    return tuple(spans)


def test_round_trip(rng):
    for _ in range(300):
        document = random_document(rng)
        tokens = to_tokens(VOCABULARY, document)
        assert tokens.dtype == np.int32
        assert (tokens[0], tokens[-1]) == (VOCABULARY.bos, VOCABULARY.eos)
        assert from_tokens(VOCABULARY, tokens) == canonical(document)
        bare = to_tokens(VOCABULARY, document, bos=False, eos=False)
        assert np.array_equal(bare, tokens[1:-1])
        padded = np.concatenate([tokens, np.full(3, VOCABULARY.pad)])
        assert from_tokens(VOCABULARY, padded) == canonical(document)


def test_layout():
    document = (Span("text", np.array([3, 4])), Span("image", np.array([0, 1, 2, 31])), Span("speech", np.array([7])))
    first = VOCABULARY.code_tokens("image")[0]
    assert to_tokens(VOCABULARY, document).tolist() == [
        *(VOCABULARY.bos, 3, 4),
        *(IMAGE.begin, first, first + 1, first + 2, first + 31, IMAGE.end),
        *(SPEECH.begin, VOCABULARY.code_tokens("speech")[7], SPEECH.end),
        VOCABULARY.eos,
    ]


def test_canonical_joins_text_and_keeps_other_spans_apart():
    a, b, empty = np.array([1]), np.array([2, 3]), np.array([], int)
    document = (Span("text", a), Span("text", empty), Span("text", b), Span("speech", a), Span("speech", b))
    assert canonical(document) == (Span("text", np.array([1, 2, 3])), Span("speech", a), Span("speech", b))
    assert canonical((Span("text", empty),)) == ()
    assert canonical((Span("speech", empty),)) == (Span("speech", empty),)


def test_spans_are_compared_by_content():
    assert Span("text", np.array([1, 2])) == Span("text", np.array([1, 2], np.int16))
    assert Span("text", np.array([1, 2])) != Span("text", np.array([1, 3]))
    assert Span("text", np.array([1])) != Span("speech", np.array([1]))


def test_a_last_span_may_be_unfinished():
    tokens = to_tokens(VOCABULARY, (Span("text", np.array([1])), Span("image", np.array([5, 6, 7, 8]))))[:-4]
    assert from_tokens(VOCABULARY, tokens) == (Span("text", np.array([1])), Span("image", np.array([5, 6])))


def test_an_image_of_another_length_is_refused():
    with pytest.raises(DataError, match="image: a span has 3 codes, expected 4"):
        to_tokens(VOCABULARY, (Span("image", np.array([1, 2, 3])),))


def test_a_code_outside_its_range_is_refused():
    with pytest.raises(DataError, match=r"speech: code 20 is outside its range 0\.\.19"):
        to_tokens(VOCABULARY, (Span("speech", np.array([20])),))
    with pytest.raises(DataError, match="no modality 'smell'"):
        to_tokens(VOCABULARY, (Span("smell", np.array([0])),))


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([1, int(VOCABULARY.code_tokens("image")[0])], "at 1 has no place inside text"),
        ([IMAGE.begin, 1], "at 1 has no place inside image"),
        ([IMAGE.begin, SPEECH.begin], "at 1 has no place inside image"),
        ([IMAGE.begin, VOCABULARY.eos], "at 1 has no place inside image"),
        ([SPEECH.begin, IMAGE.end], "at 1 has no place inside speech"),
        ([1, IMAGE.end], "at 1 has no place inside text"),
        ([VOCABULARY.size], "outside the vocabulary"),
        ([-1], "outside the vocabulary"),
    ],
)
def test_a_token_out_of_place_is_named(tokens, expected):
    with pytest.raises(DataError, match=expected):
        from_tokens(VOCABULARY, np.array(tokens))
