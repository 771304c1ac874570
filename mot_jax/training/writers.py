"""Where metrics go: metrics.jsonl, the record, and TensorBoard where tensorboardX is installed."""

import contextlib
import importlib.util
import json
import os
from collections.abc import Callable

from etils import epath

from mot_jax.training.metrics import json_ready


def read_metrics(path: epath.PathLike) -> list[dict]:
    """The lines of a metrics file; one cut short by a kill is left out."""
    path = epath.Path(path)
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


class MetricsFile:
    """Appends lines, each on disk before the next; a run that goes back to `step` loses the lines after it.

    Without `write` it neither reads nor writes.
    """

    def __init__(self, path: epath.PathLike, step: int, *, write: bool = True):
        self.kept, self._file = [], None
        if not write:
            return
        path = epath.Path(path)
        self.kept = [line for line in read_metrics(path) if line["step"] <= step]
        whole = path.parent / f"{path.name}.partial"
        whole.write_text("".join(json.dumps(line) + "\n" for line in self.kept))
        whole.replace(path)
        self._file = path.open("a")

    def write(self, line: dict) -> None:
        if self._file is not None:
            self._file.write(json.dumps(json_ready(line)) + "\n")
            self._file.flush()

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(OSError):  # of a line whose failure was raised when it was written
            if self._file is not None:
                self._file.close()


class TensorBoard:
    """Scalars under `directory`, every split as a run; does nothing without tensorboardX, or without `write`."""

    def __init__(self, directory: epath.Path, step: int, note: Callable[[str], None], *, write: bool = True):
        self._writers, self._directory, self._step = {}, directory, step
        installed = importlib.util.find_spec("tensorboardX") is not None
        self._writes = write and installed
        if not installed:
            note("no TensorBoard files: tensorboardX is not installed (the extra `logging` has it)")

    def write(self, line: dict) -> None:
        if not self._writes:
            return
        split = line["split"]
        if split not in self._writers:
            from tensorboardX import SummaryWriter

            self._writers[split] = SummaryWriter(
                os.fspath(self._directory / split), purge_step=self._step + 1, flush_secs=30
            )
        for name, value in line.items():
            if name not in ("step", "split") and value is not None:
                self._writers[split].add_scalar(name, value, line["step"])

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(self, *_) -> None:
        for writer in self._writers.values():
            writer.close()
