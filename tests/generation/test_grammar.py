"""The grammar is sound (what it lets through is a document) and complete (every document that fits is let through)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mot_jax.documents import Span, from_tokens, to_tokens
from mot_jax.generation.grammar import State, advance, legal, make_grammar
from mot_jax.vocabulary import Modality, Vocabulary, build_vocabulary

CHAMELEON = build_vocabulary(12, [("image", 9, 4), ("speech", 7, None)])
OTHERS = {
    "three": CHAMELEON,
    "text only": build_vocabulary(6),
    "five": build_vocabulary(5, [("a", 3, 1), ("b", 2, None), ("c", 4, 6), ("d", 1, None)], eos=2),
    # a pretrained tokenizer's own BOS/EOS, and image codes in two separate ranges
    "scattered": Vocabulary(
        (Modality("text", ((0, 10),)), Modality("image", ((30, 3), (14, 4)), 3, begin=12, end=40)), pad=11, bos=1, eos=2
    ),
}


def start(rows: int, mode: int = 0) -> State:
    return State(mode=jnp.full(rows, mode), used=jnp.zeros(rows, jnp.int32), done=jnp.zeros(rows, bool))


def walk(vocabulary, limits, *, max_tokens=5, single=False, mode=0, seed=0):
    """Uniformly drawn legal tokens, row by row: what an untrained model could write."""
    grammar = make_grammar(vocabulary, vocabulary.size + 3, max_tokens=max_tokens, single=single)
    state, rows = start(len(limits), mode), [[] for _ in limits]
    step_legal, step = jax.jit(legal), jax.jit(advance)
    generator = np.random.default_rng(seed)
    for i in range(max(limits)):
        left = jnp.asarray(limits, jnp.int32) - i
        allowed = np.asarray(step_legal(grammar, state, left))
        assert allowed.any(axis=1).all()
        assert not allowed[:, vocabulary.bos].any() and not allowed[:, vocabulary.size :].any()
        assert not allowed[~np.asarray(state.done), vocabulary.pad].any()
        token = np.array([generator.choice(np.flatnonzero(row)) for row in allowed], np.int32)
        state, kept = step(grammar, state, jnp.asarray(token), left)
        for row, keep, value in zip(rows, np.asarray(kept), token, strict=True):
            if keep:
                row.append(int(value))
    assert np.asarray(state.done).all()
    return rows


@pytest.mark.parametrize("name", OTHERS)
def test_every_walk_is_a_document_with_whole_spans(name):
    vocabulary = OTHERS[name]
    limits = list(range(1, 41))
    rows = walk(vocabulary, limits)
    seen = set()
    for row, limit in zip(rows, limits, strict=True):
        assert len(row) <= limit
        assert vocabulary.eos not in row
        document = from_tokens(vocabulary, np.asarray(row))
        # from_tokens forgives a missing end marker at the end; the round trip does not
        np.testing.assert_array_equal(to_tokens(vocabulary, document, bos=False, eos=False), row)
        for span in document:
            seen.add(span.modality)
            assert span.modality == "text" or 1 <= len(span.codes) <= max(
                5, vocabulary.modality(span.modality).span_length or 0
            )
    assert seen == set(vocabulary.names)  # nothing is unreachable


@pytest.mark.parametrize("name", OTHERS)
def test_every_document_that_fits_is_legal(name):
    vocabulary = OTHERS[name]
    generator = np.random.default_rng(1)
    grammar = make_grammar(vocabulary, vocabulary.size, max_tokens=5, single=False)
    specials = {vocabulary.pad, vocabulary.bos, vocabulary.eos}
    for _ in range(5):
        spans = []
        for _ in range(6):
            modality = vocabulary.modalities[generator.integers(len(vocabulary.modalities))]
            codes = generator.integers(0, modality.size, modality.span_length or generator.integers(1, 6))
            if modality.begin is None:
                codes = np.array([c for c in codes if c not in specials], np.int32)
            spans.append(Span(modality.name, codes))
        tokens = to_tokens(vocabulary, spans, bos=False)
        state, step_legal, step = start(1), jax.jit(legal), jax.jit(advance)
        for i, token in enumerate(tokens):
            left = jnp.array([len(tokens) - i], jnp.int32)  # it fits exactly
            assert step_legal(grammar, state, left)[0, token], (tokens, i)
            assert not state.done[0]
            state, kept = step(grammar, state, jnp.array([token]), left)
            assert bool(kept[0]) == (token != vocabulary.eos)
        assert state.done[0]


def test_a_span_opens_only_where_the_whole_of_it_fits():
    image, speech = CHAMELEON.modality("image"), CHAMELEON.modality("speech")
    grammar = make_grammar(CHAMELEON, CHAMELEON.size, max_tokens=5, single=False)
    allowed = np.asarray(legal(grammar, start(8), jnp.arange(1, 9)))
    np.testing.assert_array_equal(allowed[:, image.begin], np.arange(1, 9) >= 1 + 4 + 1)
    np.testing.assert_array_equal(allowed[:, speech.begin], np.arange(1, 9) >= 1 + 1 + 1)
    assert allowed[:, CHAMELEON.eos].all()


def test_fixed_spans_are_exact_and_variable_spans_close_by_choice_or_by_force():
    grammar = make_grammar(CHAMELEON, CHAMELEON.size, max_tokens=5, single=False)
    for name, index, least, most in (("image", 1, 4, 4), ("speech", 2, 1, 5)):
        modality = CHAMELEON.modality(name)
        for used in range(most + 1):
            state = dataclasses.replace(start(1, index), used=jnp.array([used]))
            allowed = set(np.flatnonzero(np.asarray(legal(grammar, state, jnp.array([50])))[0]))
            expected = set(CHAMELEON.code_tokens(name)) if used < most else set()
            assert allowed == expected | ({modality.end} if used >= least else set())
    last_place = dataclasses.replace(start(1, 2), used=jnp.array([2]))
    assert set(np.flatnonzero(legal(grammar, last_place, jnp.array([1]))[0])) == {CHAMELEON.modality("speech").end}


def test_single_text_stops_at_any_marker_and_single_spans_when_they_close():
    for row in walk(CHAMELEON, [12] * 50, single=True):
        assert row and set(row) <= set(CHAMELEON.code_tokens("text"))
    for row in walk(CHAMELEON, [30] * 20, single=True, mode=1):
        assert len(row) == 4 and set(row) <= set(CHAMELEON.code_tokens("image"))
    lengths = {len(row) for row in walk(CHAMELEON, [30] * 60, single=True, mode=2)}
    assert lengths == {1, 2, 3, 4, 5}
