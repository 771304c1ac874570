"""Tasks by name, and the numbers they give."""

import pytest

from mot_jax.errors import ConfigError
from mot_jax.evaluation import tasks
from mot_jax.evaluation.tasks import Accuracy, find_task, register_task


def test_the_built_in_tasks_are_there_and_a_misspelt_one_names_the_nearest():
    assert find_task("digits").__name__ == "digits" and find_task("facts").__name__ == "facts"
    with pytest.raises(ConfigError, match=r"no task 'digit'; did you mean 'digits'\?"):
        find_task("digit")


def test_a_registered_task_is_found():
    @register_task("colours")
    def colours(context):
        return {"share": 0.5}

    assert find_task("colours") is colours
    del tasks._TASKS["colours"]


def test_an_accuracy_knows_its_standard_error():
    assert Accuracy(3, 4).value == 0.75
    assert Accuracy(50, 100).standard_error == pytest.approx(0.05)
    assert Accuracy(10, 10).standard_error == 0
