"""One run in several processes: joining them, what they tell one another, and how the others end when one dies.

What is said here goes through jax's coordination service, over the network and past the devices: it works before the
first collective, and costs milliseconds. Alone, a process says everything to itself.
"""

import contextlib
import ctypes
import dataclasses
import functools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from mot_jax.errors import ConfigError, UserError

LOST = os.EX_TEMPFAIL if hasattr(os, "EX_TEMPFAIL") else 75  # exit code: another process died, try again
JOIN_TIMEOUT = 300  # seconds until all processes must have started
LEAVE_TIMEOUT = 60  # seconds that a process which ends waits for the others to end
PATIENCE = 24 * 3600  # seconds to wait for what another process does alone; whether it lives the heartbeats tell
LAUNCHERS = ("slurm", "ompi", "gketpu", "gcetpu")  # those of jax that say so in the environment


T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Processes:
    """Which process of how many this one is. With `launcher` jax asks that for whatever is None."""

    coordinator: str | None = None  # host:port of process 0
    count: int | None = None
    index: int | None = None
    timeout: int = 60  # seconds without a heartbeat after which a process counts as dead
    launcher: str | None = None


def started(given: Processes) -> Processes | None:
    """The processes that the flags name, else the launcher's environment; None for one alone.

    Raises:
      ConfigError: some of the three flags without the others, or a number out of its range.
    """
    if given.timeout < 1:
        raise ConfigError(f"--process_timeout: expected at least 1 second, got {given.timeout}")
    if given.count == 1:
        return None
    flags = {"--coordinator": given.coordinator, "--num_processes": given.count, "--process_id": given.index}
    missing = [flag for flag, value in flags.items() if value is None]
    if len(missing) == len(flags):
        return _launched(given)
    if missing:
        raise ConfigError(f"{missing[0]}: expected it too; several processes need {', '.join(flags)}")
    if given.count < 1:
        raise ConfigError(f"--num_processes: expected at least 1, got {given.count}")
    if not 0 <= given.index < given.count:
        raise ConfigError(f"--process_id: expected 0 to {given.count - 1}, got {given.index}")
    if not given.coordinator.rpartition(":")[2].isdigit() or ":" not in given.coordinator:
        raise ConfigError(f"--coordinator: expected host:port of process 0, got {given.coordinator!r}")
    return given


def _launched(given: Processes) -> Processes | None:
    from jax._src.clusters import ClusterEnv  # jax.distributed asks these too, but cannot say that there is none

    for environment in ClusterEnv._cluster_types:
        if environment.name in LAUNCHERS and environment.is_env_present():
            if environment.get_process_count() == 1:
                return None
            return dataclasses.replace(given, launcher=environment.name)
    return None


def join(processes: Processes) -> None:
    """Connects to the others and waits until all are there; before that no device may be touched.

    From here on, a process that hears nothing of another for `processes.timeout` seconds ends with exit code LOST, also
    from within a collective. So it does where not all come within JOIN_TIMEOUT seconds.
    """
    import jax

    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    where = processes.coordinator or f"the address that {processes.launcher} gives"
    _on_abort(
        f"not all processes came together within {JOIN_TIMEOUT} s; expected each started, and process 0 at {where}"
    )
    jax.distributed.initialize(
        processes.coordinator,
        processes.count,
        processes.index,
        cluster_detection_method=processes.launcher or "deactivate",
        initialization_timeout=JOIN_TIMEOUT,
        heartbeat_timeout_seconds=processes.timeout,
        shutdown_timeout_seconds=LEAVE_TIMEOUT,
    )
    _on_abort(
        f"process {jax.process_index()} of {jax.process_count()} ends because another died or was cut off (the runtime "
        "says above which); start all of them again with --resume=auto"
    )


def _on_abort(text: str) -> None:
    """jax aborts when a process is lost, whatever the main thread is in; this adds a clear line and the exit code."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # a system without
        ctypes.CDLL(None).signal(signal.SIGABRT, _abort_handler(f"error: {text}\n".encode()))


@functools.cache  # which keeps it alive
def _abort_handler(line: bytes):
    def aborted(_):
        os.write(2, line)
        os._exit(LOST)

    return ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)


def gather(name: str, value: Any) -> list:
    """Every process's JSON-able value, in order of the processes. All must call it, with the same name not used yet."""
    import jax

    if jax.process_count() == 1:
        return [value]
    from jax._src.distributed import global_state

    client, place = global_state.client, f"mot_jax/{name}"
    client.key_value_set(f"{place}/{jax.process_index():08}", json.dumps(value))
    client.wait_at_barrier(f"{place}/told", PATIENCE * 1000)
    values = [json.loads(text) for _, text in sorted(client.key_value_dir_get(f"{place}/"))]
    client.wait_at_barrier(f"{place}/heard", PATIENCE * 1000)
    if jax.process_index() == 0:
        client.key_value_delete(f"{place}/")
    return values


def check_same(name: str, value: Any, error: Callable[[int, Any, Any], UserError]) -> None:
    """Raises `error(process, its value, process 0's)` in all processes, of the first whose value is another."""
    values = gather(name, value)
    for index, other in enumerate(values):
        if other != values[0]:
            raise error(index, other, values[0])


def together(name: str, function: Callable[[], T]) -> T:
    """`function()` in every process; where it fails in one, it fails in all, so that none goes on alone."""
    found, failure = None, None
    try:
        found = function()
    except Exception as error:
        failure = error
    reasons = gather(name, failure and f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    for index, reason in enumerate(reasons):
        if reason is not None:
            raise RuntimeError(f"in process {index}: {reason}")
    return found


@contextlib.contextmanager
def watched(processes: Processes | None) -> Iterator[None]:
    """Where a collective fails, because it saw a process die before the heartbeats did, waits until they tell which."""
    import jax

    try:
        yield
    except Exception as error:
        while error.__context__ is not None and not isinstance(error, jax.errors.JaxRuntimeError):
            error = error.__context__  # what closing the run made of it
        if processes is None or not isinstance(error, jax.errors.JaxRuntimeError):
            raise
        reason = next(iter(str(error).splitlines()), "")[:200]
        print(f"process {jax.process_index()}: a collective failed: {reason}", file=sys.stderr, flush=True)
        time.sleep(2 * processes.timeout + 10)  # no abort by then: nobody died, and this is an error of its own
        raise
