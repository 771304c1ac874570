"""The PyTorch peer that the step is measured against trains the same model; without torch its script says so."""

import sys

import numpy as np
import pytest

from tests.batches import ALL, VOCABULARY, random_batch, small_model, small_run


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend("benchmarks")
    import pytorch_peer

    return pytorch_peer


@pytest.fixture
def peer(script):
    pytest.importorskip("torch", reason="needs torch: pip install mot_jax[peer]")
    return script


def test_without_torch_one_line_names_the_command(script, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)  # what cannot be imported
    monkeypatch.setattr(sys, "argv", ["pytorch_peer.py"])
    with pytest.raises(SystemExit) as exit:
        script.main()
    out, error = capsys.readouterr()
    assert exit.value.code == 2 and out == ""
    assert error.count("\n") == 1 and "pip install torch" in error


@pytest.mark.parametrize(
    ("untied", "masks", "norm_order"), [((), False, "post"), (ALL, False, "pre"), (ALL, True, "post")]
)
def test_gradients_are_the_same(peer, untied, masks, norm_order):
    """Several documents a row, padding, every modality."""
    run = small_run(small_model(untied=untied, norm_order=norm_order, num_layers=1), 3, 24)
    batch = random_batch(np.random.default_rng(0), 3, 24)
    assert peer.gradient_difference(run, VOCABULARY, batch, masks) < 2e-5


def test_steps_are_the_same(peer):
    """The optimizer too: later losses hang on it, whatever the first gradients were."""
    run = small_run(small_model(untied=ALL, num_layers=1), 3, 24)
    batch = random_batch(np.random.default_rng(0), 3, 24)
    mine = peer.step_time.step_of(run, VOCABULARY, batch)
    other = peer.peer_step(run, batch, batch)
    for _ in range(20):
        total, count = mine()["loss"]
        loss = other()
    assert loss == pytest.approx(float(total / count), rel=1e-4)
