"""Ctrl-C and SIGTERM: the first asks the loop to save and leave, a second Ctrl-C leaves at once."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator


class Interruption:
    """`signal` is the number of the signal that asked to stop, 0 while none did."""

    signal: int = 0


@contextlib.contextmanager
def interruption() -> Iterator[Interruption]:
    """Catches both signals while it lasts; outside the main thread, where none arrive, it catches nothing."""
    caught = Interruption()

    def handle(number, _frame):
        caught.signal = number
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.write(2, b"\nfinishing this step, then saving; Ctrl-C leaves at once\n")  # print is not safe in a handler

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
