"""Random documents of three small codecs, and data sets of them."""

import numpy as np
import pytest

from mot_jax.data.dataset import DatasetWriter, open_dataset
from mot_jax.documents import Span
from tests.data.toy_codecs import Image, Speech, Text


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
