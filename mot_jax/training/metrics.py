"""Metrics on the host: sums over a window of steps, how long they took, and the lines made of them."""

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import SupportsFloat

Values = Mapping[str, tuple[SupportsFloat, SupportsFloat]]  # name -> (sum, count)

TIMINGS = (
    *("tokens_per_second", "mfu", "step_seconds"),
    *("data_wait_fraction", "device_wait_fraction", "host_fraction", "save_seconds"),
)
EACH_STEP = ("bad_steps",)  # steers the loop, is no average


class Window:
    """Sums and counts since the last line. Python floats added in step order, so a saved window continues exactly."""

    def __init__(self, sums: dict[str, list[float]] | None = None):
        self.sums = {name: list(pair) for name, pair in (sums or {}).items()}

    def add(self, values: Values) -> None:
        """One step's metrics; of a step that was skipped only the fact is kept, its values are not finite."""
        skipped = float(values.get("skipped", (0, 1))[0]) > 0
        for name, (total, count) in values.items():
            if name in EACH_STEP or (skipped and name != "skipped" and not name.startswith("modality_tokens/")):
                continue
            pair = self.sums.setdefault(name, [0.0, 0.0])
            pair[0] += float(total)
            pair[1] += float(count)

    def means(self) -> dict[str, float | None]:
        """Sum over count; None where nothing was counted (a modality that was absent)."""
        return {name: total / count if count else None for name, (total, count) in self.sums.items()}


@dataclasses.dataclass
class Clock:
    """Seconds of training since the last line: of all, of waiting for data and for the device, and what they bought.

    What is left is the host's own work: sending batches and steps off, sums, lines. It stands while other work is done
    (compilation, checkpoints, evaluation, pictures); how long checkpoints held the steps up is `saved`.
    """

    seconds: float = 0.0
    waited: float = 0.0
    blocked: float = 0.0
    steps: int = 0
    tokens: float = 0.0
    saved: float = 0.0
    started: float | None = None

    def start(self) -> None:
        self.started = time.perf_counter()

    def stop(self) -> None:
        self.started = None

    def wait(self, seconds: float) -> None:
        if self.started is not None:
            self.waited += seconds

    def block(self, seconds: float) -> None:
        """The host has waited for values from the device."""
        if self.started is not None:
            self.blocked += seconds

    def step(self, tokens: float) -> float | None:
        """A step has just finished; the seconds since the one before it, None where that was not timed."""
        if self.started is None:
            return None
        now = time.perf_counter()
        took = now - self.started
        self.seconds += took
        self.started = now
        self.steps += 1
        self.tokens += tokens
        return took

    def line(self, flops_per_token: float, peak_flops: float | None) -> dict[str, float | None]:
        """tokens_per_second (padding left out), mfu, step_seconds, and the shares of them in which the host waited for
        data, waited for the device, and worked: None where nothing was timed. save_seconds is how long the steps stood
        still for checkpoints.
        """
        if not self.steps:
            return {**dict.fromkeys(TIMINGS), "save_seconds": self.saved}
        rate = self.tokens / self.seconds
        return {
            "tokens_per_second": rate,
            "mfu": rate * flops_per_token / peak_flops if peak_flops else None,
            "step_seconds": self.seconds / self.steps,
            "data_wait_fraction": self.waited / self.seconds,
            "device_wait_fraction": self.blocked / self.seconds,
            "host_fraction": max(0.0, 1 - (self.waited + self.blocked) / self.seconds),
            "save_seconds": self.saved,
        }


def tokens_of(values: Values) -> float:
    """Real input tokens of a step."""
    return sum(float(total) for name, (total, _) in values.items() if name.startswith("modality_tokens/"))


def json_ready(line: dict) -> dict:
    """NaN and infinities as None: JSON has neither."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
