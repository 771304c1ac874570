"""Training a list of jobs, each in a process of its own; what is done is left alone, what was begun goes on."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from mot_jax.errors import UserError
from mot_jax.experiments.done import is_done
from mot_jax.experiments.sweep import Job
from mot_jax.training.interruption import interruption
from mot_jax.training.progress import duration_text

POLL = 0.2  # seconds
LOG = ".log"  # beside a run's directory
MEMORY = (  # what decides how much of a GPU's memory a process takes; the first is the one that is set
    *("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"),
    *("XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_ALLOCATOR"),
)
SHARED = 0.9  # of a GPU's memory by all jobs together

Cores = frozenset[int] | None  # None: wherever the system puts it


@dataclasses.dataclass(frozen=True)
class _Running:
    job: Job
    began: float  # seconds of the monotonic clock
    cores: Cores
    logged: int  # bytes that were in its log before


def train_all(jobs: Sequence[Job], at_once: int, note: Callable[[str], None], modules: Sequence[str] = ()) -> None:
    """Trains what is not done, `at_once` at a time; each job's output goes to `<directory>.log`.

    Jobs at once get cores of their own: what threads of small models save by a second core they spend waiting for it.
    They share the memory of a GPU, of which each would else take most.

    By Ctrl-C or SIGTERM it stops the jobs so that they save, and leaves by KeyboardInterrupt or SystemExit(143).

    Args:
      modules: of the user's own, imported by each job (`--import`).

    Raises:
      UserError: a job failed; the others are finished first, and its last line and log are named.
    """
    waiting = [job for job in jobs if not is_done(job)]
    if done := len(jobs) - len(waiting):
        note(f"{done} of {len(jobs)} runs are done already")
    running: dict[subprocess.Popen, _Running] = {}
    at_once = min(at_once, len(waiting))
    free, environment = core_shares(at_once), memory_shares(at_once, os.environ)
    failed: list[str] = []
    number = done
    with interruption() as caught:
        while (waiting or running) and not caught.signal:
            while len(running) < at_once and (ready := _ready(waiting, running)):
                waiting.remove(job := ready[0])
                number += 1
                note(f"run {number}/{len(jobs)}: {job.directory.name}")
                cores = free.pop()
                logged = os.path.getsize(_log(job)) if os.path.exists(_log(job)) else 0
                process = _start(job, cores, environment, modules)
                running[process] = _Running(job, time.monotonic(), cores, logged)
            time.sleep(POLL)
            for process in [process for process in running if process.poll() is not None]:
                ended = running.pop(process)
                free.append(ended.cores)
                name = ended.job.directory.name
                if process.returncode:
                    failed.append(f"{name}: {_reason(ended)} (exit code {process.returncode})")
                    note(f"failed: {failed[-1]}")
                else:
                    note(f"done: {name} after {duration_text(time.monotonic() - ended.began)}")
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.wait()
    if caught.signal:
        raise KeyboardInterrupt if caught.signal == signal.SIGINT else SystemExit(128 + caught.signal)
    if failed:
        raise UserError(f"{len(failed)} of {len(jobs)} runs failed; {failed[0]}; its log is beside its directory")


def core_shares(at_once: int) -> list[Cores]:
    """As many cores for each of the jobs at once, its own; None where there are too few or nobody can tell."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    if not 1 < at_once <= len(cores):
        return [None] * at_once
    size = len(cores) // at_once
    return [frozenset(cores[i * size : (i + 1) * size]) for i in range(at_once)]


def memory_shares(at_once: int, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of each of the jobs at once: all take as much of a GPU's memory, unless it says how already."""
    if at_once < 2 or any(environment.get(name) for name in MEMORY):
        return dict(environment)
    return {**environment, MEMORY[0]: f"{SHARED / at_once:.3f}"}


def _ready(waiting: Sequence[Job], running: Mapping[subprocess.Popen, _Running]) -> list[Job]:
    """Those that go on from no run that is still to be finished."""
    unfinished = {job.directory for job in (*waiting, *(one.job for one in running.values()))}
    return [job for job in waiting if job.after not in unfinished]


def _start(job: Job, cores: Cores, environment: Mapping[str, str], modules: Sequence[str]) -> subprocess.Popen:
    job.directory.parent.mkdir(parents=True, exist_ok=True)
    imports = [word for module in modules for word in ("--import", module)]
    with open(_log(job), "a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mot_jax.training.command", *job.arguments, *imports],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then stops them in order
        )
    if cores is not None:
        with contextlib.suppress(OSError):  # it has ended already, or this system does not let us
            os.sched_setaffinity(process.pid, cores)  # before it has started any thread
    return process


def _log(job: Job) -> str:
    return os.fspath(job.directory.parent / f"{job.directory.name}{LOG}")


def _reason(ended: _Running) -> str:
    """The last error in its log, which another trainer of the directory may be writing too; else the last line."""
    with open(_log(ended.job), "rb") as log:
        log.seek(ended.logged)
        lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "no output")
