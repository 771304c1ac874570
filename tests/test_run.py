"""A run directory, loaded where nothing else is left, answers prompts of any modality."""

import dataclasses
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

import mot_jax
from mot_jax.codecs import BytePairText, ImagePatches, SpeechUnits
from mot_jax.config import Data, Model, Run, Sample, resolve
from mot_jax.config.text import run_text
from mot_jax.data.dataset import DatasetWriter, copy_artifacts
from mot_jax.documents import Span
from mot_jax.errors import UserError
from mot_jax.run import png
from mot_jax.training.checkpoint import Checkpoints
from tests.generation.models import random_params

WORDS = ["a bold seven", "a thin one leaning left", "nine", "a medium three, upright"]
ROOT = pathlib.Path(mot_jax.__file__).parent.parent


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    params: dict
    step: object


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    """A run as training leaves it, moved away from where it was made; its data set is gone."""
    generator = np.random.default_rng(0)
    place = tmp_path_factory.mktemp("made")
    images = generator.integers(0, 256, (30, 8, 8)).astype(np.uint8)
    codecs = {
        "text": BytePairText.train(WORDS, 280),
        "image": ImagePatches.fit(images, patch_size=4, codes=12),
        "speech": SpeechUnits.fit(generator.normal(size=(50, 80)).astype(np.float32), codes=10),
    }
    with DatasetWriter(place / "data", codecs) as writer:
        for split in ("train", "validation"):
            writer.add(
                split, (Span("text", codecs["text"].encode(WORDS[0])), Span("image", codecs["image"].encode(images[0])))
            )
        vocabulary = writer.vocabulary
    model = Model(dim=32, num_layers=1, num_heads=4, ffn_dim=48)
    run = Run(model=model, data=Data(sequence_length=64), sample=Sample(max_tokens=12))
    directory = place / "run"
    directory.mkdir()
    (directory / "config.gin").write_text(run_text(run))
    copy_artifacts(place / "data", directory / "artifacts")
    resolved = resolve(model, vocabulary.names, vocabulary.size)
    with Checkpoints(directory / "checkpoints", keep=3) as checkpoints:
        for step in (10, 20):
            state = State(random_params(resolved, seed=step), jnp.int32(step))
            checkpoints.save(step, state, {}, {}, wait=True)
    moved = tmp_path_factory.mktemp("elsewhere") / "run"
    shutil.move(directory, moved)
    shutil.rmtree(place)
    return moved


@pytest.fixture(scope="module")
def run(run_directory):
    return mot_jax.load(run_directory)


def picture():
    return np.random.default_rng(1).integers(0, 256, (8, 8)).astype(np.uint8)


def test_every_modality_answers_with_a_value_of_its_codec(run):
    drawn = run.generate("a bold seven", to="image")
    assert drawn.value.shape == (8, 8) and drawn.value.dtype == np.uint8
    np.testing.assert_array_equal(drawn.value, run.codecs["image"].decode(drawn.codes))
    assert [span.modality for span in drawn.document] == ["image"]
    read = run.generate([("image", picture())], to="text")
    assert isinstance(read.value, str) and len(read.codes) <= 12
    said = run.generate(["nine ", ("image", picture()), "!"], to="speech", max_tokens=3)
    assert said.value.dtype == np.int16 and 1 <= len(said.codes) <= 3
    free = run.generate("a", temperature=1.5, max_tokens=16)  # a byte that is no text comes back as three
    assert isinstance(free.value, str)
    again = run.generate(free.parts[:1] if free.parts else "", to="text")  # what came out may go in
    assert isinstance(again.value, str)


def test_a_batch_answers_each_prompt_as_alone_and_by_seed(run):
    together = run.generate_batch(["nine", "a bold seven", [Span("speech", np.array([1, 2, 3]))]], to="image")
    assert len(together) == 3
    np.testing.assert_array_equal(together[0].codes, run.generate("nine", to="image").codes)
    seeds = {tuple(run.generate("nine", to="image", seed=seed).codes) for seed in (0, 1, 2, 0)}
    assert len(seeds) == 3
    greedy = {tuple(run.generate("nine", to="image", seed=seed, temperature=0.0).codes) for seed in (0, 1)}
    assert len(greedy) == 1


def test_prompts_take_the_form_documents_have(run):
    text = run.codecs["text"].encode("nine")
    spans = run.document(["ni", "ne", ("image", picture())])
    assert [span.modality for span in spans] == ["text", "image"]  # neighbouring texts are one
    assert run.document("nine") == (Span("text", text),)
    assert run.document(spans) == spans
    assert run.document(("image", picture())) == spans[1:]
    assert run.document("") == ()


def test_an_answer_shows_itself(run):
    drawn = run.generate("nine", to="image")
    assert repr(drawn) == "Generated(<image: 4 codes>)"
    seen = matplotlib.image.imread(io.BytesIO(drawn._repr_png_()))
    np.testing.assert_array_equal(np.rint(seen[::32, ::32] * 255), drawn.value)  # each pixel 32 times as large
    assert seen.shape == (256, 256)
    colour = np.random.default_rng(0).integers(0, 256, (3, 5, 3)).astype(np.uint8)
    np.testing.assert_array_equal(np.rint(matplotlib.image.imread(io.BytesIO(png(colour))) * 255), colour)
    read = run.generate([("image", picture())], to="text")
    assert repr(read) == f"Generated({read.value!r})"
    assert read._repr_png_() is None
    assert "array" not in repr(run)


def test_steps(run, run_directory):
    assert run.step == 20
    older = mot_jax.load(run_directory, step=10)
    assert older.step == 10
    assert not np.array_equal(older.params["head"]["table"], run.params["head"]["table"])
    with pytest.raises(UserError, match="no checkpoint of step 15; there are 10, 20"):
        mot_jax.load(run_directory, step=15)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: run.generate("a", to="imagee"), "to: no modality 'imagee' in this run; did you mean 'image'"),
        (lambda run: run.generate([("speach", 1)]), "part 0: no modality 'speach' in this run; did you mean 'speech'"),
        (lambda run: run.generate(["a", 7]), "part 1: expected a string, .* got int"),
        (lambda run: run.generate(7), "expected a string or a list of parts, got int"),
        (lambda run: run.generate([("image", np.zeros((9, 9), np.uint8))]), r"part 0 \(image\): .*\(8, 8\)"),
        (lambda run: run.generate([("text", 3)]), r"part 0 \(text\): .*expected a string, got int"),
        (lambda run: run.generate([Span("image", np.array([1, 2]))], to="text"), "2 codes, expected 4"),
        (lambda run: run.generate([Span("image", np.array([1, 2, 3, 99]))], to="text"), "code 99 is outside"),
        (lambda run: run.generate("nine " * 40, to="image"), "prompt 0 is too long: .*leave room for image in 64"),
        (lambda run: run.generate("a", temperature=-1.0), "temperature: expected 0 or more, got -1.0"),
        (lambda run: run.generate("a", top_p=0.0), "top_p: expected more than 0 and at most 1"),
        (lambda run: run.generate("a", top_k=-2), "top_k: expected 0"),
        (lambda run: run.generate("a", max_tokens=0), "max_tokens: expected at least 1"),
    ],
)
def test_bad_input_is_told_in_one_line(run, call, message):
    with pytest.raises(UserError, match=message) as error:
        call(run)
    assert "\n" not in str(error.value)


def test_what_is_no_run_says_what_is_missing(run_directory, tmp_path):
    with pytest.raises(UserError, match="expected a run directory, but it has no config"):
        mot_jax.load(tmp_path)
    shutil.copytree(run_directory, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "artifacts")
    with pytest.raises(UserError, match="it has no artifacts"):
        mot_jax.load(tmp_path / "run")


def test_loads_from_anywhere_with_only_the_core_install(run_directory, tmp_path):
    """Another process, another directory, no cache, and none of the packages of the extras."""
    program = f"""
import sys, json
for extra in ("mlxtend", "espeakng_loader", "tensorboardX", "beartype", "matplotlib"):
    sys.modules[extra] = None
import mot_jax
run = mot_jax.load({str(run_directory)!r})
print(json.dumps(run.generate("a bold seven", to="image", seed=3).codes.tolist()))
"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MOT_JAX")}
    environment = {**clean, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    here = mot_jax.load(run_directory).generate("a bold seven", to="image", seed=3)
    assert json.loads(done.stdout.splitlines()[-1]) == here.codes.tolist()
    assert not list(tmp_path.iterdir())  # nothing was prepared or cached
