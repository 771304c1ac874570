"""Sample pictures of a data set that has nothing to do with digits."""

import numpy as np
import pytest

from mot_jax.config import Sample
from mot_jax.documents import Span
from mot_jax.evaluation.completion import codes_of, complete
from mot_jax.evaluation.pictures import Band, draw_bands, draw_panels, find_prompts, sample_picture, wrap
from mot_jax.vocabulary import build_vocabulary

pytest.importorskip("matplotlib")


def read_png(path) -> np.ndarray:
    from matplotlib import image

    return image.imread(str(path))


def test_a_direction_for_every_pair_and_pictures_first(dataset, small_run):
    prompts = find_prompts(dataset.split("validation"), dataset.vocabulary, small_run.sample)
    assert list(prompts) == [
        ("text", "image"),
        ("speech", "image"),
        ("text", "speech"),
        ("image", "speech"),
        ("image", "text"),
        ("speech", "text"),
    ]
    pairs = [d for d in dataset.split("validation") if len(d) == 2]
    for (source, to), spans in prompts.items():
        firsts = [first for first, second in pairs if (first.modality, second.modality) == (source, to)]
        assert spans == firsts[: small_run.sample.prompts]


def test_longer_documents_serve_where_no_pair_is_and_long_texts_are_cut():
    vocabulary = build_vocabulary(10, [("image", 4, 1)])
    text, image = Span("text", np.arange(10)), Span("image", np.array([2]))
    prompts = find_prompts([(text, image, text), (text,)], vocabulary, Sample(max_tokens=3))
    assert prompts == {("text", "image"): [Span("text", np.array([7, 8, 9]))]}
    assert find_prompts([(text,)], vocabulary, Sample()) == {}


def test_completions_are_whole_spans_of_what_was_asked(dataset, small_run, params):
    vocabulary = dataset.vocabulary
    sample = Sample(max_tokens=6, temperature=1.0)
    prompts = [[span] for span in find_prompts(dataset.split("validation"), vocabulary, sample)["text", "image"]]
    for to, least, most in (("image", 4, 4), ("speech", 1, 6), ("text", 1, 6)):
        spans = complete(small_run.model, params, vocabulary, prompts, to=to, sample=sample, seed=1)
        assert len(spans) == len(prompts)
        assert all(least <= len(codes) <= most for codes in spans)
        assert all(codes.min() >= 0 and codes.max() < vocabulary.modality(to).size for codes in spans)
        again = complete(small_run.model, params, vocabulary, prompts, to=to, sample=sample, seed=1)
        assert all(np.array_equal(a, b) for a, b in zip(spans, again, strict=True))


def test_codes_are_told_from_markers_and_from_other_modalities():
    vocabulary = build_vocabulary(10, [("image", 4, None)], bos=1, eos=2, pad=0)
    image = vocabulary.modality("image")
    tokens = np.array(
        [1, 5, image.begin, *vocabulary.to_tokens("image", np.array([3, 0])), image.end, 7, 2, 0], np.int32
    )
    np.testing.assert_array_equal(codes_of(vocabulary, "image", tokens), [3, 0])
    np.testing.assert_array_equal(codes_of(vocabulary, "text", tokens), [5, 7])


def test_the_sample_picture_shows_prompts_and_answers(tmp_path, dataset, small_run, params):
    path = sample_picture(
        small_run.model,
        params,
        dataset.vocabulary,
        dataset.load_codecs(),
        dataset,
        small_run.sample,
        0,
        tmp_path / "samples" / "step.png",
    )
    picture = read_png(path)
    again = sample_picture(
        small_run.model,
        params,
        dataset.vocabulary,
        dataset.load_codecs(),
        dataset,
        small_run.sample,
        0,
        tmp_path / "again.png",
    )
    np.testing.assert_array_equal(picture, read_png(again))
    bands = np.array_split(picture[:, :, :3], 6)
    assert all(len(np.unique(band.reshape(-1, 3), axis=0)) > 30 for band in bands)


def test_a_cell_shows_its_image_its_right_way_up(tmp_path):
    image = np.zeros((4, 4, 3), np.uint8)
    image[0, 0] = 255, 0, 0
    blank = read_png(draw_bands([Band("a → b", [image * 0], [image * 0])], tmp_path / "blank.png"))
    drawn = read_png(draw_bands([Band("a → b", [image], [image * 0])], tmp_path / "drawn.png"))
    rows, columns = np.nonzero((drawn != blank).any(-1))
    red = drawn[rows, columns, :3]
    assert (red[:, 0] > 0.3).all() and len(red) > 100
    dark_rows, dark_columns = np.nonzero(
        (drawn[:, :, :3] == 0).all(-1) & (np.arange(len(drawn)) < len(drawn) // 2)[:, None]
    )
    assert rows.max() < dark_rows.max() and columns.max() < dark_columns.max()


def test_text_is_wrapped_into_its_cell_and_never_read_as_markup(tmp_path):
    lines = wrap("word " * 100).splitlines()
    assert len(lines) <= 7 and max(map(len, lines)) <= 24 and lines[-1].endswith("…")
    assert wrap("one\n two\x07") == "one two·"
    odd = [r"$\frac{", "日本", "", "x" * 300, "[bold]"]
    assert read_png(draw_bands([Band("text → text", odd, odd)], tmp_path / "odd.png")).std() > 0.01
    nothing = np.zeros((40, 0), np.uint8)
    assert draw_bands([Band("text → speech", ["a"], [nothing])], tmp_path / "nothing.png").exists()


def test_panels_hold_their_images(tmp_path):
    image = np.zeros((20, 20, 3), np.uint8)
    image[:10] = 0, 0, 255
    picture = read_png(draw_panels({"one": image, "two": image}, tmp_path / "panels.png", columns=2, labels=["a", "b"]))
    blue = (picture[:, :, 2] > 0.9) & (picture[:, :, 0] < 0.1)
    assert 0.2 < blue.mean() < 0.6
