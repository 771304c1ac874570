"""`eval.py compare` on run directories: which are one arm, what is written, what is refused."""

import dataclasses
import json
import pathlib
import re
import shutil

import pytest
from rich.console import Console

import eval as eval_script
from mot_jax.cli import run_main
from mot_jax.config.experts import ExpertChoice
from mot_jax.config.text import run_text
from mot_jax.data.dataset import copy_artifacts
from mot_jax.errors import ConfigError, DataError
from mot_jax.evaluation.compare.arms import arms_of
from mot_jax.evaluation.compare.curves import curves
from mot_jax.evaluation.compare.report import compare, to_json
from mot_jax.evaluation.compare.table import show
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
    "Train.checkpoint_every = 3",
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
    assert written["held_out"] == {"rows_at_most": 64, "tokens_a_row": 48}
    printed = capfd.readouterr().out
    assert "mot: 2 seeds, 8 steps; Model.untied" in printed and "unfinished" not in printed
    assert "mean over the split's first 64 rows, or fewer, 48 tokens a row" in " ".join(printed.split())


def test_the_whole_split_is_said_to_be_whole(first, tmp_path, capfd):
    whole = ("Eval.batches = 8", "Eval.batches = None")
    runs = [
        other(first, "whole_0", 1.0, whole),
        other(first, "whole_1", 0.9, whole, ("Model.ffn_dim = 32", "Model.ffn_dim = 56")),
    ]
    assert run_main(eval_script.main, ["compare", *runs, "--out", str(tmp_path / "out")]) == 0
    assert "mean over the whole split, 48 tokens a row" in " ".join(capfd.readouterr().out.split())
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["held_out"]["rows_at_most"] is None
    with pytest.raises(
        DataError, match=r"over the whole split in rows of 48 tokens, those of .* over Eval\.batches = 8"
    ):
        arms_of([str(first), runs[1]])


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


def test_a_run_goes_on_from_the_newest_checkpoint_and_not_from_the_last_line(first):
    """Killed after step 8 with checkpoints of 3 and 6."""
    killed = pathlib.Path(other(first, "killed", 1.0))
    shutil.rmtree(killed / "checkpoints" / "8")
    goes_on = (("Train.keep_data = False", "Train.keep_data = True"), ("Model.ffn_dim = 32", "Model.ffn_dim = 56"))
    later = other(first, "after_killed", 1.0, ("Train.init_from = None", f"Train.init_from = '{killed}'"), *goes_on)
    (run,) = arms_of([str(first), later])[1].runs
    assert (run.began_at, run.steps) == (6, 14)


def test_steps_after_the_last_line_are_counted_and_cost_as_much_as_those_before(first):
    stopped = pathlib.Path(other(first, "stopped", 1.0, ("Model.ffn_dim = 32", "Model.ffn_dim = 64")))
    lines = [line for line in read_metrics(stopped / "metrics.jsonl") if (line["split"], line["step"]) != ("train", 8)]
    (stopped / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arm = arms_of([str(first), str(stopped)])[1]
    assert arm.steps == 8  # its held-out line says so
    (training,), (held_out,) = (curves(arm, split, "all", 1) for split in ("train", "validation"))
    assert training.steps.tolist() == [2, 4, 6] and held_out.steps.tolist() == [4, 8]
    rate = next(line["step_seconds"] for line in lines if line["step"] == 6)
    assert held_out.seconds[-1] == pytest.approx(training.seconds[-1] + 2 * rate)


def test_an_unfinished_run_is_told(first, arms, capfd):
    longer = other(first, "longer", 0.9, (f"Train.steps = {STEPS}", "Train.steps = 100"))
    assert run_main(eval_script.main, ["compare", arms[0], longer]) == 0
    assert re.search(r"longer: unfinished, 8 of 100 steps", capfd.readouterr().out)


def keep(directory: str, kept) -> str:
    """The run with fewer lines of metrics."""
    path = pathlib.Path(directory) / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in read_metrics(path) if kept(line)))
    return directory


def test_what_is_left_out_is_said(first, arms, capfd):
    """Seeds without a held-out loss, seeds without a common one, an arm that is judged early or cannot be at all."""

    def wide(name: str, dim: int, seed: int, held_out: tuple[int, ...]) -> str:
        changes = ("Model.ffn_dim = 32", f"Model.ffn_dim = {dim}"), ("Train.seed = 0", f"Train.seed = {seed}")
        return keep(
            other(first, name, 0.9, *changes), lambda line: line["split"] == "train" or line["step"] in held_out
        )

    some = [wide("some_0", 33, 0, (4, 8)), wide("some_1", 33, 1, ())]
    apart = [wide("apart_0", 34, 0, (4,)), wide("apart_1", 34, 1, (8,))]
    early = [wide("early_0", 35, 0, (4,)), wide("early_1", 35, 1, (4, 8))]
    never = wide("never", 36, 0, ())
    future = other(first, "future", 0.9)
    run, _ = load_run([str(first / "config.gin")])
    model = dataclasses.replace(run.model, feed_forward=ExpertChoice(ffn_dim=32))
    (first.parent / "future" / "config.gin").write_text(run_text(dataclasses.replace(run, model=model)))
    found = compare(arms_of([*arms[:2], *some, *apart, *early, never, future]))
    written = to_json(found)
    show(found, Console(width=200))
    printed = " ".join(capfd.readouterr().out.split())
    assert written["notes"] == [
        "some: held-out loss of 1 of 2 seeds, the others have none",
        "apart: no held-out loss: its seeds have none at the same step",
        "early: the last held-out loss that all its seeds have is of step 4 of 8",
        "never: its runs have no held-out loss",
        "future: no held-out loss: its routers choose by later tokens, and it trained no others for generation "
        "(Model.auxiliary_routers)",
    ]
    assert all(note in printed for note in written["notes"]) and "some (1 of 2 seeds)" in printed
    rows = {(each["split"], each["arm"]): each for each in written["matches"] if each["modality"] == "all"}
    assert [arm for split, arm in rows if split == "train"] == ["some", "apart", "early", "never", "future"]
    assert [arm for split, arm in rows if split == "validation"] == ["some", "early"]
    assert (rows["validation", "some"]["seeds"], rows["validation", "some"]["reference_seeds"]) == (1, 2)


def test_null_is_not_reached_and_nothing_else(first, arms):
    worse = other(first, "worse", 2.0, ("Model.ffn_dim = 32", "Model.ffn_dim = 31"))
    one, two = (to_json(compare(arms_of([*runs, worse])))["matches"][0]["match"] for runs in (arms[:1], arms[:2]))
    assert one["steps"] == {"value": None} and "draws_reached" not in one
    assert two["steps"] == {"value": None, "low": None, "high": None} and two["draws_reached"] == 0


def test_a_window_is_whole_lines_and_a_rise_at_the_end_is_told(first, arms, capfd):
    def rising(line: dict) -> dict:
        return line | {"loss": line["loss"] * (1.5 if line["step"] == STEPS else 1.0)}

    rises = other(first, "rises", 1.0)
    path = first.parent / "rises" / "metrics.jsonl"
    path.write_text("".join(json.dumps(rising(line)) + "\n" for line in read_metrics(path)))
    assert run_main(eval_script.main, ["compare", rises, arms[2]]) == 0
    printed = " ".join(capfd.readouterr().out.split())
    assert "training loss, mean over the lines of the last 2 steps" in printed  # 5% of 8 are fewer than a line's
    assert "rises itself first had its final held-out loss at, of its own steps: all 0.500" in printed


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
    fewer = other(first, "fewer", 1.0, ("Eval.batches = 8", "Eval.batches = 2"), ("Train.seed = 0", "Train.seed = 1"))
    assert says(arms[0], fewer, arms[2]) == (
        f"error: compare: held-out losses of {fewer} are over Eval.batches = 2 of 8 rows of 48 tokens, those of "
        f"{first} over Eval.batches = 8 of 8 rows of 48 tokens; expected the same (--gin.Eval.batches)"
    )
    silent = other(first, "silent", 1.0)
    (first.parent / "silent" / "metrics.jsonl").write_text("")
    assert "has no training losses; expected Train.log_every above 0" in says(arms[0], silent)
