"""The digits task's own parts."""

import dataclasses

import numpy as np
import pytest
from etils import epath

import mot_jax
from mot_jax.config import Eval
from mot_jax.data.dataset import open_dataset
from mot_jax.data.digits import evaluation_set
from mot_jax.data.digits.captions import WORDS
from mot_jax.data.digits.evaluation_set import EvaluationSet
from mot_jax.evaluation import digits
from mot_jax.evaluation.tasks import TaskContext
from tests.evaluation.conftest import write_dataset


@pytest.mark.parametrize(
    ("text", "digit"),
    [("a bold seven, upright", 7), ("Zero", 0), ("nothing to see", None), ("the digit: two. three", 2), ("", None)],
)
def test_the_first_digit_word_counts(text, digit):
    none = {field.name: () for field in dataclasses.fields(EvaluationSet)}
    empty = {name: np.zeros((0, 1) if name.endswith("codes") else 0, np.int32) for name in none if "_image_" in name}
    empty |= {name: np.zeros(0, np.int32) for name in none if name.endswith("labels")}
    assert EvaluationSet(**{**none, **empty, "words": WORDS}).digit_in(text) == digit


def separable(rng, count: int) -> dict[str, np.ndarray]:
    """Images of four codes and utterances of three whose first code, or first two, tell the digit."""
    labels = np.arange(count, dtype=np.int32) % 10
    images = rng.integers(1, 12, (count, 4)).astype(np.int32)
    images[:, 0] = 1 + labels
    speech = tuple(np.array([digit % 5, digit % 5, digit // 5 * 4], np.int32) for digit in labels)
    return {"image_codes": images, "image_labels": labels, "speech": speech, "speech_labels": labels}


def test_the_task_asks_every_direction_and_judges_fit_real_examples(rng, tmp_path, run_dir, monkeypatch):
    monkeypatch.setattr(digits, "JUDGE_STEPS", 300)
    directory = write_dataset(epath.Path(tmp_path) / "digits")
    examples = {f"training_{name}": value for name, value in separable(rng, 200).items()}
    held_out = {f"heldout_{name}": value for name, value in separable(rng, 30).items()}
    evaluation_set.save(
        str(directory),
        EvaluationSet(
            **examples,
            **held_out,
            training_voices=("a",),
            heldout_voices=("b",),
            heldout_captions=tuple(f"a {WORDS[digit]}" for digit in held_out["heldout_image_labels"]),
            image_prompts=("a {digit}",),
            speech_prompts=("say {digit}", "{digit}"),
            words=WORDS,
        ),
    )
    run, pictures = mot_jax.load(run_dir), epath.Path(tmp_path) / "pictures"
    context = TaskContext(run, open_dataset(directory), Eval(prompts=20), run.config.sample, pictures)
    scores = digits.digits(context)
    ways = ("temperature_1", "temperature_0.8", "temperature_0.8_guidance_2")
    asked = {f"{source}_to_image/{way}" for source in ("text", "speech") for way in ways}
    asked |= {"image_to_text", "speech_to_text", "text_to_speech"}
    judges = {"image_judge_on_real_images", "speech_judge_on_real_speech"}
    assert set(scores) == asked | judges
    assert {scores[name].count for name in asked} == {20} and {scores[name].count for name in judges} == {30}
    assert min(scores[name].value for name in judges) > 0.9
    assert max(scores[name].value for name in asked) < 0.6  # the model was never trained
    assert digits.digits(dataclasses.replace(context, directory=None)) == scores
    assert [path.name for path in pictures.iterdir()] == ["eval_digits.png"]
