"""Which runs of a sweep are done, which go on, and which are another config's."""

import dataclasses
import json

import pytest
from etils import epath

from mot_jax.data.dataset import copy_artifacts
from mot_jax.errors import ConfigError
from mot_jax.experiments.done import is_done
from mot_jax.experiments.sweep import Job
from tests.training.conftest import write_dataset

BINDINGS = ("Train.steps = 6", "Train.eval_every = 3", "Optimizer.learning_rate = 0.5")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("done") / "data", documents=20)


@pytest.fixture
def job(data, tmp_path) -> Job:
    """Of a finished run: its directory as training leaves it, as far as anybody looks."""
    job = Job(epath.Path(tmp_path / "run"), (), BINDINGS)
    (job.directory / "checkpoints" / "6").mkdir(parents=True)
    (job.directory / "config.gin").write_text("\n".join(BINDINGS))
    copy_artifacts(data, job.directory / "artifacts")
    judge(job, 3, 6)
    return job


def judge(job: Job, *judged: int) -> None:
    lines = [{"step": 6, "split": "train"}, *({"step": step, "split": "validation"} for step in judged)]
    (job.directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_what_is_half_done_is_not_done(job):
    assert is_done(job)
    (job.directory / "checkpoints" / "6").rename(job.directory / "checkpoints" / "3")
    assert not is_done(job)
    (job.directory / "checkpoints" / "6").mkdir()
    (job.directory / "config.gin").unlink()
    assert not is_done(job)


def test_a_run_is_not_done_before_its_last_held_out_loss(job):
    judge(job, 3)
    assert not is_done(job)
    assert is_done(dataclasses.replace(job, bindings=(*BINDINGS, "Train.eval_every = 0")))
    manifest = job.directory / "artifacts" / "manifest.json"
    found = json.loads(manifest.read_text())
    del found["splits"]["validation"]
    manifest.write_text(json.dumps(found))
    assert is_done(job)  # there is nothing to be judged by


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("binding", "expected"),
    [
        ("Optimizer.learning_rate = 0.25", "Optimizer.learning_rate: the run in {} has 0.5, this sweep 0.25"),
        ("Model.dim = 64", "Model.dim: the run in {} has 128, this sweep 64"),
        ("Train.steps = 9", "Train.steps: the run in {} has 6, this sweep 9"),
        ("Eval.batches = 2", "Eval.batches: the run in {} has 8, this sweep 2"),
        ("Train.init_from = 'there@3'", "Train.init_from: the run in {} has None, this sweep 'there@3'"),
    ],
)
def test_a_run_of_another_config_is_neither_taken_nor_trained_on(job, finished, binding, expected):
    if not finished:
        (job.directory / "checkpoints" / "6").rmdir()
    with pytest.raises(ConfigError) as caught:
        is_done(dataclasses.replace(job, bindings=(*BINDINGS, binding)))
    assert str(caught.value).startswith(expected.format(job.directory))


def test_what_changes_no_loss_may_differ(job):
    assert is_done(dataclasses.replace(job, bindings=(*BINDINGS, "Train.log_every = 7", "Eval.prompts = 3")))


def test_an_arms_start_is_another_arm_and_step_wherever_they_lie(job):
    def at(source: str) -> Job:
        start = (f"Train.init_from = {source!r}", "Train.keep_data = True")
        return dataclasses.replace(job, bindings=(*BINDINGS, *start), after=epath.Path(source.partition("@")[0]))

    (job.directory / "config.gin").write_text("\n".join(at("old/place/seed_0@3").bindings))
    assert is_done(at("new/place/seed_0@3"))
    for other in ("old/place/seed_0@2", "old/place/seed_1@3"):
        with pytest.raises(ConfigError, match=r"^Train\.init_from: the run in "):
            is_done(at(other))


def test_without_checkpoints_nobody_could_tell(job):
    with pytest.raises(ConfigError, match=r"run: Train\.checkpoint_every: expected more than 0 in a sweep"):
        is_done(dataclasses.replace(job, bindings=(*BINDINGS, "Train.checkpoint_every = 0")))
