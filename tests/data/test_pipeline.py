"""Streams: deterministic, resumable at any batch, the same however many processes read them."""

import dataclasses
import json
import threading
import time

import numpy as np
import pytest

from mot_jax.config import Data
from mot_jax.data import dataset as dataset_module
from mot_jax.data.dataset import open_dataset
from mot_jax.data.pipeline import (
    Prefetch,
    check_same_stream,
    evaluation_batches,
    stream_fingerprint,
    train_stream,
)
from mot_jax.documents import Span
from mot_jax.errors import ConfigError, DataError

DATA = Data(sequence_length=40, global_batch_size=4, shards=2, packing_bins=3)


def same(first, second):
    """Whether two batches are equal bit by bit."""
    return all(
        np.array_equal(getattr(first, field.name), getattr(second, field.name)) for field in dataclasses.fields(first)
    )


def take(stream, count):
    return [next(stream) for _ in range(count)]


def numbered(count):
    """Documents that say their number: two text codes each."""
    return [(Span("text", np.array([i // 50, i % 50])),) for i in range(count)]


def order(batches):
    """The numbers of the documents in the rows, one after the other."""
    return [
        int(codes[0] * 50 + codes[1])
        for batch in batches
        for row, ids in zip(batch.tokens, batch.segment_ids, strict=True)
        for codes in row[ids > 0].reshape(-1, 4)[:, 1:3]  # BOS, two codes, EOS
    ]


@pytest.fixture
def dataset(write, random_documents):
    return write(train=random_documents(60, text=60), validation=random_documents(13))


def test_the_stream_is_decided_by_both_seeds(dataset):
    batches = take(train_stream(dataset, DATA, 1), 5)
    assert all(map(same, batches, take(train_stream(dataset, DATA, 1), 5)))
    assert not same(batches[0], next(train_stream(dataset, DATA, 2)))
    assert not same(batches[0], next(train_stream(dataset, dataclasses.replace(DATA, seed=1), 1)))
    assert batches[0].tokens.shape == (4, 40)


def test_each_epoch_holds_every_document_once_in_a_new_order(write):
    dataset = write(train=numbered(60))
    # one bin keeps the order; ten documents fill a row of 40 and two rows an epoch's share
    read = order(take(train_stream(dataset, dataclasses.replace(DATA, packing_bins=1, global_batch_size=2), 0), 6))
    shards = [[n for n in read if n % 2 == shard] for shard in (0, 1)]
    for shard, numbers in enumerate(shards):
        epochs = [numbers[:30], numbers[30:60]]
        assert all(sorted(epoch) == list(range(shard, 60, 2)) for epoch in epochs)
        assert epochs[0] != epochs[1] != sorted(epochs[1])


def test_the_order_is_the_one_that_saved_runs_rely_on(write):
    stream = train_stream(write(train=numbered(12)), Data(sequence_length=12, global_batch_size=4), 0)
    # if this fails, a saved run would silently see other data: raise packing.VERSION along with these numbers
    assert order([next(stream)]) == [3, 4, 7, 5, 7, 4, 11, 2, 4, 10, 2, 9]
    assert order([next(stream)]) == [4, 11, 6, 6, 3, 11, 2, 8, 6, 10, 11, 0]


@pytest.mark.parametrize(("seen", "threads"), [(0, 0), (1, 0), (2, 0), (7, 0), (23, 0), (5, 2)])
def test_a_restored_stream_goes_on_identically(dataset, seen, threads):
    data = dataclasses.replace(DATA, reader_threads=threads)
    stream = train_stream(dataset, data, 0)
    take(stream, seen)
    state = json.loads(json.dumps(stream.state()))
    rest = take(stream, 9)
    for used in (0, 3):
        restored = train_stream(dataset, data, 0)
        take(restored, used)  # what was read before does not matter
        restored.restore(state)
        assert restored.state() == state
        assert all(map(same, rest, take(restored, 9)))


def test_reading_threads_and_memory_do_not_change_the_stream(dataset, monkeypatch):
    expected = take(train_stream(dataset, DATA, 0), 6)
    monkeypatch.setattr(dataset_module, "MEMORY_LIMIT", 0)
    data = dataclasses.replace(DATA, reader_threads=3)
    assert all(map(same, expected, take(train_stream(dataset, data, 0), 6)))


def test_processes_that_share_the_shards_make_the_same_global_batches(dataset):
    data = dataclasses.replace(DATA, global_batch_size=8, shards=4)
    whole = train_stream(dataset, data, 0)
    take(whole, 3)
    state = whole.state()
    parts = [train_stream(dataset, data, 0, shards=shards) for shards in (range(0, 1), range(1, 4))]
    for part in parts:
        take(part, 3)
    assert parts[0].state() | parts[1].state() == state
    other_parts = [train_stream(dataset, data, 0, shards=shards) for shards in (range(0, 2), range(2, 4))]
    for part in other_parts:
        part.restore(state)
    for _ in range(4):
        tokens = next(whole).tokens
        for processes in (parts, other_parts):
            assert np.array_equal(tokens, np.concatenate([next(part).tokens for part in processes]))


def test_a_state_without_a_shard_is_refused(dataset):
    state = train_stream(dataset, DATA, 0, shards=range(0, 1)).state()
    with pytest.raises(DataError, match="the saved data state has shards 0, expected shard 1 too"):
        train_stream(dataset, DATA, 0).restore(state)


def test_cut_and_dropped_documents_are_counted(write):
    text, long = (Span("text", np.arange(20)),), (Span("speech", np.zeros(20, np.int32)),)
    data = Data(sequence_length=12, global_batch_size=1, packing_bins=1)
    stream = train_stream(write(train=[text, long, text, (Span("text", np.arange(5)),)]), data, 0)
    take(stream, 50)
    read = stream.state()["0"]["parent"]["parent"]["next_index"]
    assert abs(stream.split - read / 2) <= 2 and abs(stream.dropped - read / 4) <= 2 and read > 20


def test_data_that_never_fits_is_an_error_and_no_endless_loop(write):
    dataset = write(train=[(Span("speech", np.zeros(20, np.int32)),)] * 3)
    with pytest.raises(DataError, match=r"no document fits Data.sequence_length = 12"):
        next(train_stream(dataset, Data(sequence_length=12), 0))


def test_a_code_outside_its_range_is_named_with_its_document(write):
    image = (Span("image", np.arange(294, 300)),)
    directory = write(train=[(Span("text", np.arange(3)),), image]).directory
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["vocabulary"]["modalities"][1]["ranges"][0][1] = 297
    (directory / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"train: document 1: image: code 297 is outside its range 0\.\.296"):
        take(train_stream(open_dataset(directory), Data(sequence_length=12), 0), 9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence_length": 9}, "Data.sequence_length: 9 is shorter than an image span of 6 codes"),
        ({"shards": 3}, "Data.shards: 3 do not divide Data.global_batch_size = 4"),
        ({"shards": 64, "global_batch_size": 64}, "Data.shards: 64 streams need as many documents, got 60"),
    ],
)
def test_impossible_settings_are_refused(dataset, changes, message):
    with pytest.raises(ConfigError, match=message):
        train_stream(dataset, dataclasses.replace(DATA, **changes), 0)


def test_evaluation_reads_a_split_once_in_order_and_constant_shapes(write):
    dataset = write(train=numbered(1), validation=numbered(31))
    data = Data(sequence_length=12, global_batch_size=4, packing_bins=1)
    batches = list(evaluation_batches(dataset, data))
    assert order(batches) == list(range(31))
    assert {batch.tokens.shape for batch in batches} == {(4, 12)} and len(batches) == 3
    assert batches[-1].loss_weights[-1].sum() == 0 and batches[-1].segment_ids[-1].sum() == 0
    assert all(map(same, batches[:2], evaluation_batches(dataset, data, limit=2)))
    assert len(list(evaluation_batches(dataset, data, limit=2))) == 2
    assert order(evaluation_batches(dataset, data, split="train")) == [0]


def test_the_fingerprint_names_what_differs(dataset, write):
    saved = stream_fingerprint(dataset, DATA, 0)
    same_stream = dataclasses.replace(DATA, reader_threads=2, prefetch=5, path="elsewhere", verify=False)
    check_same_stream(saved, stream_fingerprint(dataset, same_stream, 0))
    for change in ({"sequence_length": 44}, {"global_batch_size": 8}, {"shards": 1}, {"packing_bins": 4}, {"seed": 1}):
        ((name, value),) = change.items()
        with pytest.raises(DataError, match=rf"Data.{name}: the saved run has {getattr(DATA, name)}, got {value}"):
            check_same_stream(saved, stream_fingerprint(dataset, dataclasses.replace(DATA, **change), 0))
    with pytest.raises(DataError, match=r"Train.seed: the saved run has 0, got 1"):
        check_same_stream(saved, stream_fingerprint(dataset, DATA, 1))
    with pytest.raises(DataError, match="data set: the saved run has"):
        check_same_stream(saved, stream_fingerprint(write(train=numbered(2)), DATA, 0))


def prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_prefetched_batches_come_with_the_state_after_them(dataset, depth):
    expected = train_stream(dataset, DATA, 0)
    with Prefetch(train_stream(dataset, DATA, 0), depth) as ahead:
        for _ in range(5):
            batch, state = next(ahead)
            assert same(batch, next(expected)) and state == expected.state()
        assert ahead.waited > 0
    assert not prefetch_threads()


class Scripted:
    """A stream of a few numbers, slow, then an error."""

    def __init__(self, numbers, seconds=0.0, error: BaseException | None = None):
        self._numbers, self._seconds, self._error, self.made = list(numbers), seconds, error, 0

    def __next__(self):
        time.sleep(self._seconds)
        if self.made == len(self._numbers):
            raise self._error or StopIteration
        self.made += 1
        return self._numbers[self.made - 1]

    def state(self):
        return {"made": self.made}


@pytest.mark.parametrize("depth", [0, 2])
def test_what_the_stream_raises_arrives_after_its_batches(depth):
    ahead = Prefetch(Scripted([1, 2], error=DataError("train: document 7: broken")), depth)
    assert next(ahead) == (1, {"made": 1}) and next(ahead) == (2, {"made": 2})
    for _ in range(2):
        with pytest.raises(DataError, match="document 7: broken"):
            next(ahead)
    assert list(Prefetch(Scripted([1]), depth)) == [(1, {"made": 1})]
    assert not prefetch_threads()


def test_waiting_is_measured():
    with Prefetch(Scripted(range(3), seconds=0.05), 2) as ahead:
        assert len(list(ahead)) == 3
        assert ahead.waited > 0.1


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_closing_ends_the_thread_and_never_waits_for_a_full_queue(taken):
    ahead = Prefetch(Scripted(range(1000)), 1)
    for _ in range(taken):
        next(ahead)
    time.sleep(0.02)  # the thread now waits for room
    ahead.close()
    ahead.close()
    assert not prefetch_threads()
    with pytest.raises(RuntimeError, match="closed"):
        next(ahead)


def test_a_forgotten_prefetch_ends_its_thread():
    ahead = Prefetch(Scripted(range(1000)), 1)
    next(ahead)
    del ahead
    assert not prefetch_threads()
