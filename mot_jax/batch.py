"""A packed batch of documents: the one thing that data and model share."""

import dataclasses
from typing import Any

import jax

Array = Any  # an array, or whatever a tree map puts in its place: a shape, a sharding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """B rows of S tokens, each row several documents back to back.

    tokens        int32[B, S]     vocabulary ids
    modality_ids  int32[B, S]     the INPUT token's modality; markers and padding are text (0)
    segment_ids   int32[B, S]     which document of the row, from 1; 0 is padding
    span_ids      int32[B, S]     which span of the row, from 1: a run of one modality in one document; 0 is padding
    positions     int32[B, S, A]  rotary positions, restarting with each document; a row's order is its index
    targets       int32[B, S]     the next token of the same document
    loss_weights  float32[B, S]   0 where there is nothing to predict: padding and a document's last token
    """

    tokens: Array
    modality_ids: Array
    segment_ids: Array
    span_ids: Array
    positions: Array
    targets: Array
    loss_weights: Array
