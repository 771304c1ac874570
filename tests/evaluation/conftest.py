"""A small data set of words, pictures and sounds, and a run on it that was never trained."""

import jax
import numpy as np
import pytest
from etils import epath

from mot_jax.codecs import BytePairText, ImagePatches, SpeechUnits
from mot_jax.config import Data, Eval, Model, Run, Sample, resolve
from mot_jax.data.dataset import DatasetWriter, copy_artifacts, open_dataset
from mot_jax.documents import Span
from mot_jax.gin_config import run_text
from mot_jax.nn import transformer
from mot_jax.training.checkpoint import Checkpoints
from mot_jax.training.optimizer import make_optimizer
from mot_jax.training.state import fresh_state

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def write_dataset(directory: epath.Path, seed: int = 0, **provenance) -> epath.Path:
    """Pairs of every direction between text, 8x8 pictures and sounds, and triples, in both splits."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (50, 8, 8), dtype=np.uint8)
    codecs = {
        "text": BytePairText.train(WORDS * 20, 260),
        "image": ImagePatches.fit(pictures, patch_size=4, codes=12, seed=seed),
        "speech": SpeechUnits(rng.normal(size=(9, 80)).astype(np.float32)),
    }

    def span(name: str) -> Span:
        if name == "text":
            return Span("text", codecs["text"].encode(str(rng.choice(WORDS))))
        if name == "image":
            return Span("image", codecs["image"].encode(pictures[rng.integers(50)]))
        return Span("speech", rng.integers(0, 9, rng.integers(2, 6)).astype(np.int32))

    with DatasetWriter(directory, codecs, provenance=provenance) as writer:
        for split, count in (("train", 60), ("validation", 40)):
            for index in range(count):
                order = rng.permutation(list(codecs))[: 3 if index % 5 == 0 else 2]
                writer.add(split, [span(str(name)) for name in order])
    return directory


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    return open_dataset(write_dataset(epath.Path(tmp_path_factory.mktemp("data")) / "words"))


@pytest.fixture(scope="session")
def small_run(dataset) -> Run:
    model = Model(dim=16, num_layers=1, num_heads=2, ffn_dim=32, untied=("attention", "feed_forward", "norm"))
    return Run(
        model=resolve(model, dataset.vocabulary.names, dataset.vocabulary.size),
        data=Data(path=str(dataset.directory), sequence_length=32, global_batch_size=4),
        sample=Sample(max_tokens=8, prompts=3),
        eval=Eval(prompts=20),
    )


@pytest.fixture(scope="session")
def params(small_run) -> dict:
    return transformer.init(small_run.model, jax.random.key(3))


@pytest.fixture
def run_dir(tmp_path, dataset, small_run, params) -> epath.Path:
    """A run directory with one checkpoint, of step 7."""
    directory = epath.Path(tmp_path) / "run"
    directory.mkdir()
    (directory / "config.gin").write_text(run_text(small_run))
    copy_artifacts(dataset.directory, directory / "artifacts")
    tx, _ = make_optimizer(small_run.optimizer, 10)
    with Checkpoints(directory / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(7, fresh_state(params, tx), {}, {}, wait=True)
    return directory
