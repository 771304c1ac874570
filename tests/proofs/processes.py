"""4, 2 and 1 processes over the same 4 devices: `python tests/proofs/processes.py [streams] [damage] [deaths]`.

Prints what it sees and stops at the first thing that is not as docs/processes.md says. Some ten minutes on two cores.
"""

import os
import pathlib
import signal
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
os.environ["JAX_PLATFORMS"] = "cpu"

from mot_jax.parallel.processes import LOST
from mot_jax.training.checkpoint import Checkpoints
from mot_jax.training.writers import read_metrics
from tests.training.conftest import write_dataset
from tests.training.test_processes import TIMEOUT, Job, last_line, newest

MESHES = {
    "data 4": (),
    "fsdp 2, tensor 2": ("Parallel.data = 1", "Parallel.fsdp = 2", "Parallel.tensor = 2", "Model.num_kv_heads = 2"),
}
BOUND = 4 * TIMEOUT + 10  # seconds


def losses(run_dir) -> list[tuple]:
    return [(line["split"], line["step"], line["loss"]) for line in read_metrics(run_dir / "metrics.jsonl")]


def streams(run_dir) -> dict[int, dict]:
    with Checkpoints(run_dir / "checkpoints") as checkpoints:
        return {step: checkpoints.data_state(step, checkpoints.meta(step)) for step in checkpoints.steps()}


def same(run_dir, expected_dir) -> float:
    """The largest relative difference of a loss; the same lines, and at common steps the same streams."""
    ours, expected = losses(run_dir), losses(expected_dir)
    assert [line[:2] for line in ours] == [line[:2] for line in expected]
    a, b = streams(run_dir), streams(expected_dir)
    assert all(a[step] == b[step] for step in a.keys() & b.keys()) and max(a) == max(b)
    return max(abs(x[2] - y[2]) / y[2] for x, y in zip(ours, expected, strict=True))


def ended(job: Job, codes: list[int], within: float) -> tuple[float, list[str]]:
    began = time.monotonic()
    found, printed = job.ends(within)
    assert found == codes, (found, printed)
    return time.monotonic() - began, printed


def check_streams(place: pathlib.Path, data: pathlib.Path) -> None:
    """The same losses in any number of processes, and in fewer and fewer."""
    for mesh, changes in MESHES.items():
        runs = {count: place / f"{mesh}-{count}" for count in (1, 2, 4)}
        for count, run_dir in runs.items():
            ended(Job(data, run_dir, count, *changes, devices=4 // count), [0] * count, 400)
        for count in (2, 4):
            print(f"{mesh}: {count} processes, losses within {same(runs[count], runs[1]):.1e} of one's", flush=True)
        shrinking, stops = place / f"{mesh}-shrinking", []
        for count, told in ((4, 3), (2, 0)):
            last = last_line(shrinking)
            job = Job(data, shrinking, count, *changes, devices=4 // count)
            job.send(signal.SIGTERM, told, after=last + 2)
            took, _ = ended(job, [143] * count, 400)
            stops.append(f"after step {newest(shrinking)} in {took:.1f} s")
        ended(Job(data, shrinking, 1, *changes, devices=4), [0], 400)
        print(
            f"{mesh}: 4, 2, 1 processes, stopped {', '.join(stops)}: within {same(shrinking, runs[1]):.1e}", flush=True
        )
    _, printed = ended(Job(data, place / "bad", 2, "Data.shards = 1"), [2, 2], 200)
    assert all("Data.shards: 1 packed streams cannot be divided among 2 processes" in text for text in printed)
    assert not (place / "bad").exists()
    print(printed[1].strip().splitlines()[-1], flush=True)


def check_damage(place: pathlib.Path, data: pathlib.Path) -> None:
    """What one of two processes wrote of the newest checkpoint is cut short: both go back to the one before."""
    run_dir, halves = place / "damaged", ("Parallel.data = 1", "Parallel.fsdp = 2", "Train.eval_every = 0")
    ended(Job(data, run_dir, 2, *halves, "Train.steps = 20"), [0, 0], 400)
    files = (run_dir / "checkpoints" / "20" / "params" / "ocdbt.process_1" / "d").iterdir()
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 3])
    _, printed = ended(Job(data, run_dir, 2, *halves, "Train.steps = 22"), [0, 0], 400)
    assert "checkpoint 20 is damaged" in printed[0] and "from step 10\n" in printed[0]
    print("a part that one process cannot read: both go back to the checkpoint before", flush=True)


def check_deaths(place: pathlib.Path, data: pathlib.Path) -> None:
    """One of four killed, or frozen with the others in a collective: they end, and started again go on."""
    expected = place / "alone"
    ended(Job(data, expected, 1, devices=4), [0], 400)
    for what, number, victim in (("killed", "SIGKILL", 2), ("killed", "SIGKILL", 0), ("frozen", "SIGSTOP", 1)):
        run_dir = place / f"{what}-{victim}"
        job = Job(data, run_dir, 4)
        job.send(signal.Signals[number], victim, after=11)
        began = time.monotonic()
        for process in (process for index, process in enumerate(job.processes) if index != victim):
            process.wait(BOUND)
        took = time.monotonic() - began
        job.processes[victim].kill()
        codes = [LOST] * 4
        codes[victim] = -signal.SIGKILL
        _, printed = ended(job, codes, 10)
        said = [text.strip().splitlines()[-1] for index, text in enumerate(printed) if index != victim]
        assert all("--resume=auto" in line for line in said), said
        ended(Job(data, run_dir, 4), [0] * 4, 400)
        print(f"process {victim} {what}: the others ended in {took:.1f} s with {LOST}: {said[0]}", flush=True)
        print(f"  started again: losses within {same(run_dir, expected):.1e} of one process's", flush=True)


def main(names: list[str]) -> None:
    place = pathlib.Path(tempfile.mkdtemp())
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(place / "compiled")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    data = write_dataset(place / "data")
    for check in (check_streams, check_damage, check_deaths):
        if not names or check.__name__.removeprefix("check_") in names:
            check(place, data)


if __name__ == "__main__":
    main(sys.argv[1:])
