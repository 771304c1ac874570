"""What tasks that draw have in common."""

import dataclasses

import numpy as np

from mot_jax.config import Eval, Sample
from mot_jax.evaluation import drawing
from mot_jax.evaluation.tasks import TaskContext


def test_prompts_are_spread_evenly_over_classes(rng):
    labels = np.repeat(np.arange(10), 50)
    rows = drawing.balanced(labels, 120, rng)
    assert len(set(rows)) == 120 and set(np.bincount(labels[rows])) == {12}
    assert len(drawing.balanced(labels, 10_000, rng)) == 500
    assert set(np.bincount(labels[drawing.balanced(labels, 25, rng)])) == {2, 3}


def test_the_three_ways_to_draw_are_named_by_their_numbers():
    context = TaskContext(run=None, dataset=None, eval=Eval(guidance=3.0), sample=Sample(), directory=None)
    assert drawing.ways_to_draw(context) == [
        ("temperature_1", 1.0, 1.0),
        ("temperature_0.8", 0.8, 1.0),
        ("temperature_0.8_guidance_3", 0.8, 3.0),
    ]
    warm = dataclasses.replace(context, sample=Sample(temperature=1.0))
    assert len(drawing.ways_to_draw(warm)) == 2


def test_a_misread_drawing_has_a_red_frame():
    images = np.full((3, 4, 4), 77, np.uint8)
    panel = drawing.panel(images, np.array([0, 9, 9]), np.array([0, 9, 1]), 10)
    assert panel.shape == (70, 70, 3)
    assert tuple(panel[0, 0]) == drawing.RIGHT and tuple(panel[2, 2]) == (77, 77, 77)
    assert tuple(panel[63, 0]) == drawing.RIGHT and tuple(panel[63, 7]) == drawing.WRONG
    assert (panel[:, 14:21] == 255).all()
