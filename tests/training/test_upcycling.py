"""A run's feed-forward becomes experts: what they compute, what the first loss is, and where the data goes on."""

import dataclasses

import jax
import numpy as np
import pytest

from mot_jax import config
from mot_jax.errors import CheckpointError, UserError
from mot_jax.gin_config import load_run
from mot_jax.nn import transformer
from mot_jax.training.checkpoint import Checkpoints
from mot_jax.training.writers import read_metrics
from tests.batches import random_batch
from tests.training.test_loop import last_params, start

MOMA = ("Model.untied = ('feed_forward',)", "Model.feed_forward = @ExpertChoice()", "ExpertChoice.experts = 2")
MOMA += ("Model.selection_groups = 8",)
ONE_EACH = "Model.untied = ('feed_forward',)"
SIX = ("Train.steps = 6", "Train.checkpoint_every = 6")


@pytest.fixture(scope="module")
def one_each(dataset_directory, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("one_each") / "run"
    assert start(dataset_directory, run_dir, ONE_EACH, *SIX) == 0
    return run_dir


def resolved(run_dir):
    run, _ = load_run([str(run_dir / "config.gin")])
    return config.resolve(run.model, ("text", "image"), 310)


def upcycled(dataset_directory, source, tmp_path, *changes):
    settings = (*MOMA, f"Train.init_from = '{source}'", "Train.steps = 0", "Train.checkpoint_every = 1", *changes)
    assert start(dataset_directory, tmp_path / "moma", *settings) == 0
    model = resolved(tmp_path / "moma")
    return model, last_params(tmp_path / "moma", model)


def test_every_expert_is_its_modality_s_feed_forward(one_each, dataset_directory, tmp_path):
    _, params = upcycled(dataset_directory, one_each, tmp_path)
    before = last_params(one_each, resolved(one_each))
    for name in ("gate", "up", "down"):
        source = np.asarray(before["layers"]["0"]["feed_forward"][name])
        experts = np.asarray(params["layers"]["0"]["feed_forward"][name])
        np.testing.assert_array_equal(experts, source[[0, 0, 1, 1]])
    np.testing.assert_array_equal(params["embedding"]["table"], before["embedding"]["table"])
    router = np.asarray(params["layers"]["0"]["feed_forward"]["router"])
    assert router.shape == (16, 4) and np.abs(router).min() > 0


@pytest.mark.parametrize("order", ["pre", "post"])
def test_the_first_output_is_what_the_maths_says(dataset_directory, tmp_path, rng, order):
    """A token's feed-forward is s f(x), s the sum of its experts' weights. With a router of zeros both experts weigh
    one half and take the first half of each modality's tokens of a row: s is 1 there and 0 elsewhere."""
    order = f"Model.norm_order = '{order}'"
    seed = tmp_path / "seed"
    assert start(dataset_directory, seed, ONE_EACH, order, *SIX) == 0
    model, params = upcycled(dataset_directory, seed, tmp_path, order)
    params["layers"]["0"]["feed_forward"]["router"] *= 0
    source, before = resolved(seed), last_params(seed, resolved(seed))
    batch = random_batch(rng, 8, 24)
    two = dataclasses.replace(  # tokens and modalities that this small data has
        batch, tokens=batch.tokens % 300, modality_ids=np.minimum(batch.modality_ids, 1)
    )

    def hidden(model, params):
        return np.asarray(jax.jit(lambda p: transformer.apply(model, p, two)[0])(params))

    real, expected = two.segment_ids > 0, hidden(source, before)
    every = dataclasses.replace(model, feed_forward=dataclasses.replace(model.feed_forward, capacity=2.0))
    np.testing.assert_allclose(hidden(every, params)[real], expected[real], atol=1e-5)
    before["layers"]["0"]["feed_forward"]["down"] *= 0
    without, taken = hidden(source, before), np.zeros_like(real)
    for row in range(8):
        for modality in range(2):
            mine = np.flatnonzero(real[row] & (two.modality_ids[row] == modality))
            taken[row, mine[: len(mine) // 2]] = True
    expected = np.where(taken[..., None], expected, without)
    np.testing.assert_allclose(hidden(model, params)[real], expected[real], atol=1e-5)


def test_a_dense_run_is_upcycled_too_and_the_data_goes_on(dataset_directory, tmp_path):
    dense, going_on = tmp_path / "dense", tmp_path / "going_on"
    assert start(dataset_directory, dense, *SIX) == 0
    assert start(dataset_directory, tmp_path / "longer", "Train.steps = 9", "Train.checkpoint_every = 9") == 0
    changes = (*MOMA, f"Train.init_from = '{dense}'", "Train.steps = 3", "Train.checkpoint_every = 3")
    assert start(dataset_directory, going_on, *changes, "Train.keep_data = True") == 0
    assert start(dataset_directory, tmp_path / "again", *changes) == 0

    def tokens(run_dir, step):
        lines = [line for line in read_metrics(run_dir / "metrics.jsonl") if line["split"] == "train"]
        return next(line["modality_tokens/image"] for line in lines if line["step"] == step)

    assert tokens(going_on, 3) == tokens(tmp_path / "longer", 9)
    assert tokens(tmp_path / "again", 3) == tokens(tmp_path / "longer", 3)
    lines = [line for line in read_metrics(going_on / "metrics.jsonl") if line["split"] == "train"]
    assert lines[0]["learning_rate"] < 3e-3  # the schedule begins again, with its warmup
    with Checkpoints(going_on / "checkpoints") as checkpoints:
        assert checkpoints.steps()[-1] == 3


def test_what_does_not_fit_is_named(one_each, dataset_directory, tmp_path):
    mixed = ("Model.feed_forward = @ExpertChoice()", "ExpertChoice.experts = 4", "Model.selection_groups = 8")
    with pytest.raises(CheckpointError, match=r"feed_forward/\w+ has shape \(2, .* expected \(4, .*\) or \(\d+, \d+\)"):
        start(dataset_directory, tmp_path / "a", *mixed, f"Train.init_from = '{one_each}'")
    with pytest.raises(UserError, match=r"Train\.keep_data: expected Train\.init_from"):
        start(dataset_directory, tmp_path / "b", "Train.keep_data = True")


def test_auxiliary_routers_are_trained_alone_and_make_a_run_generate(one_each, dataset_directory, tmp_path):
    import mot_jax

    upcycled(dataset_directory, one_each, tmp_path)
    with pytest.raises(UserError, match=r"generate: .*python train.py --gin_file .*moma/config.gin --gin_file auxil"):
        mot_jax.load(tmp_path / "moma").generate("a dark one")
    second = (*MOMA, "Model.auxiliary_routers = True", "Train.only = 'auxiliary_routers'", "Train.eval_every = 6")
    changes = (*second, f"Train.init_from = '{tmp_path / 'moma'}'", *SIX)
    assert start(dataset_directory, tmp_path / "second", *changes) == 0
    before = last_params(tmp_path / "moma", resolved(tmp_path / "moma"))
    after = last_params(tmp_path / "second", resolved(tmp_path / "second"))
    auxiliary = after["layers"]["0"]["feed_forward"].pop("auxiliary")
    assert set(auxiliary) == {"inward", "outward"}
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=str(path))
    lines = read_metrics(tmp_path / "second" / "metrics.jsonl")
    train = [line for line in lines if line["split"] == "train"]
    losses = [sum(v for k, v in line.items() if k.endswith("/auxiliary_loss")) for line in train]
    assert losses[-1] < losses[0]
    (held_out,) = [line for line in lines if line["split"] == "validation"]
    assert {"loss", "causal_loss", "causal_loss/image"} <= held_out.keys()
    assert held_out["loss"] != held_out["causal_loss"]
    for name in ("precision", "recall", "agreement"):
        assert 0 <= held_out[f"router/0/text/{name}"] <= 1
    assert (tmp_path / "second" / "routers.png").read_bytes()[:4] == b"\x89PNG"
    made = mot_jax.load(tmp_path / "second").generate("a dark one", to="image")
    assert made.codes.shape == (4,)


def test_only_without_auxiliary_routers_is_refused(dataset_directory, tmp_path):
    with pytest.raises(UserError, match=r"Train\.only"):
        start(dataset_directory, tmp_path / "run", "Train.only = 'auxiliary_routers'")
    for changes in (("Train.init_from = 'x'",), ()):
        with pytest.raises(UserError, match=r"Train\.only"):
            given = ("Train.only = 'auxiliary_routers'", "Model.auxiliary_routers = True", *changes)
            start(dataset_directory, tmp_path / "run", *given)
    assert not (tmp_path / "run").exists()


def test_average_keys_cannot_be_upcycled(one_each, dataset_directory, tmp_path):
    changes = ("Model.untied = ('feed_forward',)", "Model.feed_forward = @AverageKey()", "AverageKey.experts = 4")
    with pytest.raises(CheckpointError, match="equal average keys"):
        start(dataset_directory, tmp_path / "run", *changes, f"Train.init_from = '{one_each}'")
