"""`eval.py compare` on run directories: which are one arm, what is written, what is refused."""

import json
import pathlib
import re
import shutil

import pytest

import eval as eval_script
from mot_jax.cli import run_main
from mot_jax.data.dataset import copy_artifacts
from mot_jax.errors import ConfigError
from mot_jax.evaluation.compare.arms import arms_of
from mot_jax.evaluation.compare.curves import curves
from mot_jax.gin_config import load_run
from mot_jax.training.loop import train
from mot_jax.training.writers import read_metrics
from tests.training.conftest import write_dataset

SMALL = (
    "Model.dim = 16",
    "Model.num_layers = 1",
    "Model.num_heads = 2",
    "Model.ffn_dim = 32",
    "Train.sample_every = 0",
)
SMALL += (
    "Data.sequence_length = 48",
    "Data.global_batch_size = 8",
    "Train.log_every = 2",
    "Train.checkpoint_every = 0",
)
STEPS = 8


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A real run; the others are copies whose losses and config are changed."""
    place = tmp_path_factory.mktemp("compare")
    data = write_dataset(place / "data")
    bindings = (f"Data.path = '{data}'", *SMALL, f"Train.steps = {STEPS}", "Train.eval_every = 4")
    run, text = load_run((), bindings)
    assert train(run, place / "dense_0", "never", text) == 0
    return place / "dense_0"


def other(first: pathlib.Path, name: str, scale: float, *changes: tuple[str, str]) -> str:
    """A copy whose losses are scaled and whose config has other lines."""
    directory = first.parent / name
    shutil.copytree(first, directory)
    text = (directory / "config.gin").read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    (directory / "config.gin").write_text(text)
    lines = [
        {key: value * scale if "loss" in key and value is not None else value for key, value in line.items()}
        for line in read_metrics(directory / "metrics.jsonl")
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(directory)


@pytest.fixture(scope="module")
def arms(first):
    seed, untied = ("Train.seed = 0", "Train.seed = 1"), ("Model.untied = ()", "Model.untied = ('feed_forward',)")
    return [
        str(first),
        other(first, "dense_1", 1.01, seed),
        other(first, "mot_0", 0.8, untied),
        other(first, "mot_1", 0.81, untied, seed, ("Eval.prompts = 200", "Eval.prompts = 7")),
    ]


def test_runs_that_differ_by_seed_are_one_arm(arms):
    found = arms_of([arms[0], arms[2], arms[1], arms[3]])
    assert [[run.directory.name for run in arm.runs] for arm in found] == [["dense_0", "dense_1"], ["mot_0", "mot_1"]]


def test_a_comparison_is_written_and_drawn(arms, tmp_path, capfd):
    assert run_main(eval_script.main, ["compare", *arms, "--out", str(tmp_path / "out")]) == 0
    written = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert written["arms"]["mot"]["differs"] == ["Model.untied: () became ('feed_forward',)"]
    found = {(each["split"], each["modality"]): each["match"] for each in written["matches"]}
    assert found.keys() == {(split, kind) for split in ("train", "validation") for kind in ("all", "text", "image")}
    held_out = found["validation", "all"]
    assert held_out["candidate"] == pytest.approx(held_out["reference"] * 0.805 / 1.005)
    assert held_out["steps"]["value"] < 1 and held_out["draws_reached"] == 1
    assert held_out["steps"]["value"] == pytest.approx(held_out["flops"]["value"])  # untying costs nothing
    for kind in ("all", "text", "image"):
        assert (tmp_path / "out" / f"{kind}.png").read_bytes()[:4] == b"\x89PNG"
    printed = capfd.readouterr().out
    assert "mot: 2 seeds, 8 steps; Model.untied" in printed and "unfinished" not in printed


def test_arms_have_names_of_their_own(first, arms):
    (first.parent / "inner").mkdir()
    twin = other(first, "inner/dense_0", 1.0, ("Model.ffn_dim = 32", "Model.ffn_dim = 40"))
    assert [arm.name for arm in arms_of([arms[0], twin])] == [arms[0], twin]
    tens = [other(first, f"wide_1{seed}", 1.0, ("Train.seed = 0", f"Train.seed = {seed}")) for seed in (5, 6)]
    assert [arm.name for arm in arms_of([*tens, arms[2]])] == ["wide", "mot_0"]


def test_seconds_are_those_of_steps(first):
    (run,) = arms_of([str(first), other(first, "third", 1.0, ("Model.ffn_dim = 32", "Model.ffn_dim = 48"))])[0].runs
    (curve,) = curves(arms_of([str(first), str(first.parent / "third")])[0], "train", "all", 1)
    took = {line["step"]: line["step_seconds"] for line in run.lines if line["split"] == "train"}
    rates = [next(took[later] for later in range(step, 9, 2) if took[later] is not None) for step in (2, 4, 6, 8)]
    assert curve.steps.tolist() == [2, 4, 6, 8]
    assert curve.seconds.tolist() == pytest.approx([2 * sum(rates[: i + 1]) for i in range(4)])


def test_what_a_run_goes_on_from_counts_as_spent(first):
    goes_on = ("Train.keep_data = False", "Train.keep_data = True")
    begun = [("Train.init_from = None", f"Train.init_from = '{first}@4'"), goes_on]
    later = [
        other(first, "later_0", 0.5, *begun),
        other(first, "later_1", 0.6, *begun, ("Train.seed = 0", "Train.seed = 1")),
    ]
    reference, arm = arms_of([str(first), *later])
    (whole,), (curve, _) = curves(reference, "train", "all", 1), curves(arm, "train", "all", 1)
    assert curve.steps.tolist() == [2, 4, 6, 8, 10, 12] and arm.steps == 12
    assert curve.losses.tolist() == pytest.approx([*whole.losses[:2], *(0.5 * whole.losses)])
    for spent in ("flops", "seconds"):
        until = getattr(whole, spent)
        assert getattr(curve, spent).tolist() == pytest.approx([*until[:2], *(until[1] + until)])
    gone = other(first, "gone", 1.0, (begun[0][0], "Train.init_from = 'nowhere'"), goes_on)
    with pytest.raises(ConfigError, match=r"gone goes on from nowhere \(Train\.init_from\), where there is no run"):
        arms_of([str(first), gone])


def test_an_unfinished_run_is_told(first, arms, capfd):
    longer = other(first, "longer", 0.9, (f"Train.steps = {STEPS}", "Train.steps = 100"))
    assert run_main(eval_script.main, ["compare", arms[0], longer]) == 0
    assert re.search(r"longer: unfinished, 8 of 100 steps", capfd.readouterr().out)


def test_what_cannot_be_compared_is_refused_in_one_line(first, arms, tmp_path, capfd):
    def says(*directories) -> str:
        assert run_main(eval_script.main, ["compare", *map(str, directories)]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        return line

    assert "expected run directories" in says()
    assert says(tmp_path / "none") == f"error: compare: no run in {tmp_path / 'none'} (it has no config.gin)"
    assert "expected a reference and at least one other config, got 1 run" in says(arms[0])
    assert "got 2 runs of one config" in says(*arms[:2])
    assert "expected different runs" in says(arms[0], arms[0])
    other_data = first.parent / "other_data"
    shutil.copytree(first, other_data)
    shutil.rmtree(other_data / "artifacts")
    copy_artifacts(write_dataset(tmp_path / "other", seed=1), other_data / "artifacts")
    assert f"{other_data} was trained on other data than" in says(arms[0], other_data)
    silent = other(first, "silent", 1.0)
    (first.parent / "silent" / "metrics.jsonl").write_text("")
    assert "has no training losses; expected Train.log_every above 0" in says(arms[0], silent)
