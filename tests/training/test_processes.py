"""Real processes on one machine: a run killed, stopped and resumed by fewer of them equals one never stopped."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath

from mot_jax.cli import parse_train
from mot_jax.errors import ConfigError
from mot_jax.parallel.processes import LOST, started
from mot_jax.parallel.rows import shards_by_process
from mot_jax.training.checkpoint import Checkpoints
from mot_jax.training.run_directory import has_checkpoint
from mot_jax.training.writers import read_metrics

REPOSITORY = pathlib.Path(__file__).parents[2]
TIMEOUT = 5  # seconds without a sign of life
SMALL = ("Model.dim = 16", "Model.num_layers = 1", "Model.num_heads = 2", "Model.ffn_dim = 32", "Eval.batches = 2")
SMALL += ("Data.sequence_length = 48", "Data.global_batch_size = 8", "Data.shards = 4", "Optimizer.warmup_steps = 4")
SMALL += ("Train.steps = 60", "Train.log_every = 1", "Train.checkpoint_every = 10", "Train.keep_checkpoints = 99")
SMALL += ("Train.eval_every = 30", "Train.sample_every = 0")


class Job:
    """train.py in `count` processes of so many devices each; `slurm`: they find one another as under srun."""

    def __init__(self, dataset_directory, run_dir, count: int, *changes: str, slurm: bool = False, devices: int = 1):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        bindings = (f"Data.path = '{dataset_directory}'", *SMALL, *changes)
        command = [sys.executable, "train.py", *(f"--gin_bindings={line}" for line in bindings)]
        command += ["--run_dir", str(run_dir), "--resume=auto", f"--process_timeout={TIMEOUT}"]
        self.run_dir, self.processes, self._outputs = run_dir, [], []
        for index in range(count):
            xla = (f"--xla_force_host_platform_device_count={devices}", "--xla_backend_optimization_level=0")
            flags, added = [], {"XLA_FLAGS": " ".join(xla)}  # optimized less, they compile sooner
            if slurm:
                added |= {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(count)}
                added |= {"SLURM_PROCID": str(index), "SLURM_LOCALID": str(index), "JAX_COORDINATOR_PORT": port}
            elif count > 1:
                flags = [
                    "--coordinator",
                    f"localhost:{port}",
                    "--num_processes",
                    str(count),
                    "--process_id",
                    str(index),
                ]
            self._outputs.append(run_dir.with_name(f"{run_dir.name}.{port}.{index}"))
            with self._outputs[-1].open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        [*command, *flags], cwd=REPOSITORY, env=os.environ | added, stdout=file, stderr=file
                    )
                )

    def send(self, number: int, index: int, after: int) -> None:
        """A signal to one process, as soon as there are lines of metrics past a step, and a checkpoint."""
        while last_line(self.run_dir) <= after or not has_checkpoint(epath.Path(self.run_dir)):
            assert all(process.poll() is None for process in self.processes), self.ends()
            time.sleep(0.005)
        self.processes[index].send_signal(number)

    def ends(self, within: float = 120) -> tuple[list[int], list[str]]:
        """Every process's exit code and what it printed."""
        deadline = time.monotonic() + within
        try:
            codes = [process.wait(max(0.1, deadline - time.monotonic())) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return codes, [path.read_text() for path in self._outputs]


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
        yield


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_killed_stopped_and_resumed_by_fewer_equals_one_process(dataset_directory, tmp_path):
    one, run_dir = Job(dataset_directory, tmp_path / "one", 1), tmp_path / "several"

    job = Job(dataset_directory, run_dir, 2)
    job.send(signal.SIGKILL, 1, after=11)
    codes, printed = job.ends(within=4 * TIMEOUT + 20)
    assert codes == [LOST, -signal.SIGKILL]
    assert re.search(r"error: process 0 of 2 ends because another died .*--resume=auto\n\Z", printed[0])
    killed_at = newest(run_dir)
    assert 10 <= killed_at < 60

    last = last_line(run_dir)
    job = Job(dataset_directory, run_dir, 2, slurm=True)
    job.send(signal.SIGTERM, 1, after=last)
    codes, printed = job.ends()
    assert codes == [143, 143]
    assert f"from step {killed_at}\n" in printed[0]
    stopped_at = newest(run_dir)
    assert f"stopped by SIGTERM after step {stopped_at}, saved" in printed[0]
    assert "step" not in printed[1].replace("finishing this step", "")
    assert killed_at < stopped_at < 60

    codes, printed = Job(dataset_directory, run_dir, 1).ends()
    assert codes == [0] and f"from step {stopped_at}\n" in printed[0]
    assert one.ends()[0] == [0]
    lines, expected = (read_metrics(path / "metrics.jsonl") for path in (run_dir, tmp_path / "one"))
    assert [(line["split"], line["step"]) for line in lines] == [(line["split"], line["step"]) for line in expected]
    for line, other in zip(lines, expected, strict=True):
        for name, value in line.items():
            if name.startswith("modality_tokens/"):
                assert value == other[name]
            elif name.startswith("loss"):
                np.testing.assert_allclose(value, other[name], rtol=1e-3)
    with Checkpoints(run_dir / "checkpoints") as several, Checkpoints(tmp_path / "one" / "checkpoints") as one:
        common = set(several.steps()) & set(one.steps())
        assert {10, killed_at, 60} <= common
        for step in common:
            assert states_of(several, step) == states_of(one, step)


def states_of(checkpoints, step: int) -> dict:
    return checkpoints.data_state(step, checkpoints.meta(step))


def last_line(run_dir) -> int:
    return max((line["step"] for line in read_metrics(run_dir / "metrics.jsonl")), default=0)


def newest(run_dir) -> int:
    with Checkpoints(run_dir / "checkpoints") as checkpoints:
        return checkpoints.steps()[-1]


@pytest.mark.parametrize("shards", [4, 8])
def test_a_process_reads_the_streams_of_its_rows(shards):
    held = {0: [0, 1, 4, 5], 1: [2, 3, 6, 7]}  # rows need not lie side by side
    found = shards_by_process(held, 8, shards)
    for process, own in found.items():
        assert [row for shard in own for row in range(8 // shards * shard, 8 // shards * (shard + 1))] == held[process]
    shared = {0: [0, 1], 1: [0, 1], 2: [2, 3], 3: [2, 3]}  # along `tensor`
    assert shards_by_process(shared, 4, 2) == {0: [0], 1: [0], 2: [1], 3: [1]}


@pytest.mark.parametrize("shards", [1, 2])
def test_streams_that_the_processes_cannot_divide(shards):
    message = (
        f"Data.shards: {shards} packed streams cannot be divided among 2 processes that hold 2 parts of the 8 rows"
    )
    with pytest.raises(ConfigError, match=message):
        shards_by_process({0: [0, 1, 4, 5], 1: [2, 3, 6, 7]}, 8, shards)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_processes", "2"], "--coordinator: expected it too"),
        (["--coordinator", "a:1", "--process_id", "0"], "--num_processes: expected it too"),
        (["--coordinator", "a:1", "--num_processes", "2", "--process_id", "2"], "--process_id: expected 0 to 1, got 2"),
        (["--coordinator", "a", "--num_processes", "2", "--process_id", "0"], "--coordinator: expected host:port"),
        (["--process_timeout", "0"], "--process_timeout: expected at least 1 second, got 0"),
    ],
)
def test_flags_that_name_no_process(flags, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        started(parse_train(flags).processes)


def test_alone_unless_a_launcher_or_the_flags_say_otherwise(monkeypatch):
    assert started(parse_train([]).processes) is None
    tasks = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}
    for name, value in {**tasks, "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    assert started(parse_train([]).processes).launcher == "slurm"
    assert started(parse_train(["--num_processes", "1"]).processes) is None
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert started(parse_train([]).processes) is None
