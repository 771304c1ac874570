"""Which token may come next: documents are text with whole spans of other modalities between their markers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int32

from mot_jax.batch import Array
from mot_jax.vocabulary import Vocabulary

UNLIMITED = np.iinfo(np.int32).max


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Grammar:
    """The rules as tables over V token ids and M modalities; -1 stands for none.

    owner      int32[V]  the modality whose code a token is; special tokens and unused ids are nobody's
    opens      int32[V]  the modality whose span a token opens
    closes     int32[V]  the modality whose span a token closes
    min_codes  int32[M]  a span's least number of codes
    max_codes  int32[M]  and its greatest
    eos, pad   int32[]   the tokens that end a document and that fill finished rows
    single     bool[]    end with the first span: at its end marker, or for text, once there is some, at any marker
    """

    owner: Array
    opens: Array
    closes: Array
    min_codes: Array
    max_codes: Array
    eos: Array
    pad: Array
    single: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Where each of B rows stands: the modality being written, its codes so far, and whether the row is finished."""

    mode: Array  # int32[B]
    used: Array  # int32[B]
    done: Array  # bool[B]


def make_grammar(vocabulary: Vocabulary, vocab_size: int, *, max_tokens: int, single: bool) -> Grammar:
    """Tables for `vocab_size` logits (the ids past the vocabulary's own are never legal).

    Args:
      max_tokens: the most codes of a span whose length is not fixed; text is not counted here.
      single: generation ends with the first span instead of at EOS.
    """
    owner, opens, closes = (np.full(vocab_size, -1, np.int32) for _ in range(3))
    min_codes, max_codes = [], []
    for index, modality in enumerate(vocabulary.modalities):
        owner[vocabulary.code_tokens(modality.name)] = index
        if modality.begin is not None:
            opens[modality.begin], closes[modality.end] = index, index
        fixed = modality.span_length
        min_codes.append(1 if fixed is None else fixed)
        max_codes.append(fixed if fixed is not None else max_tokens if modality.begin is not None else UNLIMITED)
    owner[[vocabulary.pad, vocabulary.bos, vocabulary.eos]] = -1  # a text codec may count these among its own ids
    return Grammar(
        owner=jnp.asarray(owner),
        opens=jnp.asarray(opens),
        closes=jnp.asarray(closes),
        min_codes=jnp.asarray(min_codes, jnp.int32),
        max_codes=jnp.asarray(max_codes, jnp.int32),
        eos=jnp.int32(vocabulary.eos),
        pad=jnp.int32(vocabulary.pad),
        single=jnp.bool_(single),
    )


def legal(grammar: Grammar, state: State, positions_left: Int32[Array, "B"]) -> Bool[Array, "B V"]:
    """The tokens that may come next; never none, and only padding for a finished row.

    Args:
      positions_left: how many tokens still fit, the next one included. Text opens a span only where the whole of it
        fits, markers included (Chameleon, arXiv 2405.09818), so no span is ever cut.
    """
    mode = state.mode[:, None]
    in_text = mode == 0
    token = jnp.arange(grammar.owner.shape[0])
    closing_fits = in_text[:, 0] | (positions_left > 1)
    another = (state.used < grammar.max_codes[state.mode]) & closing_fits
    code = (grammar.owner == mode) & another[:, None]
    whole = grammar.min_codes[grammar.opens] + 2
    fits = grammar.single | (positions_left[:, None] >= whole)
    enough = (state.used >= grammar.min_codes[state.mode])[:, None]
    leaving = in_text & (~grammar.single | enough)  # whoever asks for text gets some
    opening = leaving & (grammar.opens >= 0) & fits
    closing = (grammar.closes == mode) & enough
    allowed = code | opening | closing | (leaving & (token == grammar.eos))
    return jnp.where(state.done[:, None], token == grammar.pad, allowed)


def advance(
    grammar: Grammar, state: State, token: Int32[Array, "B"], positions_left: Int32[Array, "B"]
) -> tuple[State, Bool[Array, "B"]]:
    """The state after one token a row, and which rows keep that token (not finished rows, not a token that stops)."""
    opened, closed = grammar.opens[token], grammar.closes[token]
    marker = (opened >= 0) | (closed >= 0)
    mode = jnp.where(opened >= 0, opened, jnp.where(closed >= 0, 0, state.mode))
    used = jnp.where(marker, 0, state.used + 1)
    stops = (token == grammar.eos) | (grammar.single & marker)
    complete = grammar.single & (used >= grammar.max_codes[mode])  # its end marker is the only thing left to say
    kept = ~state.done & ~stops
    done = state.done | stops | complete | (positions_left <= 1)
    return State(
        mode=jnp.where(state.done, state.mode, mode), used=jnp.where(state.done, state.used, used), done=done
    ), kept
