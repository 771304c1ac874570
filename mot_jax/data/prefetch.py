"""Makes batches ahead of the training step, in a background thread."""

import contextlib
import queue
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

PATIENCE = 10.0  # seconds to wait, on closing, for a batch that is being made


@runtime_checkable
class Resumable(Protocol):
    """An iterator of batches that can say where it stands."""

    def __next__(self) -> Any: ...

    def state(self) -> dict: ...


class Prefetch:
    """An iterator of (batch, the stream's state right after it), `depth` of them made ahead; 0 makes none ahead.

    What the stream raises is raised here, after the batches made before it. Close it when done (or use it as a
    context manager); the interpreter's exit closes it too.

    Attributes:
      waited: seconds that the consumer has spent waiting for batches.
    """

    def __init__(self, stream: Resumable, depth: int):
        self.waited = 0.0
        self._error: BaseException | None = None
        if depth < 1:
            self._next: Callable[[], tuple] = lambda: (next(stream), stream.state())
            self.close: Callable[[], None] = lambda: None
            return
        ready: queue.Queue = queue.Queue(maxsize=depth)
        stopped = threading.Event()
        # The thread holds no reference to self, so a forgotten Prefetch is collected and its thread ends.
        thread = threading.Thread(target=_fill, args=(stream, ready, stopped), name="prefetch", daemon=True)
        self._next = ready.get
        self.close = weakref.finalize(self, _stop, ready, stopped, thread)
        thread.start()

    def __iter__(self) -> "Prefetch":
        return self

    def __next__(self) -> tuple[Any, dict]:
        if self._error is not None:
            raise self._error
        started = time.perf_counter()
        item = self._next()
        self.waited += time.perf_counter() - started
        if isinstance(item, BaseException):
            self._error = item
            raise item
        return item

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *error) -> None:
        self.close()


def _fill(stream: Resumable, ready: queue.Queue, stopped: threading.Event) -> None:
    try:
        while not stopped.is_set():
            ready.put((next(stream), stream.state()))
    except BaseException as error:
        ready.put(error)


def _stop(ready: queue.Queue, stopped: threading.Event, thread: threading.Thread) -> None:
    stopped.set()
    deadline = time.monotonic() + PATIENCE
    while True:
        while not ready.empty():
            ready.get_nowait()  # makes room for a put that is waiting
        if not thread.is_alive() or thread is threading.current_thread() or time.monotonic() > deadline:
            break
        thread.join(timeout=0.01)
    with contextlib.suppress(queue.Full):
        ready.put_nowait(RuntimeError("this Prefetch is closed"))
