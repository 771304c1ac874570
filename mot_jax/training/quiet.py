"""Keeping off the terminal what libraries print of a failure that is reported in one line anyway."""

import contextlib
import inspect
import logging
import sys
import threading
from collections.abc import Iterator

PATIENCE = 10.0  # seconds for a thread of a failed save


@contextlib.contextmanager
def quiet_checkpointing() -> Iterator[None]:
    """Mutes tracebacks of Orbax's background threads, and of the reads that go on after one has failed.

    Orbax raises what went wrong once more where it is waited for; nothing is lost.
    """
    hooks = sys.excepthook, sys.unraisablehook

    def on_exception(kind, value, trace):
        if not _is_late(value):
            hooks[0](kind, value, trace)

    def on_unraisable(unraisable):
        if not _is_late(unraisable.exc_value) and not _is_orbax_read(unraisable.object):
            hooks[1](unraisable)

    sys.excepthook, sys.unraisablehook = on_exception, on_unraisable
    with contextlib.ExitStack() as stack:
        for name, muted in (("absl", _is_orbax_traceback), ("asyncio", _is_unretrieved)):
            drop = _Drop(muted)
            logging.getLogger(name).addFilter(drop)
            stack.callback(logging.getLogger(name).removeFilter, drop)
        try:
            yield
        finally:
            if sys.excepthook is on_exception:
                sys.excepthook = hooks[0]
            if sys.unraisablehook is on_unraisable:
                sys.unraisablehook = hooks[1]


def join_failed_save() -> None:
    """Waits for what a save that failed in one part still does in others, so that it fails while it is muted."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and type(thread).__module__.startswith("orbax."):
            with contextlib.suppress(Exception):  # some raise what went wrong
                thread.join(timeout=PATIENCE)


class _Drop(logging.Filter):
    def __init__(self, muted):
        super().__init__()
        self._muted = muted

    def filter(self, record: logging.LogRecord) -> bool:
        return not self._muted(record)


def _is_late(error: BaseException | None) -> bool:
    """A read that ends after the restore it was part of has been given up."""
    return isinstance(error, RuntimeError) and "Event loop is closed" in str(error)


def _is_orbax_read(left) -> bool:
    return inspect.iscoroutine(left) and "orbax" in left.cr_code.co_filename


def _is_orbax_traceback(record: logging.LogRecord) -> bool:
    """Or a complaint of the file of times, from which nothing is restored: a kill may have cut it short."""
    of_times = "Metadata file" in str(record.msg)
    return (bool(record.exc_info) or of_times) and "orbax" in record.pathname


def _is_unretrieved(record: logging.LogRecord) -> bool:
    return "was never retrieved" in record.getMessage()
