"""Metrics on the host: sums over a window of steps, how long they took, and the lines made of them."""

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import SupportsFloat

Values = Mapping[str, tuple[SupportsFloat, SupportsFloat]]  # name -> (sum, count)

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
    """Seconds of training since the last line: of all, of waiting for data, and the steps and tokens they bought.

    It stands while other work is done (compilation, checkpoints, evaluation, pictures); how long checkpoints held the
    steps up is `saved`.
    """

    seconds: float = 0.0
    waited: float = 0.0
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

    def step(self, tokens: float) -> None:
        """A step has just finished."""
        if self.started is None:
            return
        now = time.perf_counter()
        self.seconds += now - self.started
        self.started = now
        self.steps += 1
        self.tokens += tokens

    def line(self, flops_per_token: float, peak_flops: float | None) -> dict[str, float | None]:
        """tokens_per_second (padding left out), mfu, data_wait_fraction, step_seconds: None where nothing was timed.

        And save_seconds, how long the steps stood still for checkpoints.
        """
        if not self.steps:
            none = dict.fromkeys(("tokens_per_second", "mfu", "data_wait_fraction", "step_seconds"))
            return {**none, "save_seconds": self.saved}
        rate = self.tokens / self.seconds
        return {
            "tokens_per_second": rate,
            "mfu": rate * flops_per_token / peak_flops if peak_flops else None,
            "data_wait_fraction": self.waited / self.seconds,
            "step_seconds": self.seconds / self.steps,
            "save_seconds": self.saved,
        }


def tokens_of(values: Values) -> float:
    """Real input tokens of a step."""
    return sum(float(total) for name, (total, _) in values.items() if name.startswith("modality_tokens/"))


def json_ready(line: dict) -> dict:
    """NaN and infinities as None: JSON has neither."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
