"""Tokens a second from documents on disk to packed batches, and what a run waits for them.

    python benchmarks/data_pipeline.py [--documents 20000] [--json FILE]

Documents are like the default's: some text, 16 image codes, some speech. One core, CPU time. Then `train.py` trains the
default config as a process: what share of its time it waits for data, and its rate against the pipeline's.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import report
from train_process import train_process

from mot_jax.codecs.protocol import Codec
from mot_jax.config import Data
from mot_jax.data.dataset import DatasetWriter, open_dataset
from mot_jax.data.pipeline import train_stream
from mot_jax.documents import Span

LOG_EVERY = 20


class Codes(Codec, kind="benchmark_codes"):
    """Codes of a given number and span length, with nothing behind them."""

    def __init__(self, size: int, span_length: int | None = None):
        self.size, self.span_length = size, span_length

    def encode(self, value):
        return value

    def decode(self, codes):
        return codes

    def save(self, directory):
        (directory / "sizes.json").write_text(json.dumps([self.size, self.span_length]))

    @classmethod
    def load(cls, directory):
        return cls(*json.loads((directory / "sizes.json").read_text()))


def write(directory: Path, documents: int) -> None:
    rng = np.random.default_rng(0)
    with DatasetWriter(directory, {"text": Codes(1024), "image": Codes(256, 16), "speech": Codes(200)}) as writer:
        for _ in range(documents):
            spans = [
                Span("text", rng.integers(0, 1024, rng.integers(3, 12))),
                Span("image", rng.integers(0, 256, 16)),
                Span("speech", rng.integers(0, 200, rng.integers(8, 16))),
            ]
            writer.add("train", [spans[i] for i in rng.permutation(3)])


def seconds(function, times: int = 1) -> float:
    """CPU seconds of one call."""
    started = time.process_time()
    for _ in range(times):
        function()
    return (time.process_time() - started) / times


def pipeline(documents: int) -> list[dict]:
    data = Data(sequence_length=256, global_batch_size=8)
    with tempfile.TemporaryDirectory() as directory:
        each = seconds(lambda: write(Path(directory, "data"), documents)) / documents
        rows = [report.figure("write a document", "time", each * 1e6, "us")]
        dataset = open_dataset(Path(directory, "data"))
        opening = seconds(lambda: open_dataset(dataset.directory))
        rows.append(report.figure("open, digests compared", "time", opening * 1e3, "ms"))
        stream = train_stream(dataset, data, 0)
        rows.append(report.figure("first batch", "time", seconds(lambda: next(stream)) * 1e3, "ms"))
        live = []
        spent = seconds(lambda: live.extend((next(stream).segment_ids > 0).sum(axis=1)), 300)
        rows.append(report.figure("packed tokens", "rate", sum(live) / 300 / spent, "1/s"))
        rows.append(report.figure("a packed row", "share filled", float(np.mean(live)) / data.sequence_length, ""))
        rows.append(report.figure("stream.state()", "time", seconds(stream.state, 1000) * 1e6, "us"))
        fresh, state = train_stream(dataset, data, 0), stream.state()
        next(fresh)
        restoring = seconds(lambda: (fresh.restore(state), next(fresh)))
        rows.append(report.figure("restore at batch 301, next batch", "time", restoring * 1e3, "ms"))
    return rows


def training(steps: int, packed: float) -> list[dict]:
    """What a run of the default config waits for; `packed` is the pipeline's tokens a second."""
    lines = [line for line in train_process(steps, LOG_EVERY)[1] if line["tokens_per_second"]]
    rate, wait = (
        float(np.mean([line[name] for line in lines])) for name in ("tokens_per_second", "data_wait_fraction")
    )
    step = float(np.mean([line["step_seconds"] for line in lines]))
    name = f"train.py, default config, {steps} steps"
    return [
        report.figure(f"{name}: waiting for data", "time a step", 1e3 * wait * step, "ms", "step", wait),
        report.figure(f"{name}: tokens", "rate", rate, "1/s", "packed tokens", rate / packed),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--steps", type=int, default=300, help="of the run (default: %(default)s)")
    options = parser.parse_args()
    rows = pipeline(options.documents)
    packed = next(row["value"] for row in rows if row["name"] == "packed tokens")
    report.show("data pipeline, CPU time of one core", rows + training(options.steps, packed), options.json)


if __name__ == "__main__":
    main()
