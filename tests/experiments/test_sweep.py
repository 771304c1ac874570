"""Sweeps as files: what they become, and what is refused in a line."""

import json
import re

import pytest
from etils import epath

from mot_jax.cli import parse_train
from mot_jax.errors import ConfigError, DataError
from mot_jax.experiments.learning_rates import choose
from mot_jax.experiments.read_sweep import read_sweep
from mot_jax.experiments.sweep import Job, jobs, search_jobs
from mot_jax.gin_config import configs_directory

TEXT = """
reference = "b"
seeds = [3, 4]
files = ["digits_mot"]
set = ["Train.steps = 30"]
learning_rates = [1e-3, 2e-3]
search = ["Train.steps = 10"]
[arms.a]
set = ["Model.untied = ()"]
[arms.b]
files = ["digits_moe"]
"""


def write(directory, text: str) -> str:
    path = directory / "mine.toml"
    path.write_text(text)
    return str(path)


def test_every_arm_is_trained_with_every_seed_and_its_rate(tmp_path):
    sweep, place = read_sweep(write(tmp_path, TEXT)), epath.Path(tmp_path)
    todo = jobs(sweep, place, {"a": 1e-3, "b": 2e-3})
    assert [job.directory.name for job in todo] == ["a_3", "b_3", "a_4", "b_4"]
    first, second = (job.run for job in todo[:2])
    assert (first.train.steps, first.train.seed, first.optimizer.learning_rate) == (30, 3, 1e-3)
    assert (second.train.seed, second.optimizer.learning_rate) == (3, 2e-3)
    assert first.model.untied == () and second.model.feed_forward.experts == 8
    tried = search_jobs(sweep, place)
    assert [job.run.optimizer.learning_rate for job in tried["b"].values()] == [1e-3, 2e-3]
    assert {job.run.train.steps for by_rate in tried.values() for job in by_rate.values()} == {10}
    assert len({job.directory for by_rate in tried.values() for job in by_rate.values()}) == 4


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ('reference = "b"', 'reference = "c"', "reference: no arm 'c'; known: a, b"),
        ("seeds", "sedes", "no field sedes; did you mean 'seeds'?"),
        ("seeds = [3, 4]", 'seeds = "3"', "seeds: expected a list of int, got '3'"),
        ('set = ["Model.untied = ()"]', "st = 3", "no field arms.a.st; did you mean 'set'?"),
        ("Train.steps = 30", "Train.stpes = 30", "arms.a: Train has no field 'stpes'; did you mean 'steps'?"),
        ("digits_moe", "digits_moee", "arms.b: no gin file 'digits_moee'; did you mean 'digits_moe'?"),
        ("[arms.b]", "[arms.b", "no TOML"),
        (
            "Model.untied = ()",
            "Eval.batches = 3",
            "arms.a: held-out losses are over Eval.batches = 3 of 8 rows of 128 tokens, those of b over "
            "Eval.batches = 8 of 8 rows of 128 tokens; expected the same",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_place(before, after, expected, tmp_path):
    path = write(tmp_path, TEXT.replace(before, after))
    with pytest.raises(ConfigError) as caught:
        read_sweep(path)
    assert str(caught.value).startswith(f"{path}: ") and expected in str(caught.value)


STARTED = """
set = ["Train.steps = 40", "Train.checkpoint_every = 10"]
[arms.seed]
[arms.late]
start = "seed@20"
set = ["Train.steps = 20", "Model.untied = ('feed_forward',)"]
"""


def test_an_arm_goes_on_where_each_seed_of_another_was(tmp_path):
    sweep, place = read_sweep(write(tmp_path, STARTED)), epath.Path(tmp_path)
    first, late = jobs(sweep, place, {})
    default = parse_train(["--gin.Train.steps=40", "--gin.Train.checkpoint_every=10"]).run
    assert first.run == default  # no files: what train.py takes then
    assert first.after is None and late.after == first.directory == place / "seed_0"
    assert late.run.train.init_from == f"{place}/seed_0@20" and late.run.train.keep_data


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("seed@20", "seed", "arms.late.start: expected an arm and a step, as in 'dense@500', got 'seed'"),
        ("seed@20", "sed@20", "arms.late.start: no other arm 'sed'; did you mean 'seed'?"),
        ("seed@20", "late@20", "arms.late.start: no other arm 'late'"),
        ("seed@20", "seed@10", "arms.late.start: of seed the checkpoints 20, 30, 40 are kept, not 10"),
        ("[arms.seed]", "learning_rates = [1e-3]\n[arms.seed]", "an arm with a start cannot search learning rates"),
        ("[arms.seed]", '[arms.seed]\nstart = "late@20"', "cannot start from late, which has a start itself"),
    ],
)
def test_a_start_that_cannot_be_is_refused(before, after, expected, tmp_path):
    with pytest.raises(ConfigError) as caught:
        read_sweep(write(tmp_path, STARTED.replace(before, after)))
    assert expected in str(caught.value)


AGAINST = """
files = ["digits_mot"]
[arms.a]
[arms.b]
[arms.c]
against = "d"
[arms.d]
[arms.e]
against = "d"
"""


def test_an_arm_is_compared_with_its_reference(tmp_path):
    def comparisons(text: str) -> dict:
        return read_sweep(write(tmp_path, text)).comparisons

    assert comparisons(AGAINST) == {"a": ("b",), "d": ("c", "e")}
    assert comparisons(AGAINST.replace("[arms.d]", '[arms.d]\nagainst = "a"')) == {"a": ("b", "d"), "d": ("c", "e")}
    with pytest.raises(ConfigError, match=r"arms\.a: nothing is compared with it; expected an `against` for it"):
        comparisons(AGAINST.replace("[arms.b]", '[arms.b]\nagainst = "d"'))
    assert comparisons(TEXT) == {"b": ("a",)}
    assert comparisons(TEXT.replace('reference = "b"', "")) == {"a": ("b",)}
    assert read_sweep("sizes").comparisons == {f"dense_{width}": (f"mot_{width}",) for width in (64, 128, 256)}
    for wrong, said in (("dd", "no other arm 'dd'; did you mean 'd'?"), ("c", "no other arm 'c'")):
        with pytest.raises(ConfigError, match=re.escape(f"arms.c.against: {said}")):
            comparisons(AGAINST.replace('against = "d"', f"against = {wrong!r}", 1))


def test_one_arm_is_no_sweep_and_a_misspelt_name_is_told(tmp_path):
    with pytest.raises(ConfigError, match="expected at least two arms"):
        read_sweep(write(tmp_path, TEXT.partition("[arms.b]")[0]))
    with pytest.raises(ConfigError, match="no sweep 'componnets'; did you mean 'components'"):
        read_sweep("componnets")


@pytest.mark.parametrize("name", sorted(path.stem for path in (configs_directory() / "sweeps").glob("*.toml")))
def test_shipped_sweeps_can_be_read(name, tmp_path):
    sweep = read_sweep(name)
    todo = jobs(sweep, epath.Path(tmp_path), {})
    assert len({job.directory for job in todo}) == len(sweep.arms) * len(sweep.seeds)
    assert len({job.run for job in todo}) == len(todo)  # no two arms are the same run


def finished(directory, name: str, *lines: dict) -> Job:
    (directory / name).mkdir()
    (directory / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Job(epath.Path(directory / name), (), ())


def test_the_lowest_last_held_out_loss_chooses(tmp_path):
    def line(step, loss, **more):
        return {"step": step, "split": "validation", "loss": loss, **more}

    tried = {
        1.0: finished(tmp_path, "low", line(1, 1.0), line(2, 3.0)),
        2.0: finished(tmp_path, "middle", line(1, 4.0), line(2, 2.0)),
        3.0: finished(tmp_path, "diverged", line(1, 4.0), line(2, None)),
    }
    found = choose(tried)
    assert found.rate == 2.0 and not found.at_edge and found.losses == {1.0: 3.0, 2.0: 2.0, 3.0: float("inf")}
    assert found.as_json() == {"rate": 2.0, "losses": {"1.0": 3.0, "2.0": 2.0, "3.0": None}, "at_edge": False}
    assert choose({1.0: tried[1.0], 2.0: tried[2.0]}).at_edge
    causal = finished(tmp_path, "causal", line(2, 1.0, causal_loss=5.0))
    assert choose({1.0: causal, 2.0: tried[2.0]}).rate == 2.0
    with pytest.raises(DataError, match="no held-out loss"):
        choose({1.0: finished(tmp_path, "none")})
