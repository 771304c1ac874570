"""Random packed batches and small models for tests."""

import numpy as np

from mot_jax.batch import Batch
from mot_jax.config import Data, Model, Run, Train, resolve
from mot_jax.vocabulary import Vocabulary, build_vocabulary

VOCABULARY = build_vocabulary(90, [("image", 20, 4), ("speech", 30, None)])
ALL = ("attention", "feed_forward", "norm")


def small_model(vocabulary: Vocabulary = VOCABULARY, **fields) -> Model:
    fields = {"dim": 32, "num_layers": 2, "num_heads": 4, "ffn_dim": 48, **fields}
    return resolve(Model(**fields), vocabulary.names, vocabulary.size)


def small_run(model: Model, rows: int, length: int, **train) -> Run:
    return Run(model=model, data=Data(global_batch_size=rows, sequence_length=length), train=Train(**train))


def random_batch(rng: np.random.Generator, rows: int, length: int, vocabulary: Vocabulary = VOCABULARY) -> Batch:
    """Rows of several documents with random tokens of every modality, and padding at the end."""
    tokens = rng.integers(0, vocabulary.size, (rows, length)).astype(np.int32)
    starts = rng.random((rows, length)) < 0.15
    segments = 1 + np.cumsum(starts, 1).astype(np.int32)
    segments[np.arange(length) >= rng.integers(length // 2, length + 1, (rows, 1))] = 0
    modalities = vocabulary.token_modality[tokens] * (segments > 0)
    tokens = np.where(segments > 0, tokens, vocabulary.pad).astype(np.int32)
    positions = np.zeros((rows, length), np.int32)
    for t in range(1, length):
        positions[:, t] = np.where(segments[:, t] == segments[:, t - 1], positions[:, t - 1] + 1, 0)
    following = np.roll(segments, -1, 1)
    following[:, -1] = 0
    weights = ((segments > 0) & (segments == following)).astype(np.float32)
    return Batch(
        tokens=tokens,
        modality_ids=modalities.astype(np.int32),
        segment_ids=segments,
        span_ids=segments,
        positions=positions[..., None],
        targets=np.where(weights > 0, np.roll(tokens, -1, 1), 0).astype(np.int32),
        loss_weights=weights,
    )
