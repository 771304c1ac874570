"""Real runs by the runner: trained once, gone on with after a kill, compared in the end."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from etils import epath

from mot_jax.cli import run_main
from mot_jax.errors import UserError
from mot_jax.experiments import runner
from mot_jax.experiments.__main__ import main
from mot_jax.experiments.read_sweep import read_sweep
from mot_jax.experiments.runner import core_shares, memory_shares, train_all
from mot_jax.experiments.sweep import Job, jobs
from mot_jax.training.writers import read_metrics
from tests.training.conftest import write_dataset

REPOSITORY = Path(__file__).resolve().parents[2]

SWEEP = """
reference = "dense"
set = [
  "Data.path = '{data}'", "Data.sequence_length = 48", "Data.global_batch_size = 8",
  "Model.dim = 16", "Model.num_layers = 1", "Model.num_heads = 2", "Model.ffn_dim = 32", "Train.sample_every = 0",
  "Train.steps = 6", "Train.log_every = 2", "Train.eval_every = 3", "Train.checkpoint_every = 2",
]
[arms.dense]
[arms.wider]
set = ["Model.ffn_dim = 48"]
[arms.later]
start = "dense@2"
set = ["Train.steps = 4"]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("sweep")
    (place / "small.toml").write_text(SWEEP.format(data=write_dataset(place / "data")))
    return place


def test_a_sweep_is_trained_once_and_compared(place, capfd, monkeypatch):
    """With a source of the user's own; and a run that was killed before its last held-out loss makes that up."""
    (place / "sweep_corpora.py").write_text(
        "import dataclasses\nfrom mot_jax import Source\n\n"
        "@dataclasses.dataclass(frozen=True, kw_only=True)\nclass SweepCorpora(Source):\n    documents: int = 7\n"
    )
    text = (place / "small.toml").read_text()
    (place / "own.toml").write_text(text.replace("set = [", 'set = [\n  "Data.source = @SweepCorpora()",', 1))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.fspath(REPOSITORY), os.fspath(place)]))
    monkeypatch.syspath_prepend(place)
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(place / "compiled"))
    arguments = [str(place / "own.toml"), "--import", "sweep_corpora", "--dir", str(place / "out"), "--at_once", "2"]
    assert run_main(main, arguments) == 0
    printed = capfd.readouterr().out
    assert "run 2/3: wider_0" in printed
    assert printed.index("done: dense_0 after") < printed.index("run 3/3: later_0")
    found = json.loads((place / "out" / "compare" / "compare.json").read_text())
    assert found["reference"] == "dense_0" and found["arms"]["wider_0"]["differs"] == ["Model.ffn_dim: 32 became 48"]
    assert found["arms"]["later_0"]["steps"] == [6]
    metrics = place / "out" / "wider_0" / "metrics.jsonl"
    last = read_metrics(metrics)[-1]
    assert (last["split"], last["step"]) == ("validation", 6)
    metrics.write_text("".join(json.dumps(line) + "\n" for line in read_metrics(metrics)[:-1]))
    own = (place / "own.toml").read_text().replace("[arms.wider]", '[arms.wider]\nagainst = "dense"')
    (place / "own.toml").write_text(own + 'against = "wider"\n')
    assert run_main(main, arguments) == 0
    printed = capfd.readouterr().out
    assert "2 of 3 runs are done already" in printed and "run 3/3: wider_0" in printed
    assert read_metrics(metrics)[-1] == last
    for reference, other in (("dense", "wider"), ("wider", "later")):
        found = json.loads((place / "out" / "compare" / reference / "compare.json").read_text())
        assert found["reference"] == f"{reference}_0" and list(found["arms"]) == [f"{reference}_0", f"{other}_0"]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system pins no process to cores")
def test_runs_at_once_get_cores_of_their_own(place):
    cores = os.sched_getaffinity(0)
    shares = core_shares(len(cores))
    if len(cores) > 1:
        assert sorted(core for share in shares for core in share) == sorted(cores) and all(map(len, shares))
    assert core_shares(1) == [None] and core_shares(len(cores) + 1) == [None] * (len(cores) + 1)
    share = frozenset([max(cores)])
    process = runner._start(Job(epath.Path(place / "pinned"), (), ("Train.steps = nothing",)), share, os.environ, ())
    assert os.sched_getaffinity(process.pid) == share
    process.kill()
    process.wait()


def test_runs_at_once_share_a_gpus_memory():
    assert memory_shares(3, {"HOME": "/here"}) == {"HOME": "/here", "XLA_CLIENT_MEM_FRACTION": "0.300"}
    assert memory_shares(1, {"HOME": "/here"}) == {"HOME": "/here"}
    for own in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE"):
        assert memory_shares(3, {own: "0.2"}) == {own: "0.2"}  # as the user said


def test_a_run_that_fails_is_told_and_the_others_finish(place, capfd):
    """By the error of this attempt, whatever the log held before and whoever else writes to it."""
    wrong = Job(epath.Path(place / "wrong"), (), (f"Data.path = '{place / 'nowhere'}'", "Train.steps = 1"))
    (place / "wrong.log").write_text("error: of an earlier attempt\n")
    notes, stopped = [], threading.Event()

    def train_beside():
        while not stopped.wait(0.02):
            with open(place / "wrong.log", "a") as log:
                log.write("step 1/9 of another trainer\n")

    beside = threading.Thread(target=train_beside)
    beside.start()
    try:
        with pytest.raises(UserError, match=r"1 of 1 runs failed; wrong: error: .*nowhere.*exit code 2"):
            train_all([wrong], 1, notes.append)
    finally:
        stopped.set()
        beside.join()
    assert notes[0] == "run 1/1: wrong" and notes[1].startswith("failed: wrong")


def test_a_sweep_that_is_stopped_stops_its_runs_saved(place, tmp_path):
    """And a run that something trains already is not trained by another."""
    two, _, _ = (place / "small.toml").read_text().partition("[arms.later]")
    many = two.replace("Train.steps = 6", "Train.steps = 100000")
    (tmp_path / "long.toml").write_text(many.replace("Train.log_every = 2", "Train.log_every = 1"))
    command = [sys.executable, "-m", "mot_jax.experiments", str(tmp_path / "long.toml"), "--dir", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as sweep:
        try:
            run = tmp_path / "out" / "dense_0"
            while not (run / "metrics.jsonl").exists():
                assert sweep.poll() is None
                time.sleep(0.05)
            first = jobs(read_sweep(str(tmp_path / "long.toml")), epath.Path(tmp_path / "out"), {})[0]
            with pytest.raises(UserError, match=r"1 of 1 runs failed; .*another process is training in it"):
                train_all([first], 1, print)
        finally:  # the end of the block waits for the sweep, whatever failed
            sweep.send_signal(signal.SIGTERM)
        assert sweep.wait(60) == 143
    log = run.with_name("dense_0.log").read_text()
    assert "stopped by SIGTERM after step" in log and not run.with_name("wider_0").exists()
