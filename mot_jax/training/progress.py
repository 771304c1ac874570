"""What the terminal shows: a live line while it is one, plain lines otherwise."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text


def losses_text(line: dict, name: str = "loss") -> str:
    """`loss 2.31 (text 1.90 image 3.12)`."""
    losses = {k.removeprefix(f"{name}/"): v for k, v in line.items() if k.startswith(f"{name}/")}
    named = [f"{modality} {loss:.3f}" for modality, loss in losses.items() if loss is not None]
    loss = "none" if line.get(name) is None else f"{line[name]:.3f}"
    return f"loss {loss} ({' '.join(named)})" if named else f"loss {loss}"


def duration_text(seconds: float) -> str:
    """`7:05`, or `2:07:05` from an hour on."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def train_text(line: dict) -> str:
    """Losses, speed, share of time spent waiting for data; seconds held up by saving and skipped steps, if any."""
    parts = [losses_text(line)]
    if line["tokens_per_second"] is not None:
        parts.append(f"{line['tokens_per_second']:,.0f} tokens/s")
        if line["mfu"] is not None:
            parts.append(f"mfu {line['mfu']:.1%}")
        parts.append(f"data wait {line['data_wait_fraction']:.1%} host {line['host_fraction']:.1%}")
    if line["save_seconds"]:
        parts.append(f"saving {line['save_seconds']:.2f} s")
    if line["skipped"]:
        parts.append(f"{line['skipped']} skipped")
    return "  ".join(parts)


class TrainProgress:
    """Shows lines of metrics as they come. Time left is what the steps so far took, everything included."""

    def __init__(self, steps: int, step: int, console: Console):
        self._console, self._steps, self._step = console, steps, step
        self._timed: tuple[int, float] | None = None  # step and moment from which speed is reckoned
        self._live = None
        if console.is_terminal:
            columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[left]}"))
            self._bar, self._text = Progress(*columns, console=console), Text("compiling")
            self._task = self._bar.add_task("train", total=steps, completed=step, left="")
            self._live = Live(Group(self._bar, self._text), console=console, refresh_per_second=2)

    def __enter__(self) -> "TrainProgress":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_) -> None:
        if self._live:
            self._live.stop()

    def stepped(self, step: int) -> None:
        """A step is done."""
        self._step = step
        self._timed = self._timed or (step, time.perf_counter())
        if self._live:
            self._bar.update(self._task, completed=step)

    def train(self, line: dict) -> None:
        left = self._left()
        left = "" if left is None else f"{duration_text(left)} left"
        if self._live:
            self._bar.update(self._task, left=left)
            self._text.plain = train_text(line)
        else:
            self.note(f"step {line['step']}/{self._steps}  {train_text(line)}  {left}".rstrip())

    def validation(self, line: dict) -> None:
        shown = f"step {line['step']}/{self._steps}  validation {losses_text(line)}"
        if "causal_loss" in line:
            shown += f", by auxiliary routers {losses_text(line, 'causal_loss')}"
        self.note(shown)

    def tasks(self, line: dict) -> None:
        """The first score of each task, which stands for the others."""
        first = {name.partition("/")[0]: name for name in reversed(line) if "/" in name}
        scores = "  ".join(f"{name.replace('/', ' ')} {line[name]:.3f}" for name in reversed(first.values()))
        self.note(f"step {line['step']}/{self._steps}  {scores}")

    def note(self, text: str) -> None:
        """A line that stays."""
        say(self._console, text)

    def _left(self) -> float | None:
        if self._timed is None or self._step <= self._timed[0]:
            return None
        first, moment = self._timed
        return (time.perf_counter() - moment) / (self._step - first) * (self._steps - self._step)


def say(console: Console, text: str) -> None:
    """One line as it is: no markup, no highlighting, no wrapping."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def preparation(console: Console) -> Iterator[Callable[[str, float], None]]:
    """`report(what, fraction)` for work done before training; shows nothing until it is called."""
    if not console.is_terminal:
        shown = [None]

        def report(what: str, fraction: float) -> None:
            if what != shown[0]:
                shown[0] = what
                say(console, f"preparing data: {what}")

        yield report
        return
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), console=console
    ) as bar:
        tasks = {}

        def report(what: str, fraction: float) -> None:
            if what not in tasks:
                for task in tasks.values():
                    bar.update(task, completed=1.0)
                tasks[what] = bar.add_task(what, total=1.0)
            bar.update(tasks[what], completed=fraction)

        yield report
