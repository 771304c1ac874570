"""Token ids: text keeps its codec's, the rest is appended, and every id has one owner."""

import json

import numpy as np
import pytest

from mot_jax.errors import DataError
from mot_jax.vocabulary import Modality, Vocabulary, build_vocabulary


@pytest.fixture
def vocabulary():
    return build_vocabulary(100, [("image", 32, 16), ("speech", 20, None)])


def test_text_keeps_its_ids_and_the_rest_is_appended(vocabulary):
    assert (vocabulary.pad, vocabulary.bos, vocabulary.eos) == (100, 101, 102)
    assert vocabulary.names == ("text", "image", "speech")
    assert vocabulary.code_tokens("text").tolist() == list(range(100))
    assert vocabulary.code_tokens("image").tolist() == list(range(107, 139))
    assert vocabulary.code_tokens("speech").tolist() == list(range(139, 159))
    assert vocabulary.size == 159
    assert (vocabulary.modality("image").span_length, vocabulary.modality("speech").span_length) == (16, None)


def test_every_id_belongs_to_exactly_one_thing(vocabulary):
    marks = [vocabulary.pad, vocabulary.bos, vocabulary.eos]
    marks += [mark for m in vocabulary.modalities for mark in (m.begin, m.end) if mark is not None]
    codes = np.concatenate([vocabulary.code_tokens(name) for name in vocabulary.names])
    assert sorted([*marks, *codes]) == list(range(vocabulary.size))


def test_markers_and_padding_are_text_and_carry_no_code(vocabulary):
    for mark in (vocabulary.pad, vocabulary.bos, vocabulary.eos, vocabulary.modality("image").begin):
        assert vocabulary.token_modality[mark] == 0
        assert vocabulary.token_code[mark] == -1


def test_token_tables_invert_the_codes(vocabulary):
    for index, name in enumerate(vocabulary.names):
        codes = np.arange(vocabulary.modality(name).size)
        tokens = vocabulary.to_tokens(name, codes)
        assert (vocabulary.token_modality[tokens] == index).all()
        assert (vocabulary.token_code[tokens] == codes).all()


def test_a_text_codec_s_own_special_ids_are_kept():
    vocabulary = build_vocabulary(50, [("image", 4, 4)], pad=0, eos=49)
    assert (vocabulary.pad, vocabulary.bos, vocabulary.eos) == (0, 50, 49)
    assert (vocabulary.modality("image").begin, vocabulary.modality("image").end) == (51, 52)
    assert vocabulary.size == 57


def test_a_modality_s_ids_need_not_be_contiguous():
    image = Modality("image", ((20, 3), (10, 2)), span_length=2, begin=30, end=31)
    vocabulary = Vocabulary((Modality("text", ((0, 5),)), image), pad=5, bos=6, eos=7)
    assert vocabulary.size == 32
    assert vocabulary.to_tokens("image", np.array([0, 2, 3, 4])).tolist() == [20, 22, 10, 11]
    assert vocabulary.token_code[[20, 22, 10, 11]].tolist() == [0, 2, 3, 4]
    assert vocabulary.token_modality[15] == 0 and vocabulary.token_code[15] == -1  # a hole


def test_round_trip_through_json(vocabulary):
    assert Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json()))) == vocabulary


@pytest.mark.parametrize(("codes", "bad"), [([0, 32], 32), ([-1], -1), ([31, 40, 50], 40)])
def test_a_code_outside_its_range_is_named(vocabulary, codes, bad):
    with pytest.raises(DataError, match=rf"image: code {bad} is outside its range 0..31"):
        vocabulary.to_tokens("image", np.array(codes))


def test_an_unknown_modality_is_answered_with_the_nearest(vocabulary):
    with pytest.raises(DataError, match=r"no modality 'imag' in the vocabulary; did you mean 'image'\?"):
        vocabulary.index("imag")


def test_modality_names_differ():
    with pytest.raises(DataError, match="must differ"):
        build_vocabulary(10, [("image", 4, 4), ("image", 4, 4)])
    with pytest.raises(DataError, match="must differ"):
        build_vocabulary(10, [("text", 4, 4)])
