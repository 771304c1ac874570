"""Asking a model for one span of a modality after what came before, in as few compiled shapes as possible."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Int32

from mot_jax.config import Model, Sample
from mot_jax.documents import Span, to_tokens
from mot_jax.generation.decode import generate_tokens
from mot_jax.vocabulary import Vocabulary

ROWS = 128  # prompts decoded together; the last, smaller group is filled up so that one program serves all


def complete(
    model: Model,
    params: Mapping,
    vocabulary: Vocabulary,
    prompts: Sequence[Sequence[Span]],
    *,
    to: str,
    sample: Sample,
    seed: int,
) -> list[Int32[np.ndarray, "_"]]:
    """The codes of the span of modality `to` that the model puts after each prompt.

    A prompt takes the form that documents have in training: BOS, its spans, each but text between its markers.
    """
    key = jax.random.key(seed)
    tokens = [to_tokens(vocabulary, spans, eos=False) for spans in prompts]
    spans = []
    for start in range(0, len(tokens), ROWS):
        group = tokens[start : start + ROWS]
        filled = group + group[-1:] * (ROWS - len(group)) if start else group
        generated = generate_tokens(
            model,
            params,
            vocabulary,
            filled,
            to=to,
            sample=sample,
            max_tokens=vocabulary.modality(to).span_length or sample.max_tokens,
            key=jax.random.fold_in(key, start),
            guidance=sample.guidance,
        )
        spans += [codes_of(vocabulary, to, row) for row in generated[: len(group)]]
    return spans


def codes_of(vocabulary: Vocabulary, name: str, tokens: Int32[np.ndarray, "_"]) -> Int32[np.ndarray, "_"]:
    """A modality's codes among tokens; markers and special tokens, which a text codec may count as its own, are not."""
    special = [vocabulary.pad, vocabulary.bos, vocabulary.eos]
    mine = (vocabulary.token_modality[tokens] == vocabulary.index(name)) & ~np.isin(tokens, special)
    codes = vocabulary.token_code[tokens[mine]]
    return codes[codes >= 0]
