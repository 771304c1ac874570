"""Steps that take much longer than others, processes that hold the others up, programs that compile again."""

import collections
import statistics
from collections.abc import Callable, Sequence

FACTOR = 3.0  # times the median
LEAST = 0.1  # seconds more than it: less is nobody's trouble
REMEMBERED = 50
NEEDED = 10  # steps before a median means something


class SlowSteps:
    """Says when a step was a straggler, at most once until `reported` is called."""

    def __init__(self, note: Callable[[str], None]):
        self._note, self._silent = note, False
        self._recent: collections.deque[float] = collections.deque(maxlen=REMEMBERED)

    def step(self, number: int, seconds: float, waited: float) -> None:
        """A step took `seconds`, `waited` of them for data."""
        if len(self._recent) >= NEEDED:
            median = statistics.median(self._recent)
            if seconds > FACTOR * median and seconds > median + LEAST and not self._silent:
                data = f", {waited:.1f} s of it for data" if waited > 0.1 * seconds else ""
                self._note(
                    f"step {number} took {seconds:.1f} s{data}: {seconds / median:.0f} times the median of the "
                    f"{len(self._recent)} before it"
                )
                self._silent = True
        self._recent.append(seconds)

    def reported(self) -> None:
        """A line of metrics was written: the next straggler is told again."""
        self._silent = False


def held_up_by(busy: Sequence[float], step_seconds: float) -> str | None:
    """Which process the others wait for, in words; None for none.

    Args:
      busy: by process, the seconds of a step in which its host worked or waited for data. In a step that all take
        together the others wait that long on their devices.
    """
    slowest = max(range(len(busy)), key=busy.__getitem__)
    median = statistics.median(busy)
    if busy[slowest] <= FACTOR * median or busy[slowest] - median <= 0.1 * step_seconds:
        return None
    return (
        f"process {slowest} holds the others up: its host is busy for {busy[slowest]:.2f} s of a step's "
        f"{step_seconds:.2f} s, half of them for {median:.2f} s or less"
    )


class Compilations:
    """Notices that a jitted function was compiled again, as it is for batches of another shape."""

    def __init__(self, function, name: str, note: Callable[[str], None]):
        self._function, self._name, self._note, self._known = function, name, note, 1

    def check(self, step: int) -> None:
        if (size := self._function._cache_size()) > self._known:
            self._note(f"step {step}: {self._name} was compiled again ({size} programs); expected batches of one shape")
            self._known = size
