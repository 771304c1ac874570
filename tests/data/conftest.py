"""Three small real codecs and random documents of theirs."""

import numpy as np
import pytest

from mot_jax.codecs.protocol import Codec
from mot_jax.data.dataset import DatasetWriter, open_dataset
from mot_jax.documents import Span


class Plain(Codec):
    """Numbers as they are; its settings are what it saves."""

    def __init__(self, size: int, span_length: int | None = None):
        self.size, self.span_length = size, span_length

    def encode(self, value):
        return np.asarray(value, np.int32)

    def decode(self, codes):
        return codes.tolist()

    def save(self, directory):
        (directory / "settings").mkdir()
        (directory / "settings" / "sizes.txt").write_text(f"{self.size} {self.span_length or 0}")

    @classmethod
    def load(cls, directory):
        size, span_length = map(int, (directory / "settings" / "sizes.txt").read_text().split())
        return cls(size, span_length or None)


class Text(Plain, kind="test_text"):
    pass


class Image(Plain, kind="test_image"):
    pass


class Speech(Plain, kind="test_speech"):
    pass


@pytest.fixture
def codecs():
    return {"text": Text(50), "image": Image(300, 6), "speech": Speech(20)}


@pytest.fixture
def random_documents(rng):
    """random_documents(count, longest text) -> documents of one to five spans in any order."""

    def make(count: int, text: int = 12):
        sizes = {"text": (50, 1, text), "image": (300, 6, 6), "speech": (20, 0, 5)}
        documents = []
        for _ in range(count):
            spans = []
            for name in rng.choice(list(sizes), rng.integers(1, 6)):
                size, shortest, longest = sizes[name]
                length = rng.integers(shortest, longest + 1)
                spans.append(Span(str(name), rng.integers(0, size, length, dtype=np.int32)))
            documents.append(tuple(spans))
        return documents

    return make


@pytest.fixture
def write(tmp_path, codecs):
    """write(splits) -> an opened data set of {split: documents}."""
    made = []

    def make(files: int = 1, **splits):
        directory = tmp_path / f"data{len(made)}"
        made.append(directory)
        with DatasetWriter(directory, codecs, files=files) as writer:
            for split, documents in splits.items():
                for document in documents:
                    writer.add(split, document)
        return open_dataset(directory)

    return make
