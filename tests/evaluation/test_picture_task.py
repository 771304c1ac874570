"""The pictures task: every direction is asked and judged, and a model that learned a few pictures draws them."""

import dataclasses

import numpy as np
import pytest
from etils import epath

import mot_jax
from mot_jax.codecs import BytePairText, ImagePatches
from mot_jax.config import Eval, Sample
from mot_jax.data.dataset import DatasetWriter, open_dataset
from mot_jax.data.pictures import colours, evaluation_set
from mot_jax.data.pictures.evaluation_set import EvaluationSet
from mot_jax.data.pictures.names import GROUPS
from mot_jax.documents import Span
from mot_jax.errors import DataError
from mot_jax.evaluation import picture_task
from mot_jax.evaluation.tasks import Accuracy, TaskContext
from mot_jax.gin_config import load_run
from mot_jax.training.loop import train

# A group has one picture: a square of its colour in its own corner or row.
COLOURS = {"red": (210, 47, 39), "green": (92, 158, 49), "blue": (30, 80, 160), "yellow": (252, 234, 43)}
SHOWN = dict(zip(COLOURS, GROUPS, strict=False))  # the groups that the model learns


def square(index: int) -> np.ndarray:
    picture = np.full((16, 16, 3), 255, np.uint8)
    picture[4 * index : 4 * index + 4, 4:12] = list(COLOURS.values())[index]
    return picture


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> TaskContext:
    """Of a model trained on four pictures and their captions, until it knew them."""
    place = epath.Path(tmp_path_factory.mktemp("pictures"))
    drawn = np.stack([square(index) for index in range(4)])
    captions = tuple(f"something {colour} from {group}" for colour, group in SHOWN.items())
    codecs = {
        "text": BytePairText.train(list(captions) * 10, 300),
        "image": ImagePatches.fit(drawn, patch_size=4, codes=5, background=255),
    }
    codes = codecs["image"].encode_many(drawn)
    with DatasetWriter(place / "data", codecs) as writer:
        for split, count in (("train", 40), ("validation", 2)):
            for _ in range(count):
                for index in range(4):
                    pair = Span("text", codecs["text"].encode(captions[index])), Span("image", codes[index])
                    writer.add(split, pair)
                    writer.add(split, pair[::-1])
        evaluation_set.save(
            writer.directory,
            EvaluationSet(
                training_codes=codes[:, None],
                training_groups=np.arange(4, dtype=np.int32),
                heldout_codes=codes,
                heldout_groups=np.arange(4, dtype=np.int32),
                heldout_colours=np.array([colours.NAMES.index(name) for name in COLOURS], np.int32),
                heldout_captions=captions,
            ),
        )
    run, text = load_run(
        (),
        [
            f"Data.path = '{place / 'data'}'",
            *("Model.dim = 32", "Model.num_layers = 1", "Model.num_heads = 2", "Model.ffn_dim = 64"),
            *("Data.sequence_length = 64", "Data.global_batch_size = 8", "Optimizer.learning_rate = 1e-2"),
            *("Optimizer.warmup_steps = 10", "Train.steps = 100", "Train.eval_every = 0", "Train.sample_every = 0"),
        ],
    )
    assert train(run, place / "run", "never", text) == 0
    pictures = epath.Path(place) / "drawn"
    one_way = Eval(guidance=1.0), Sample(temperature=1.0)  # of drawing: the others cost compilations and show no more
    return TaskContext(mot_jax.load(place / "run"), open_dataset(place / "data"), *one_way, pictures)


def test_what_was_learned_is_read_and_drawn(context):
    pytest.importorskip("matplotlib")
    scores = picture_task.pictures(context)
    right = Accuracy(4, 4)
    assert scores == {
        "image_to_text/group": right,
        "text_to_image/temperature_1/group": right,
        "text_to_image/temperature_1/colour": right,
        "group_judge_on_real_pictures": right,
        "colour_of_real_pictures": right,
    }
    assert [path.name for path in context.directory.iterdir()] == ["eval_pictures.png"]


def test_wrong_groups_and_colours_are_seen(context, monkeypatch):
    """Captions of the next picture: what is drawn is never what the labels say."""
    evaluation = evaluation_set.load(context.dataset.directory)
    turned = dataclasses.replace(
        evaluation,
        heldout_captions=evaluation.heldout_captions[1:] + evaluation.heldout_captions[:1],
        heldout_codes=np.roll(evaluation.heldout_codes, 1, axis=0),
    )
    picture_task.fit_group_judge.cache_clear()
    monkeypatch.setattr(evaluation_set, "load", lambda directory: turned)
    scores = picture_task.pictures(dataclasses.replace(context, directory=None))
    assert max(score.value for score in scores.values()) <= 0.25
    picture_task.fit_group_judge.cache_clear()


def test_a_judge_sees_the_mean_colour_of_each_patch(context):
    codec = context.run.codecs["image"]
    codes = codec.encode_many(np.stack([square(index) for index in range(4)]))
    seen = picture_task.patch_colours(codec, codes).reshape(4, 4, 4, 3)
    pictures = codec.decode_many(codes).reshape(4, 4, 4, 4, 4, 3).mean((2, 4)) / 255
    np.testing.assert_allclose(seen, pictures, rtol=1e-6)


def test_other_data_are_refused_by_name(context, dataset):
    with pytest.raises(DataError, match="not found; the picture tasks need a data set"):
        picture_task.pictures(dataclasses.replace(context, dataset=dataset))
