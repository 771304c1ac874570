"""Mistakes in experts and mixture-of-depths are named in one line before anything is compiled."""

import jax
import pytest

from mot_jax.config import Data, Parallel, Run, Train, resolve
from mot_jax.config.experts import Depth, ExpertChoice, FeedForward
from mot_jax.errors import ConfigError
from mot_jax.gin_config import load_run
from mot_jax.parallel.mesh import make_mesh
from mot_jax.training.step import check_rows
from tests.batches import VOCABULARY, small_model

UNTIED = "Model.untied = ('feed_forward',)"
EXPERTS = {name: f"Model.feed_forward = @{name}()" for name in ("ExpertChoice", "TokenChoice", "AverageKey")}
DEPTH = "Model.plan = ((2, (@Block(),)),)\nBlock.depth = @Depth()"


def build(*bindings):
    """The model these bindings make on data of text, image and speech."""
    return resolve(load_run(bindings=bindings)[0].model, VOCABULARY.names, VOCABULARY.size)


def message(*bindings):
    with pytest.raises(ConfigError) as caught:
        build(*bindings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_experts_of_each_modality_need_groups_of_those_names():
    given = "Model.feed_forward = {%r: @ExpertChoice()}"
    misspelt = message(UNTIED, given % "txet")
    assert misspelt == "Model.feed_forward: no group 'txet' to own experts; did you mean 'text'?"
    assert message(UNTIED, given % "audio").endswith("known: image, speech, text")
    shares = message(UNTIED, given % "speech", "Model.groups = {'speech': 'text'}")
    assert shares == "Model.feed_forward: no group 'speech' to own experts; it shares the weights of 'text'"
    hashed = message(UNTIED, given % "text", "Model.owner = 'hash'")
    assert hashed.endswith("no group 'text' to own experts; known: hash_0, hash_1, hash_2")
    assert build(UNTIED, given % "image").feed_forward["image"] == ExpertChoice()


@pytest.mark.parametrize(
    ("untied", "shown"),
    [
        ("Model.untied = ()", "()"),
        ("Model.untied = ('attention', 'norm')", "('attention', 'norm')"),
        # A block of the plan may tie what the model unties.
        (f"{UNTIED}\nModel.plan = ((1, (@Block(), @tied/Block())),)\ntied/Block.untied = ()", "()"),
    ],
)
def test_experts_by_modality_need_untied_feed_forwards(untied, shown):
    expected = f'Model.feed_forward: experts by modality need "feed_forward" in untied, got untied = {shown}'
    assert message(untied, "Model.feed_forward = {'text': @ExpertChoice()}") == expected


@pytest.mark.parametrize("capacity", ["0", "-0.5", "4.5", "0.0001"])
def test_capacity_of_expert_choice(capacity):
    line = message(EXPERTS["ExpertChoice"], f"ExpertChoice.capacity = {capacity}")
    expected = f"0.001 to 4 (its experts), got {float(capacity)}"
    assert line == f"Model.feed_forward: ExpertChoice.capacity: expected {expected}"
    assert build(EXPERTS["ExpertChoice"], "ExpertChoice.capacity = 4").feed_forward.active == 4


@pytest.mark.parametrize("capacity", ["0", "-1", "1e400"])
def test_capacity_of_token_choice(capacity):
    line = message(EXPERTS["TokenChoice"], f"TokenChoice.capacity = {capacity}")
    expected = f"0.001 or more, or None to drop no token, got {float(capacity)}"
    assert line == f"Model.feed_forward: TokenChoice.capacity: expected {expected}"


@pytest.mark.parametrize("capacity", ["0", "-0.25", "1.01", "1e400"])
def test_capacity_of_depth(capacity):
    line = message(DEPTH, f"Depth.capacity = {capacity}")
    assert line == f"Block.depth: Depth.capacity: expected 0.001 to 1, got {float(capacity)}"
    assert build(DEPTH, "Depth.capacity = 1").plan[0][1][0].depth == Depth(capacity=1.0)


@pytest.mark.parametrize(("name", "experts"), [("TokenChoice", 8), ("AverageKey", 16)])
@pytest.mark.parametrize("over", [True, False])
def test_a_token_takes_one_expert_at_least_and_all_at_most(name, experts, over):
    top_k = experts + 1 if over else 0
    line = message(EXPERTS[name], f"{name}.top_k = {top_k}")
    assert line == f"Model.feed_forward: {name}.top_k: expected 1 to {experts} (its experts), got {top_k}"
    assert build(EXPERTS[name], f"{name}.top_k = {experts}").feed_forward.active == experts


@pytest.mark.parametrize(
    ("binding", "expected"),
    [
        ("TokenChoice.experts = 0", "TokenChoice.experts: expected a number that is at least 1, got 0"),
        ("TokenChoice.ffn_dim = 0", "TokenChoice.ffn_dim: expected a number that is at least 1, got 0"),
        ("TokenChoice.shared = -1", "TokenChoice.shared: expected a number that is at least 0, got -1"),
        ("TokenChoice.z_loss = -1", "TokenChoice.z_loss: expected a number that is at least 0, got -1.0"),
    ],
)
def test_numbers_of_experts(binding, expected):
    assert message(EXPERTS["TokenChoice"], binding) == f"Model.feed_forward: {expected}"
    # By modality the line says whose.
    by_modality = message(UNTIED, "Model.feed_forward = {'image': @TokenChoice()}", binding)
    assert by_modality == f"Model.feed_forward['image']: {expected}"


def test_experts_of_a_layer_are_equally_wide():
    two = "Model.feed_forward = {'text': @text/ExpertChoice(), 'image': @ExpertChoice()}\nModel.ffn_dim = 48"
    line = message(UNTIED, two, "text/ExpertChoice.ffn_dim = 64")
    widths = "{'text': 64, 'image': 48, 'speech': 48}"
    assert line == f"Model.feed_forward: expected one ffn_dim for all experts of a layer, got {widths}"
    three = two.replace("}", ", 'speech': @FeedForward()}")
    model = build(UNTIED, three, "ExpertChoice.ffn_dim = 64", "FeedForward.ffn_dim = 64")
    assert model.feed_forward["speech"] == FeedForward(ffn_dim=64)


def rows_checked(devices, rows, accumulation=1, **fields):
    model = small_model(**fields)
    run = Run(model=model, data=Data(global_batch_size=rows), train=Train(accumulation=accumulation))
    check_rows(run, make_mesh(Parallel(), jax.devices()[:devices]))


def test_blocks_of_rows_divide_a_microbatch():
    choosing = {"feed_forward": ExpertChoice()}
    rows_checked(1, 12, accumulation=2, selection_groups=3, **choosing)
    with pytest.raises(ConfigError) as caught:
        rows_checked(1, 12, accumulation=2, selection_groups=4, **choosing)
    assert str(caught.value) == "Model.selection_groups: 4 blocks do not divide the 6 rows of a microbatch"


def test_blocks_of_rows_lie_whole_on_devices():
    choosing = {"feed_forward": ExpertChoice()}
    rows_checked(2, 12, selection_groups=6, **choosing)
    rows_checked(2, 12)  # nothing compares tokens, so the default of one block will do
    with pytest.raises(ConfigError) as caught:
        rows_checked(2, 12, selection_groups=3, **choosing)
    assert str(caught.value) == (
        "Model.selection_groups: 3 blocks of 4 rows in which routers compare tokens do not lie whole on 2 devices "
        "(data x fsdp x expert); expected a multiple of 2"
    )
