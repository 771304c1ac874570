"""The digits task's own parts."""

import dataclasses

import numpy as np
import pytest

from mot_jax.config import Eval, Sample
from mot_jax.evaluation import digits
from mot_jax.evaluation.digits import balanced


def test_prompts_are_spread_evenly_over_digits(rng):
    labels = np.repeat(np.arange(10), 50)
    rows = balanced(labels, 120, rng)
    assert len(set(rows)) == 120 and set(np.bincount(labels[rows])) == {12}
    assert len(balanced(labels, 10_000, rng)) == 500
    assert set(np.bincount(labels[balanced(labels, 25, rng)])) == {2, 3}


def test_the_three_ways_to_draw_are_named_by_their_numbers():
    context = digits.TaskContext(run=None, dataset=None, eval=Eval(guidance=3.0), sample=Sample(), directory=None)
    assert digits._ways(context) == [
        ("temperature_1", 1.0, 1.0),
        ("temperature_0.8", 0.8, 1.0),
        ("temperature_0.8_guidance_3", 0.8, 3.0),
    ]
    warm = dataclasses.replace(context, sample=Sample(temperature=1.0))
    assert len(digits._ways(warm)) == 2


def test_a_misread_drawing_has_a_red_frame():
    images = np.full((3, 4, 4), 77, np.uint8)
    panel = digits._panel(images, np.array([0, 9, 9]), np.array([0, 9, 1]))
    assert panel.shape == (70, 70, 3)
    assert tuple(panel[0, 0]) == digits.RIGHT and tuple(panel[2, 2]) == (77, 77, 77)
    assert tuple(panel[63, 0]) == digits.RIGHT and tuple(panel[63, 7]) == digits.WRONG
    assert (panel[:, 14:21] == 255).all()


@pytest.mark.parametrize(
    ("text", "digit"),
    [("a bold seven, upright", 7), ("Zero", 0), ("nothing to see", None), ("the digit: two. three", 2), ("", None)],
)
def test_the_first_digit_word_counts(text, digit):
    from mot_jax.data.digits.captions import WORDS
    from mot_jax.data.digits.evaluation_set import EvaluationSet

    none = {field.name: () for field in dataclasses.fields(EvaluationSet)}
    empty = {name: np.zeros((0, 1) if name.endswith("codes") else 0, np.int32) for name in none if "_image_" in name}
    empty |= {name: np.zeros(0, np.int32) for name in none if name.endswith("labels")}
    assert EvaluationSet(**{**none, **empty, "words": WORDS}).digit_in(text) == digit
