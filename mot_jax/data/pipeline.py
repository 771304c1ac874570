"""Streams of batches: `Data.shards` independent packed streams for training, one ordered pass for evaluation."""

import json
from collections.abc import Iterator, Mapping, Sequence

import grain
import numpy as np

from mot_jax.batch import Batch
from mot_jax.config import Data
from mot_jax.data import packing
from mot_jax.data.dataset import Dataset, Documents
from mot_jax.data.prefetch import Prefetch
from mot_jax.errors import ConfigError, DataError
from mot_jax.vocabulary import Vocabulary

__all__ = ["Prefetch", "Stream", "check_same_stream", "evaluation_batches", "stream_fingerprint", "train_stream"]


class _Pieces:
    """A split as a source for grain: the token pieces of each document."""

    def __init__(self, documents: Documents, vocabulary: Vocabulary, row_length: int, split: str):
        self._documents, self._vocabulary = documents, vocabulary
        self._row_length, self._split = row_length, split
        if len(documents):
            documents[0]  # decodes a small split now, not once in every reading thread

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> list[np.ndarray]:
        try:
            return packing.document_pieces(self._vocabulary, self._documents[index], self._row_length)
        except DataError as error:
            raise DataError(f"{self._split}: document {index}: {error}") from error


class _Shard:
    """One packed stream: every `shards`-th document, shuffled anew each epoch, without end."""

    def __init__(self, source: _Pieces, data: Data, shard: int, seed: int):
        documents = grain.MapDataset.source(source)[shard :: data.shards]
        if not len(documents):
            raise ConfigError(f"Data.shards: {data.shards} streams need as many documents, got {len(source)}")
        sequence = np.random.SeedSequence([data.seed % 2**32, seed % 2**32, shard])
        order_seed, row_seed = (int(word) for word in sequence.generate_state(2))
        threads = data.reader_threads
        stream = documents.seed(order_seed).shuffle().repeat()
        self._rows = iter(
            packing.pack(
                stream.to_iter_dataset(
                    grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(1, 16 * threads))
                ),
                data.sequence_length,
                bins=data.packing_bins,
                seed=row_seed,
                shuffle=True,
                observe=self._observe,
            )
        )
        self._documents, self._row_length, self._useless = len(documents), data.sequence_length, 0
        self.dropped = self.split = 0

    def _observe(self, pieces: list[np.ndarray]) -> None:
        self.dropped += not pieces
        self.split += len(pieces) > 1
        self._useless = 0 if pieces else self._useless + 1
        if self._useless > 2 * self._documents:  # more than any order of two epochs can hold otherwise
            raise DataError(f"no document fits Data.sequence_length = {self._row_length}; each has a longer span")

    def rows(self, count: int) -> list[dict[str, np.ndarray]]:
        return [next(self._rows) for _ in range(count)]

    def state(self) -> dict:
        return self._rows.get_state()

    def restore(self, state: dict) -> None:
        self._rows.set_state(state)


class Stream:
    """An endless iterator of training batches, NumPy, in the order of its shards. Made by `train_stream`."""

    def __init__(self, dataset: Dataset, data: Data, seed: int, shards: Sequence[int]):
        packing.check_row_length(dataset.vocabulary, data.sequence_length)
        if data.global_batch_size % data.shards:
            raise ConfigError(
                f"Data.shards: {data.shards} do not divide Data.global_batch_size = {data.global_batch_size} rows"
            )
        source = _Pieces(dataset.split("train"), dataset.vocabulary, data.sequence_length, "train")
        self._vocabulary = dataset.vocabulary
        self._rows = data.global_batch_size // data.shards
        self._shards = {shard: _Shard(source, data, shard, seed) for shard in shards}

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Batch:
        rows = [row for shard in self._shards.values() for row in shard.rows(self._rows)]
        return packing.make_batch(self._vocabulary, rows)

    def state(self) -> dict[str, dict]:
        """Where each shard stands, JSON-able; it costs microseconds."""
        return {str(index): shard.state() for index, shard in self._shards.items()}

    def restore(self, state: Mapping[str, dict]) -> None:
        """Continues where `state` was taken, in a stream of the same fingerprint.

        Raises:
          DataError: the state lacks a shard that this stream reads.
        """
        for index, shard in self._shards.items():
            if str(index) not in state:
                raise DataError(f"the saved data state has shards {', '.join(state)}, expected shard {index} too")
            shard.restore(state[str(index)])

    @property
    def dropped(self) -> int:
        """Documents left out since this stream was made, because one of their spans is longer than a row."""
        return sum(shard.dropped for shard in self._shards.values())

    @property
    def split(self) -> int:
        """Documents cut into several since this stream was made, because they are longer than a row."""
        return sum(shard.split for shard in self._shards.values())


def train_stream(dataset: Dataset, data: Data, seed: int, *, shards: Sequence[int] | None = None) -> Stream:
    """The training batches of a data set.

    Args:
      seed: the run's; together with `data.seed` it decides the order.
      shards: those that this process reads, all by default; its batches hold their rows only.

    Raises:
      ConfigError: rows too short for a span, or shards that do not divide the rows.
    """
    return Stream(dataset, data, seed, range(data.shards) if shards is None else shards)


def evaluation_batches(
    dataset: Dataset, data: Data, split: str = "validation", limit: int | None = None
) -> Iterator[Batch]:
    """One pass over a split in its own order, at most `limit` batches; the last is filled up with empty rows."""
    packing.check_row_length(dataset.vocabulary, data.sequence_length)
    source = _Pieces(dataset.split(split), dataset.vocabulary, data.sequence_length, split)
    documents = grain.MapDataset.source(source).to_iter_dataset(grain.ReadOptions(num_threads=0))
    packed = packing.pack(documents, data.sequence_length, bins=data.packing_bins, seed=0, shuffle=False)
    return _batches(dataset.vocabulary, iter(packed), data, limit)


def _batches(vocabulary: Vocabulary, packed: Iterator[dict], data: Data, limit: int | None) -> Iterator[Batch]:
    made = 0
    while limit is None or made < limit:
        rows = [row for _, row in zip(range(data.global_batch_size), packed, strict=False)]
        if not rows:
            return
        empty = {key: np.zeros_like(value) for key, value in rows[0].items()}
        yield packing.make_batch(vocabulary, rows + [empty] * (data.global_batch_size - len(rows)))
        made += 1


def stream_fingerprint(dataset: Dataset, data: Data, seed: int) -> str:
    """Everything that decides the stream, as JSON text: equal texts mean equal batches."""
    shaping = ("sequence_length", "global_batch_size", "shards", "packing_bins", "seed")
    values = {f"Data.{name}": getattr(data, name) for name in shaping}
    values |= {"Train.seed": seed, "data set": dataset.fingerprint, "packing version": packing.VERSION}
    return json.dumps(values)


def check_same_stream(saved: str, current: str) -> None:
    """Raises DataError naming what differs between two fingerprints."""
    before, now = json.loads(saved), json.loads(current)
    for name in now:
        if before.get(name) != now[name]:
            raise DataError(f"{name}: the saved run has {before.get(name)}, got {now[name]}; its data cannot go on")
