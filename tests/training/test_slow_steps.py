"""Stragglers and repeated compilations are told, once."""

import jax
import jax.numpy as jnp

from mot_jax.training.slow_steps import NEEDED, Compilations, SlowSteps, held_up_by


def test_a_straggler_is_told_once_a_line():
    notes = []
    watch = SlowSteps(notes.append)
    for number in range(NEEDED):
        watch.step(number, 0.1, 0.0)
    watch.step(20, 0.19, 0.0)
    assert notes == []
    watch.step(21, 2.0, 1.5)
    watch.step(22, 2.0, 0.0)
    assert notes == [f"step 21 took 2.0 s, 1.5 s of it for data: 20 times the median of the {NEEDED + 1} before it"]
    watch.reported()
    watch.step(23, 3.0, 0.0)
    assert len(notes) == 2 and "for data" not in notes[1]


def test_no_median_before_there_are_steps_and_no_word_of_milliseconds():
    notes = []
    watch = SlowSteps(notes.append)
    watch.step(1, 60.0, 0.0)
    for number in range(2, 30):
        watch.step(number, 0.001 if number % 9 else 0.01, 0.0)
    assert notes == []


def test_the_process_that_the_others_wait_for_is_named():
    assert held_up_by([0.1, 0.1, 1.5, 0.2], 2.0) == (
        "process 2 holds the others up: its host is busy for 1.50 s of a step's 2.00 s, half of them for 0.15 s or less"
    )
    assert held_up_by([0.01, 0.01, 0.1, 0.01], 2.0) is None  # hardly a part of the step
    assert held_up_by([1.5, 1.5, 1.6, 1.5], 2.0) is None
    assert held_up_by([1.0], 1.0) is None


def test_another_shape_is_told():
    notes = []
    double = jax.jit(lambda x: x + x)
    watch = Compilations(double, "the step", notes.append)
    for step, size in enumerate((2, 2, 3, 3), start=1):
        double(jnp.zeros(size))
        watch.check(step)
    assert notes == ["step 3: the step was compiled again (2 programs); expected batches of one shape"]
