"""The digits: what is read and measured, what is held out, what the documents hold, and the same bytes twice."""

import collections
import dataclasses
import hashlib
import itertools
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from mot_jax.config import Digits
from mot_jax.data.dataset import open_dataset
from mot_jax.data.digits import captions, evaluation_set, images, preparation, prose, speech
from mot_jax.errors import ConfigError, DataError

pytest.importorskip("espeakng_loader", reason="the extra `digits` is not installed")

CONFIG = Digits(documents=300, text_codes=512)
FLAGS = ["--gin.Digits.documents=300", "--gin.Digits.text_codes=512"]
PAIRS = set(itertools.permutations(("text", "image", "speech"), 2))


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    training: preparation.Raw
    held_out: preparation.Raw
    directory: pathlib.Path
    reports: list[tuple[str, float]]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Prepared:
    """`prepare` in its two halves, so that tests see what was read."""
    directory, reports = tmp_path_factory.mktemp("digits") / "set", []

    def report(what: str, fraction: float) -> None:
        reports.append((what, fraction))

    training, held_out = preparation.read(CONFIG, report)
    preparation.write(CONFIG, training, held_out, str(directory), report)
    return Prepared(training, held_out, directory, reports)


@pytest.fixture(scope="module")
def dataset(prepared):
    return open_dataset(prepared.directory)


@pytest.fixture(scope="module")
def evaluation(prepared):
    return evaluation_set.load(str(prepared.directory))


def files(directory: pathlib.Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file()
    }


def texts(dataset, document) -> list[str]:
    codec = dataset.load_codecs()["text"]
    return [codec.decode(span.codes) for span in document if span.modality == "text"]


def test_the_command_line_prepares_the_same_bytes(prepared, tmp_path):
    """Another process, with another hash seed: no set's order, clock or state of the synthesiser gets in."""
    environment = {**os.environ, "MOT_JAX_CACHE": str(tmp_path), "PYTHONHASHSEED": "123"}
    command = [sys.executable, "-m", "mot_jax.data.digits", *FLAGS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert files(pathlib.Path(done.stdout.strip())) == files(prepared.directory)


def test_progress_goes_from_start_to_end(prepared):
    fractions = [fraction for _, fraction in prepared.reports]
    assert fractions == sorted(fractions) and (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert all(what for what, _ in prepared.reports)


def test_images_voices_and_prose_are_held_out(prepared):
    training, held_out = prepared.training, prepared.held_out
    assert (len(training.images), len(held_out.images)) == (4500, 500)
    assert np.bincount(held_out.image_labels).tolist() == [50] * 10
    assert not {image.tobytes() for image in training.images} & {image.tobytes() for image in held_out.images}
    assert len(set(held_out.utterances.voices)) == 12 and len(set(training.utterances.voices)) > 50
    assert not set(training.utterances.voices) & set(held_out.utterances.voices)
    assert held_out.prose and not set(training.prose) & set(held_out.prose)


def test_each_split_is_made_of_its_own_part(prepared, dataset, evaluation):
    codecs = dataset.load_codecs()
    shifted = [images.resize(images.shift(prepared.training.images, *by), 16) for by in images.SHIFTS]
    allowed = {
        ("train", "image"): {c.tobytes() for some in shifted for c in codecs["image"].encode_many(some)},
        ("train", "speech"): {codes.tobytes() for codes in evaluation.training_speech},
        ("validation", "image"): {codes.tobytes() for codes in evaluation.heldout_image_codes},
        ("validation", "speech"): {codes.tobytes() for codes in evaluation.heldout_speech},
    }
    held = codecs["image"].encode_many(images.resize(prepared.held_out.images, 16))
    np.testing.assert_array_equal(evaluation.heldout_image_codes, held)
    for split in ("train", "validation"):
        for document in dataset.split(split):
            for span in document:
                if span.modality != "text":
                    assert span.codes.tobytes() in allowed[split, span.modality]
            if len(document) == 1:
                part = prepared.training if split == "train" else prepared.held_out
                assert texts(dataset, document)[0] in part.prose


@pytest.mark.parametrize(("split", "count"), [("train", 300), ("validation", 40)])
def test_the_mix_of_documents(dataset, split, count):
    assert dataset.vocabulary.names == ("text", "image", "speech")
    orders = collections.Counter(tuple(span.modality for span in document) for document in dataset.split(split))
    pairs = {order: n for order, n in orders.items() if len(order) == 2}
    triples = [n for order, n in orders.items() if len(order) == 3]
    assert set(pairs) == PAIRS and set(pairs.values()) == {count // 10}
    assert len(triples) == 6 and sum(triples) == count // 4
    assert orders["text",] == count - 6 * (count // 10) - count // 4


def test_the_spans_of_a_document_are_of_one_digit(dataset, evaluation):
    possible = {"image": collections.defaultdict(set), "speech": collections.defaultdict(set)}
    for codes, digit in zip(evaluation.heldout_image_codes, evaluation.heldout_image_labels, strict=True):
        possible["image"][codes.tobytes()].add(digit)
    for codes, digit in zip(evaluation.heldout_speech, evaluation.heldout_speech_labels, strict=True):
        possible["speech"][codes.tobytes()].add(digit)
    for document in dataset.split("validation"):
        if len(document) > 1:
            digits = [possible[span.modality][span.codes.tobytes()] for span in document if span.modality != "text"]
            digits += [{evaluation.digit_in(text)} for text in texts(dataset, document)]
            assert set.intersection(*digits)


def test_captions_beside_speech_alone_promise_nothing_about_strokes(dataset):
    attributes = re.compile("|".join((*captions.THICKNESSES, "leaning", "upright", "hand", "picture")))
    beside_images = []
    for document in dataset.split("train"):
        modalities = {span.modality for span in document}
        if modalities == {"text", "speech"}:
            assert not attributes.search(texts(dataset, document)[0])
        elif {"text", "image"} <= modalities:
            beside_images += texts(dataset, document)
    described = sum(any(word in text for word in captions.THICKNESSES) for text in beside_images)
    assert 0.3 < described / len(beside_images) < 0.7


def test_speech_units_say_the_digit_of_voices_never_heard(evaluation):
    def features(utterances):
        halves = [half for codes in utterances for half in np.array_split(codes, 2)]
        counts = np.stack([np.bincount(half, minlength=CONFIG.speech_codes) for half in halves])
        return np.sqrt(counts).reshape(len(utterances), -1)

    labels, train = evaluation.training_speech_labels, features(evaluation.training_speech)
    targets = np.eye(10)[labels] - 0.1
    weights = np.linalg.solve(train.T @ train + 10 * np.eye(train.shape[1]), train.T @ targets)
    read = (features(evaluation.heldout_speech) @ weights).argmax(1)
    assert np.mean(read == evaluation.heldout_speech_labels) > 0.85


def test_resynthesised_words_keep_most_of_their_units(dataset, evaluation):
    codec = dataset.load_codecs()["speech"]
    words = evaluation.heldout_speech[::5]  # 5 and the 12 voices share no factor: every voice speaks
    again = [codec.encode(codec.decode(codes)) for codes in words]
    assert np.mean(np.concatenate(again) == np.concatenate(words)) > 0.6


def test_decoded_images_are_near_the_originals_and_readable(prepared, dataset, evaluation):
    codec = dataset.load_codecs()["image"]
    decoded = codec.decode_many(evaluation.heldout_image_codes).astype(np.float32)
    original = images.resize(prepared.held_out.images, 16)
    assert 10 * np.log10(255**2 / np.mean((decoded - original) ** 2)) > 20.5  # decibels
    known = codec.decode_many(evaluation.training_image_codes).astype(np.float32).reshape(4500, -1)
    distance = (known**2).sum(1) - 2 * decoded.reshape(500, -1) @ known.T
    read = evaluation.training_image_labels[distance.argmin(1)]
    assert np.mean(read == evaluation.heldout_image_labels) > 0.9


def test_the_evaluation_set_is_whole(prepared, evaluation):
    for codes, labels in (
        (evaluation.training_image_codes, evaluation.training_image_labels),
        (evaluation.heldout_image_codes, evaluation.heldout_image_labels),
        (evaluation.training_speech, evaluation.training_speech_labels),
        (evaluation.heldout_speech, evaluation.heldout_speech_labels),
        (evaluation.heldout_captions, evaluation.heldout_image_labels),
    ):
        assert len(codes) == len(labels) and set(labels.tolist()) == set(range(10))
    digits = [evaluation.digit_in(caption) for caption in evaluation.heldout_captions]
    np.testing.assert_array_equal(digits, evaluation.heldout_image_labels)
    for prompt in evaluation.image_prompts + evaluation.speech_prompts:
        assert evaluation.digit_in(prompt.format(digit="seven").upper()) == 7
    assert evaluation.digit_in("someone speaks") is None
    assert set(evaluation.heldout_voices) == set(prepared.held_out.utterances.voices)


def test_a_damaged_evaluation_set_is_named(prepared, tmp_path):
    with pytest.raises(DataError, match=r"digits\.npz: not found"):
        evaluation_set.load(str(tmp_path))
    content = (prepared.directory / evaluation_set.FILE).read_bytes()
    (tmp_path / "evaluation").mkdir()
    for damaged in (content[: len(content) // 2], content[:2000] + b"?" * 500 + content[2500:], b""):
        (tmp_path / evaluation_set.FILE).write_bytes(damaged)
        with pytest.raises(DataError, match=r"digits\.npz: damaged evaluation set"):
            evaluation_set.load(str(tmp_path))


def test_shifts_move_the_ink_and_sizes_keep_it(prepared):
    pictures = prepared.training.images[:50]
    np.testing.assert_array_equal(images.shift(pictures, 1, -1)[:, 1:, :-1], pictures[:, :-1, 1:])
    assert images.SHIFTS[0] == (0, 0) and len(set(images.SHIFTS)) == 9
    small = images.resize(pictures, 16).astype(float)
    np.testing.assert_allclose(small.mean((1, 2)), pictures.mean((1, 2)), rtol=0.03)
    np.testing.assert_array_equal(images.resize(pictures, 24), pictures[:, 2:26, 2:26])
    np.testing.assert_array_equal(images.resize(pictures, 28), pictures)


def stroke(width: float, degrees: float) -> np.ndarray:
    """A 28 x 28 picture of one stroke from the bottom up, leaning to the right."""
    y, x = np.mgrid[0:28, 0:28].astype(float)
    off = x - 13.5 + np.tan(np.radians(degrees)) * (y - 13.5)
    ink = np.clip(width / 2 + 0.5 - np.abs(off * np.cos(np.radians(degrees))), 0, 1) * (np.abs(y - 13.5) < 10)
    return np.rint(255 * ink).astype(np.uint8)


def test_strokes_are_measured():
    pictures = np.stack([stroke(width, degrees) for width in (2, 4) for degrees in (-25, 0, 25)])
    np.testing.assert_allclose(captions.slant(pictures), [-25, 0, 25] * 2, atol=2)
    thickness = captions.stroke_thickness(pictures)
    assert thickness[3:].min() > 1.4 * thickness[:3].max()
    sayings = captions.image_captions(pictures, np.full(6, 8), np.array([1.0, np.mean(thickness)]))
    assert "a medium eight, leaning left" in sayings[0] and "a bold eight, upright" in sayings[4]


def test_prose_reads_as_sentences(prepared):
    passages = prepared.training.prose + prepared.held_out.prose
    assert len(set(passages)) == len(passages) > 5000
    assert all(len(passage) >= prose.SHORTEST and ">>>" not in passage for passage in passages)
    assert np.mean([len(passage) <= prose.LONGEST for passage in passages]) > 0.9


def test_an_unknown_voice_is_refused():
    with pytest.raises(DataError, match="no voice variant 'nobody'"):
        speech.synthesise(speech.find_espeak(), (("one", "en-us+nobody", 150, 50, 50),), 0)
    with pytest.raises(DataError, match="no voice 'xx-nowhere"):
        speech.synthesise(speech.find_espeak(), (("one", "xx-nowhere+f1", 150, 50, 50),), 0)


@pytest.mark.parametrize("package", ["mlxtend", "espeakng_loader"])
def test_a_missing_package_is_named_with_the_way_to_get_it(package, tmp_path):
    program = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name, *rest: None if name == {package!r} else find(name, *rest)\n"
        "from mot_jax.cli import run_main\n"
        "from mot_jax.data.digits.__main__ import main\n"
        "sys.exit(run_main(main, ['--gin.Digits.documents=300']))\n"
    )
    environment = {**os.environ, "MOT_JAX_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'mot_jax[digits]'" in done.stderr.splitlines()[-1]
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 20}, "Digits.image_size: 20 pixels; expected 16, 24 or 28"),
        ({"patch_size": 5}, "Digits.patch_size: 5 does not divide image_size = 16"),
        ({"patch_size": 0}, "Digits.patch_size: expected at least 1, got 0"),
        ({"text_codes": 100}, "Digits.text_codes: expected at least 256, got 100"),
        ({"image_codes": 1}, "Digits.image_codes: expected at least 2, got 1"),
        ({"documents": 0}, "Digits.documents: expected at least 1, got 0"),
    ],
)
def test_impossible_settings_are_refused(change, message, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(message)):
        preparation.prepare(dataclasses.replace(CONFIG, **change), str(tmp_path / "set"), lambda what, fraction: None)
