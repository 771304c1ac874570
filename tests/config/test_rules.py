"""What a config may change in the table of logical axes, and what is said of the rest."""

import pytest

from mot_jax.config import RULES, Parallel, Run, check_run, rules_with
from mot_jax.config.rules import AXES, BATCH_AXES, LOGICAL_AXES, split_in_place
from mot_jax.errors import ConfigError
from mot_jax.nn import transformer
from tests.batches import ALL, small_model


def test_changes_leave_the_rest_as_it_is():
    changed = rules_with({"embed": "data", "vocab": None})
    assert changed == {**RULES, "embed": "data", "vocab": None}
    assert rules_with({}) == RULES and hash(rules_with({})) == hash(RULES)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocabulary": "fsdp"}, "Parallel.rules: no logical axis 'vocabulary'; did you mean 'vocab'?"),
        ({"ffn": "tensors"}, r"Parallel.rules\['ffn'\]: no mesh axis 'tensors'; did you mean 'tensor'?"),
        ({"expert": "tensor"}, r"rules\['expert'\]: cannot be split over 'tensor': devices of one tensor group have"),
        ({"group": "expert"}, r"rules\['group'\]: cannot be split over 'expert': rows are sorted.*expected None"),
        ({"value_column": "data"}, "a token's values are read where the token is; expected 'tensor' or None"),
    ],
)
def test_what_cannot_be_is_refused_before_any_data_is_read(changes, said):
    with pytest.raises(ConfigError, match=said):
        check_run(Run(parallel=Parallel(rules=changes)))


def test_every_axis_of_every_parameter_is_in_the_table():
    for model in (small_model(untied=ALL, qkv_bias=True, norm="layer"), small_model()):
        for axes in _leaves(transformer.logical_axes(model)):
            assert set(axes) <= set(RULES)
    assert {split_in_place(RULES, axis) for axis in LOGICAL_AXES} <= {None, *AXES}
    assert split_in_place(rules_with({"ffn": "fsdp"}), "ffn") is None  # gathered where it is used
    assert split_in_place(rules_with({"expert": "data"}), "expert") == "data" in BATCH_AXES


def _leaves(tree):
    if isinstance(tree, tuple):
        yield tree
    else:
        for value in tree.values():
            yield from _leaves(value)
