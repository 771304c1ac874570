"""Whole runs on a small data set: what they leave, what they refuse, and that being stopped changes nothing."""

import dataclasses
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from mot_jax import config
from mot_jax.data.dataset import open_dataset
from mot_jax.errors import CheckpointError, ConfigError, DataError, UserError
from mot_jax.evaluation import tasks
from mot_jax.evaluation.tasks import Accuracy, register_task
from mot_jax.gin_config import load_run
from mot_jax.nn import transformer
from mot_jax.nn.attention import causal_in_document
from mot_jax.training import flops
from mot_jax.training.checkpoint import Checkpoints
from mot_jax.training.loop import train
from mot_jax.training.metrics import TIMINGS
from mot_jax.training.writers import read_metrics
from tests.training.conftest import write_dataset

REPOSITORY = pathlib.Path(__file__).parents[2]
SMALL = ("Model.dim = 16", "Model.num_layers = 1", "Model.num_heads = 2", "Model.ffn_dim = 32")
SMALL += ("Data.sequence_length = 48", "Data.global_batch_size = 8", "Optimizer.warmup_steps = 4")
QUIET = ("Train.eval_every = 0", "Train.sample_every = 0", "Train.log_every = 3", "Eval.batches = 2")
WHOLE = ("Train.steps = 40", "Train.checkpoint_every = 4", "Train.eval_every = 16", "Train.sample_every = 30")
WHOLE += ("Sample.prompts = 1", "Sample.max_tokens = 4", "Train.keep_checkpoints = 20")


def bindings(dataset_directory, *changes: str) -> list[str]:
    return [f"Data.path = '{dataset_directory}'", *SMALL, *QUIET, *changes]


def start(dataset_directory, run_dir, *changes: str, resume: str = "never") -> int:
    run, text = load_run((), bindings(dataset_directory, *changes))
    return train(run, run_dir, resume, text)


def without_timings(run_dir) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in read_metrics(run_dir / "metrics.jsonl")]


def last_params(run_dir, model: config.Model) -> dict:
    with Checkpoints(run_dir / "checkpoints") as checkpoints:
        return checkpoints.restore_params(transformer.abstract(model))[1]


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """The runs here compile the same step; only the first pays for it."""
    cache = str(tmp_path_factory.mktemp("compiled"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", cache)  # of the run in a process of its own
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
        compilation_cache.reset_cache()
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        yield
        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def finished(dataset_directory, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    assert start(dataset_directory, run_dir, *WHOLE) == 0
    return run_dir


def test_a_run_leaves_what_it_promises(finished, dataset_directory):
    lines = read_metrics(finished / "metrics.jsonl")
    assert [line["step"] for line in lines if line["split"] == "train"] == [*range(3, 40, 3), 40]
    assert [line["step"] for line in lines if line["split"] == "validation"] == [16, 32, 40]
    line = next(line for line in lines if line["step"] == 12)
    assert {"loss", "loss/text", "loss/image", "learning_rate", "grad_norm", "skipped", *TIMINGS} <= line.keys()
    assert line["mfu"] is None
    assert sum(line[f"{kind}_fraction"] for kind in ("data_wait", "device_wait", "host")) == pytest.approx(1)
    assert 0 < line["modality_tokens/text"] + line["modality_tokens/image"] <= 8 * 48
    assert line["learning_rate"] == pytest.approx(3e-3 * (0.1 + 0.9 * (0.5 + 0.5 * np.cos(np.pi * 8 / 36))))
    assert sorted(path.name for path in (finished / "samples").iterdir()) == ["step_000030.png", "step_000040.png"]
    assert sorted(int(path.name) for path in (finished / "checkpoints").iterdir()) == list(range(4, 41, 4))
    assert (finished / "losses.png").read_bytes()[:4] == b"\x89PNG"
    assert (finished / "artifacts" / "manifest.json").exists()
    run, _ = load_run([str(finished / "config.gin")])
    assert run.train.steps == 40
    model = config.resolve(run.model, ("text", "image"), open_dataset(dataset_directory).vocabulary.size)
    spent = {line["step"]: line["training_flops"] for line in lines if line["split"] == "validation"}
    assert spent[16] == 16 * 8 * 48 * flops.train_flops_per_token(model, 48) and spent[32] == 2 * spent[16]
    with Checkpoints(finished / "checkpoints") as checkpoints:
        step = checkpoints.steps()[-1]
        meta, window = checkpoints.meta(step), checkpoints.meta(32)["window"]
    assert step == 40
    assert meta["config"] == (finished / "config.gin").read_text()
    assert meta["artifacts"].keys() == {"text", "image"}
    assert window["loss"][1] > 0  # step 32 belongs to a line that is not yet written
    assert meta["window"] == {}


def test_the_last_line_is_of_the_steps_since_the_one_before(dataset_directory, tmp_path):
    """Also where nothing else is due there."""
    changes = ("Train.steps = 8", "Train.checkpoint_every = 0")
    assert start(dataset_directory, tmp_path / "each", *changes, "Train.log_every = 1") == 0
    assert start(dataset_directory, tmp_path / "whole", *changes) == 0
    each, whole = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("each", "whole"))
    assert [line["step"] for line in each] == list(range(1, 9)) and [line["step"] for line in whole] == [3, 6, 8]
    for line, covered in zip(whole, (each[:3], each[3:6], each[6:]), strict=True):
        for name in ("grad_norm", "modality_tokens/text", "modality_tokens/image"):
            assert line[name] == pytest.approx(np.mean([one[name] for one in covered])), (line["step"], name)
    tokens = whole[-1]["modality_tokens/text"] + whole[-1]["modality_tokens/image"]
    assert whole[-1]["tokens_per_second"] * whole[-1]["step_seconds"] == pytest.approx(tokens)


def test_the_last_line_is_the_same_of_a_run_that_goes_on_or_ends_inside_its_window(dataset_directory, tmp_path):
    def lines(name, steps, resume="never"):
        changes = (f"Train.steps = {steps}", "Train.checkpoint_every = 4", "Optimizer.schedule = 'constant'")
        assert start(dataset_directory, tmp_path / name, *changes, resume=resume) == 0
        return without_timings(tmp_path / name)

    five, whole = lines("five", 5), lines("run", 8)
    assert [line["step"] for line in whole] == [3, 6, 8]
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    assert lines("run", 8, "must") == whole  # from 4, in a window
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    ended = lines("run", 4, "must")  # there after all
    assert [line["step"] for line in ended] == [3, 4] and ended[0] == whole[0]
    assert lines("run", 4, "must") == ended
    longer = lines("run", 5, "must")
    assert [line["step"] for line in longer] == [3, 4, 5]
    for name in ("modality_tokens/text", "grad_norm"):
        assert np.mean([line[name] for line in longer[1:]]) == pytest.approx(five[1][name])


def test_refuses_what_would_mix_runs(finished, dataset_directory, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    with pytest.raises(UserError, match="holds a run; --resume=auto"):
        start(dataset_directory, finished)
    with pytest.raises(ConfigError, match=r"Model\.dim: the run in .* has 16, got 32"):
        start(dataset_directory, finished, "Model.dim = 32", resume="auto")
    with pytest.raises(ConfigError, match=r"Optimizer\.b2"):
        start(dataset_directory, finished, "Optimizer.b2 = 0.9", resume="must")
    other = write_dataset(tmp_path / "other", seed=1)
    with pytest.raises(DataError, match="data set: the saved run has"):
        start(other, finished, resume="auto")
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    with pytest.raises(CheckpointError, match="--resume=must, but there is no checkpoint"):
        start(dataset_directory, tmp_path / "none", resume="must")
    assert not (tmp_path / "none").exists()


def test_a_window_of_steps_is_profiled(dataset_directory, tmp_path, capfd):
    assert start(dataset_directory, tmp_path / "run", "Train.steps = 5", "Train.profile = (3, 2)") == 0
    (trace,) = (tmp_path / "run" / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000 and list(trace.parent.glob("perfetto_trace.json.gz"))
    printed = capfd.readouterr().out
    assert printed.count("profile: ") == 1 and "compiled again" not in printed


def test_an_impossible_run_leaves_no_directory(dataset_directory, tmp_path):
    with pytest.raises(UserError, match=r"Data\.global_batch_size: 4 rows"):  # eight fake devices
        start(dataset_directory, tmp_path / "run", "Data.global_batch_size = 4")
    with pytest.raises(CheckpointError, match="no checkpoints here"):
        start(dataset_directory, tmp_path / "run", f"Train.init_from = '{tmp_path}/nowhere'")
    assert not (tmp_path / "run").exists()


def test_the_closing_note_counts_documents_longer_than_a_row(dataset_directory, tmp_path, capsys):
    changes = ("Train.steps = 1", "Data.sequence_length = 8", "Train.checkpoint_every = 0")
    assert start(dataset_directory, tmp_path / "run", *changes) == 0
    noted = r"longer than a row of 8 tokens, of the documents read since this start: [1-9]\d* cut, 0 left out\n"
    assert re.search(noted, capsys.readouterr().out)


def test_stops_after_non_finite_steps_in_a_row(dataset_directory, tmp_path):
    # A loss weight beyond float32 makes every loss infinite.
    changes = ("Train.steps = 20", "Train.max_bad_steps = 4", "Train.modality_weights = {'text': 1e999}")
    with pytest.raises(UserError, match=r"Train.max_bad_steps: .* 4 steps in a row, the last one 4; there is no check"):
        start(dataset_directory, tmp_path / "run", *changes)
    (line,) = without_timings(tmp_path / "run")
    assert (line["step"], line["skipped"], line.get("loss")) == (3, 3, None)


def test_dense_parameters_start_an_untied_model_that_computes_the_same(finished, dataset_directory, tmp_path):
    untied = "Model.untied = ('attention', 'feed_forward', 'norm')"
    source = f"Train.init_from = '{finished}@4'"
    start(dataset_directory, tmp_path / "mot", untied, source, "Train.steps = 0", "Train.checkpoint_every = 1")
    run, _ = load_run([str(finished / "config.gin")])
    dense = config.resolve(run.model, ("text", "image"), 310)
    mot = dataclasses.replace(dense, untied=("attention", "feed_forward", "norm"))
    with Checkpoints(finished / "checkpoints") as checkpoints:
        _, dense_params = checkpoints.restore_params(transformer.abstract(dense), 4)
    rng = np.random.default_rng(0)
    modality = rng.integers(0, 2, (2, 32)).astype(np.int32)
    tokens = rng.integers(0, 310, (2, 32)).astype(np.int32)
    positions = np.broadcast_to(np.arange(32, dtype=np.int32)[None, :, None], (2, 32, 1))

    def hidden(model, params):
        def attend(layer, q, k, v, segment_ids):
            return causal_in_document(q, k, v, jnp.ones((2, 32), jnp.int32))

        inputs = (jnp.asarray(x) for x in (tokens, modality, positions, np.ones((2, 32), np.int32)))
        return np.asarray(transformer.forward(model, params, *inputs, attend))

    mot_params = last_params(tmp_path / "mot", mot)
    gain = mot_params["final_norm"]["gain"]
    assert gain.shape == (2, 16)
    expected = hidden(dense, dense_params)
    np.testing.assert_allclose(hidden(mot, mot_params), expected, atol=2e-5)
    assert np.abs(expected).max() > 0.5


def test_another_width_to_start_from_is_named(finished, dataset_directory, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"Train.init_from: .*feed_forward/down has shape \(32, 16\), expected \(64"
    ):
        start(dataset_directory, tmp_path / "run", "Model.ffn_dim = 64", f"Train.init_from = '{finished}'")


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_stopped_killed_and_resumed_equals_never_stopped(finished, dataset_directory, tmp_path):
    run_dir = tmp_path / "run"

    def when_at(step: int, act, running) -> None:
        while running() and not any(line["step"] >= step for line in read_metrics(run_dir / "metrics.jsonl")):
            time.sleep(0.005)
        if running():
            act()

    running = True
    stopper = threading.Thread(
        target=when_at, args=(6, lambda: os.kill(os.getpid(), signal.SIGTERM), lambda: running), daemon=True
    )
    stopper.start()
    assert start(dataset_directory, run_dir, *WHOLE) == 143
    running = False
    stopper.join()
    with Checkpoints(run_dir / "checkpoints") as checkpoints:
        stopped_at = checkpoints.steps()[-1]
    assert 6 <= stopped_at < 40

    flags = [f"--gin_bindings={binding}" for binding in bindings(dataset_directory, *WHOLE)]
    command = [sys.executable, "train.py", *flags, "--run_dir", str(run_dir), "--resume=auto"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        when_at(min(stopped_at + 8, 39), process.kill, lambda: process.poll() is None)
        assert f"from step {stopped_at}" in process.stdout.read()
    assert process.returncode == -signal.SIGKILL

    assert start(dataset_directory, run_dir, *WHOLE, resume="must") == 0
    assert without_timings(run_dir) == without_timings(finished)
    model = config.resolve(load_run([str(finished / "config.gin")])[0].model, ("text", "image"), 310)
    jax.tree.map(np.testing.assert_array_equal, last_params(run_dir, model), last_params(finished, model))


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_signal_between_steps_saves_and_leaves_the_rest_to_the_resumed_run(dataset_directory, tmp_path):
    asked = []

    @register_task("stops")
    def stops(context):
        asked.append(context.run.step)
        if len(asked) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"score": 1.0}

    due = ("Train.steps = 6", "Train.task_every = 4", "Train.sample_every = 4", "Eval.tasks = ('stops',)")
    due += ("Train.checkpoint_every = 6", "Sample.prompts = 1", "Sample.max_tokens = 4")
    try:
        assert start(dataset_directory, tmp_path / "run", *due) == 143
        assert not (tmp_path / "run" / "samples").exists()
        with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
            assert checkpoints.steps() == [4]
        assert start(dataset_directory, tmp_path / "run", *due, resume="must") == 0
    finally:
        del tasks._TASKS["stops"]
    assert asked == [4, 6]
    assert sorted(path.name for path in (tmp_path / "run" / "samples").iterdir()) == [
        "step_000004.png",
        "step_000006.png",
    ]


def test_tasks_are_asked_at_their_interval_and_once_when_resumed(dataset_directory, tmp_path):
    asked = []

    @register_task("steps")
    def steps(context):
        asked.append(context.run.step)
        return {"twice": 2.0 * context.run.step, "right": Accuracy(1, 4)}

    asking = ("Train.task_every = 4", "Train.checkpoint_every = 2", "Eval.tasks = ('steps',)")
    try:
        start(dataset_directory, tmp_path / "run", "Train.steps = 8", *asking)
        start(dataset_directory, tmp_path / "run", "Train.steps = 10", *asking, resume="must")
    finally:
        del tasks._TASKS["steps"]
    assert asked == [4, 8, 10]
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line["split"] == "tasks"]
    assert [(line["step"], line["steps/twice"], line["steps/right"]) for line in lines] == [
        (step, 2 * step, 0.25) for step in asked
    ]
    assert lines[0]["training_flops"] / 4 == lines[1]["training_flops"] / 8 == lines[2]["training_flops"] / 10 > 0
