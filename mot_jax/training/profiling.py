"""A window of steps traced for a profiler."""

import os
from collections.abc import Callable

import jax
from etils import epath


class ProfileWindow:
    """Traces `count` steps from step `first` on (1 is a run's first) into `directory`, for XProf and ui.perfetto.dev.

    A run that stops or resumes inside the window traces what it sees of it.
    """

    def __init__(self, window: tuple[int, int] | None, directory: epath.Path, note: Callable[[str], None]):
        self._first, count = window or (0, 0)
        self._last = self._first + count - 1
        self._directory, self._note, self._tracing = directory, note, False

    def before(self, step: int) -> None:
        """`step` is about to be sent to the device."""
        if self._first <= step <= self._last and not self._tracing:
            jax.profiler.start_trace(os.fspath(self._directory), create_perfetto_trace=True)
            self._tracing = True

    def after(self, step: int, results) -> None:
        """`step` was sent; its results may still be computed."""
        if self._tracing and step >= self._last:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
            self._note(
                f"profile: {os.fspath(self._directory)} (XProf, or its perfetto_trace.json.gz in ui.perfetto.dev)"
            )
