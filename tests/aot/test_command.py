"""`python train.py --aot`, whole: a small run on four chips that are not there."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from kernels_pallas.ahead_of_time import missing
from mot_jax.aot.advice import apply, proposals
from mot_jax.aot.topology import parse_target
from mot_jax.gin_config import load_run
from mot_jax.nn import count
from mot_jax.training.flops import train_flops_per_token

ROOT = pathlib.Path(__file__).parents[2]
SMALL = """
Model.modalities = ("text", "image")
Model.vocab_size = 512
Model.dim = 128
Model.num_layers = 2
Model.num_heads = 2
Model.ffn_dim = 256
Model.untied = ("attention", "feed_forward", "norm")
Data.sequence_length = 128
Data.global_batch_size = 8
Parallel.data = 2
Parallel.fsdp = 2
"""
installed = pytest.mark.skipif(bool(missing("v5e")), reason=missing("v5e") or "")


def train(tmp_path, *flags: str, config: str = SMALL) -> subprocess.CompletedProcess:
    (tmp_path / "small.gin").write_text(config)
    command = [sys.executable, "train.py", "--gin_file", str(tmp_path / "small.gin"), *flags]
    environment = {**os.environ, "XLA_FLAGS": "", "COLUMNS": "120"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@installed
def test_a_run_that_fits(tmp_path):
    done = train(tmp_path, "--aot", "v5e:2x2", "--json", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "4 chips" in done.stdout and "fits" in done.stdout and "MFU at most" in done.stdout
    found, run = json.loads((tmp_path / "found.json").read_text()), load_run([str(tmp_path / "small.gin")])[0]
    held, stored = found["bytes"], count.stored(run.model)
    assert held["total"] == sum(value for name, value in held.items() if name not in ("total", "limit"))
    assert 0.5 <= held["parameters"] / (4 * stored) < 0.51  # all but norms are split over fsdp
    assert held["optimizer"] == pytest.approx(2 * held["parameters"], abs=64)
    assert held["activations"] > 0
    tokens = 8 * 128
    assert sum(found["analytic"].values()) * 4 == pytest.approx(train_flops_per_token(run.model, 128) * tokens)
    for part in ("projections", "feed_forward", "head"):  # rows are padded to tiles, of every group
        assert 1 <= found["flops"][part] / found["analytic"][part] < 2.5, part
    along = {(each["operation"], *each["axes"]) for each in found["traffic"]}
    assert ("all-gather", "fsdp") in along and ("all-reduce", "data") in along
    assert not any("tensor" in axes or "?" in axes for _, *axes in along)
    assert 0 < found["mfu_serial"] < found["mfu"] < 1
    roofline = found["roofline"]
    assert roofline["least"] == max(roofline["compute"], roofline["memory"], sum(roofline["links"].values()))
    assert not list(tmp_path.glob("runs*"))


@installed
def test_what_would_make_a_larger_one_fit(tmp_path):
    # 1.15e9 parameters with moments and gradients: too many for each chip, and enough room on four.
    large = SMALL.replace("ffn_dim = 256", "ffn_dim = 1500000").replace("fsdp = 2", "fsdp = 1")
    large = f"{large}\nModel.untied = ()\nParallel.data = 4\n"
    done = train(tmp_path, "--aot", "v5e:2x2", config=large)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "DOES NOT FIT" in done.stdout
    assert "it fits with" in done.stdout and "--gin.Parallel.data=1 --gin.Parallel.fsdp=4:" in done.stdout


def test_an_unknown_topology_is_answered_at_once(tmp_path):
    done = train(tmp_path, "--aot", "v5q")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --aot: no topology 'v5q'") and done.stderr.count("\n") == 1
    assert train(tmp_path, "--json", "x").stderr.startswith("error: --json: expected --aot")


def test_a_mesh_of_another_size_is_named(tmp_path):
    if missing("v5e"):
        pytest.skip(missing("v5e"))
    done = train(tmp_path, "--aot", "v5e:2x4")
    assert done.returncode == 2 and "= 4, but there are 8 devices" in done.stderr


def test_proposals(tmp_path):
    (tmp_path / "small.gin").write_text(SMALL)
    run, target = load_run([str(tmp_path / "small.gin")])[0], parse_target("v5e:2x2")
    tried = []
    for propose in proposals():
        if (change := propose(run, target)) is not None:
            tried += list(change)
            changed = apply(run, change)
            sizes = changed.parallel
            assert changed != run and sizes.data * sizes.fsdp * sizes.tensor == 4
            run = changed
    assert tried[:3] == ["Model.remat", "Model.remat", "Train.accumulation"]
    assert (run.model.remat, run.train.accumulation, run.parallel.tensor) == ("full", 2, 2)


@installed
def test_microbatches_of_split_experts_compile(tmp_path):
    """The compiler once failed over sums that it moved out of the loop over microbatches; experts have their own."""
    experts = "Model.feed_forward = @TokenChoice()\nTokenChoice.experts = 4\nModel.num_layers = 1\n"
    config = f"{SMALL}{experts}Model.untied = ()\nModel.selection_groups = 4\nParallel.fsdp = 1\nParallel.expert = 2\n"
    done = train(tmp_path, "--aot", "v5e:2x2", "--gin.Train.accumulation=2", config=config)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "all-to-all" in done.stdout
