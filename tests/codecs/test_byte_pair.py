"""Byte-pair text: round trips, training, a tokenizer of the user's, bad input."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mot_jax.codecs import BytePairText, codec_class
from mot_jax.errors import DataError

TEXTS = ["the digit seven in bold strokes", "a handwritten seven", "the spoken word seven"] * 20


@pytest.fixture(scope="module")
def codec() -> BytePairText:
    return BytePairText.train(TEXTS, 280)


def test_any_string_comes_back(codec):
    for text in ("", "the digit seven", "  two  spaces\n\ttab", "Ünïcödé 数字 🎈", "\x00\x7f", "x" * 1000):
        assert codec.decode(codec.encode(text)) == text


def test_training_merges_what_is_frequent(codec):
    assert codec.size == 280
    assert len(codec.encode(" seven")) == 1
    assert len(codec.encode(" sxvxn")) >= 5


def test_training_again_gives_the_same_ids(codec):
    again = BytePairText.train(TEXTS, 280)
    assert again.tokenizer.to_str() == codec.tokenizer.to_str()


def test_many_at_once_are_the_same_as_one_by_one(codec):
    for text, codes in zip(TEXTS, codec.encode_many(TEXTS), strict=True):
        np.testing.assert_array_equal(codes, codec.encode(text))
        assert codes.dtype == np.int32


def test_saved_and_loaded_is_equal(codec, tmp_path):
    codec.save(tmp_path)
    loaded = codec_class("byte_pair").load(tmp_path)
    assert loaded.size == codec.size
    assert (loaded.pad_id, loaded.bos_id, loaded.eos_id) == (None, None, None)
    np.testing.assert_array_equal(loaded.encode(TEXTS[0]), codec.encode(TEXTS[0]))


def foreign_tokenizer() -> Tokenizer:
    vocabulary = {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 7}  # ids with a hole
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=12)
    return tokenizer


def test_a_users_tokenizer_keeps_its_ids_and_markers(tmp_path):
    path = tmp_path / "tokenizer.json"
    foreign_tokenizer().save(str(path))
    codec = BytePairText.from_file(path, bos="<s>", eos="</s>")
    assert codec.encode("abba").tolist() == [7, 3, 2]  # neither cut at 2 nor padded to 12
    assert codec.size == 8  # the largest id, not the number of entries
    assert (codec.pad_id, codec.bos_id, codec.eos_id) == (None, 0, 1)
    saved = tmp_path / "saved"
    saved.mkdir()
    codec.save(saved)
    loaded = BytePairText.load(saved)
    assert (loaded.pad_id, loaded.bos_id, loaded.eos_id) == (None, 0, 1)


def test_bad_input_is_named(codec, tmp_path):
    with pytest.raises(DataError, match="expected a string, got int"):
        codec.encode(7)
    with pytest.raises(DataError, match=r"outside 0\.\.279"):
        codec.decode(np.array([5, 280]))
    with pytest.raises(DataError, match="256 bytes"):
        BytePairText.train(TEXTS, 100)
    with pytest.raises(DataError, match="no such tokenizer file"):
        BytePairText.from_file(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match=r"broken\.json: not a tokenizer\.json"):
        BytePairText.from_file(tmp_path / "broken.json")
    foreign_tokenizer().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match="did you mean '<s>'"):
        BytePairText.from_file(tmp_path / "tokenizer.json", bos="<S>")
