"""Tokens a second from documents on disk to packed batches, and what saving and restoring a stream costs.

    python benchmarks/data_pipeline.py [--documents 20000] [--json FILE]

Documents are like the default's: some text, 16 image codes, some speech. One core, CPU time.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import report

from mot_jax.codecs.protocol import Codec
from mot_jax.config import Data
from mot_jax.data.dataset import DatasetWriter, open_dataset
from mot_jax.data.pipeline import train_stream
from mot_jax.documents import Span


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


def measure(documents: int) -> list[dict]:
    data = Data(sequence_length=256, global_batch_size=8)
    with tempfile.TemporaryDirectory() as directory:
        rows = [
            (
                "write a document",
                "time",
                seconds(lambda: write(Path(directory, "data"), documents)) / documents * 1e6,
                "us",
            )
        ]
        dataset = open_dataset(Path(directory, "data"))
        rows.append(("open, digests compared", "time", seconds(lambda: open_dataset(dataset.directory)) * 1e3, "ms"))
        stream = train_stream(dataset, data, 0)
        rows.append(("first batch", "time", seconds(lambda: next(stream)) * 1e3, "ms"))
        live = []
        spent = seconds(lambda: live.extend((next(stream).segment_ids > 0).sum(axis=1)), 300)
        rows.append(("packed tokens", "rate", sum(live) / 300 / spent, "1/s"))
        rows.append(("a packed row", "share filled", float(np.mean(live)) / data.sequence_length, ""))
        rows.append(("stream.state()", "time", seconds(stream.state, 1000) * 1e6, "us"))
        fresh, state = train_stream(dataset, data, 0), stream.state()
        next(fresh)
        rows.append(
            (
                "restore at batch 301, next batch",
                "time",
                seconds(lambda: (fresh.restore(state), next(fresh))) * 1e3,
                "ms",
            )
        )
    return [
        {"name": name, "metric": metric, "value": value, "unit": unit, "against": None, "ratio": None}
        for name, metric, value, unit in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    report.show("data pipeline, CPU time of one core", measure(options.documents), options.json)


if __name__ == "__main__":
    main()
