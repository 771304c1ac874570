"""Generating tokens: prompts of any lengths in one batch, one compiled program a shape."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Int32, Key

from mot_jax.batch import Array
from mot_jax.config import RULES, Model, Rules, Sample
from mot_jax.errors import DataError
from mot_jax.generation import grammar, sampling
from mot_jax.generation.auxiliary import check_causal
from mot_jax.generation.cache import decode, prefill
from mot_jax.generation.grammar import Grammar, State
from mot_jax.generation.placement import Placement, fits_one_device, one_device, placement_of
from mot_jax.nn import transformer
from mot_jax.parallel.mesh import replicated
from mot_jax.vocabulary import TEXT, Vocabulary


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Request:
    """What one program runs on. Guided, the second half of the R rows holds the unconditional prompts of the B first.

    tokens        int32[R, S]  prompts, padded on the right
    lengths       int32[R]     their lengths; 0 is a row of padding
    modality_of   int32[V]     the modality of every token id
    grammar, state             the rules, and where each of the B rows stands
    limits        int32[B]     the most tokens to generate
    keys          key[B]
    temperature, top_k, top_p, guidance  scalars
    """

    tokens: Array
    lengths: Array
    modality_of: Array
    grammar: Grammar
    state: State
    limits: Array
    keys: jax.Array
    temperature: Array
    top_k: Array
    top_p: Array
    guidance: Array


@functools.partial(jax.jit, static_argnames=("model", "steps", "guided", "truncated", "placement"))
def generate_rows(
    model: Model,
    params: dict,
    request: Request,
    *,
    steps: int,
    guided: bool,
    truncated: bool,
    placement: Placement | None = None,
) -> tuple[Int32[Array, "B T"], Int32[Array, "B"]]:
    """Prefill and the whole decoding loop: at most `steps` tokens a row, and how many of them each row keeps.

    With a `placement` every device generates all rows, from parameters that stay split and with the cache of its heads.
    """
    run = functools.partial(_generate, model, steps=steps, guided=guided, truncated=truncated)
    if placement is None:
        return run(params, request, RULES)
    rules = placement.rules
    return jax.shard_map(
        lambda params, request: run(params, request, rules),
        mesh=placement.mesh,
        in_specs=(transformer.partition_specs(model, rules), PartitionSpec()),
        out_specs=PartitionSpec(),
        check_vma=False,
    )(params, request)


def _generate(model: Model, params: dict, request: Request, rules: Rules, *, steps: int, guided: bool, truncated: bool):
    tables, batch = request.grammar, request.limits.shape[0]

    def pick(hidden, step, state):
        logits = transformer.logits(model, params, hidden, rules)
        if guided:
            logits = sampling.guide(logits[:batch], logits[batch:], request.guidance)
        left = request.limits - step
        token = sampling.sample(
            logits,
            grammar.legal(tables, state, left),
            jax.vmap(jax.random.fold_in, (0, None))(request.keys, step),
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            truncated=truncated,
        )
        state, kept = grammar.advance(tables, state, token, left)
        return token, state, kept

    def both(rows):
        return jnp.concatenate([rows, rows]) if guided else rows

    def unfinished(carry):
        return ~jnp.all(carry[3].done)

    def continued(carry):
        step, cache, token, state, out, counts = carry
        modality_ids = request.modality_of[token]
        hidden, cache = decode(model, params, cache, both(token), both(modality_ids), both(~state.done), rules)
        token, state, kept = pick(hidden, step, state)
        out = jax.lax.dynamic_update_slice(out, token[:, None], (0, step))
        return step + 1, cache, token, state, out, counts + kept

    modality_ids = request.modality_of[request.tokens]
    capacity = request.tokens.shape[1] + steps
    hidden, cache = prefill(model, params, request.tokens, modality_ids, request.lengths, capacity, rules)
    token, state, kept = pick(hidden, 0, request.state)
    out = jnp.broadcast_to(tables.pad, (batch, steps)).at[:, 0].set(token)
    carry = (jnp.int32(1), cache, token, state, out, kept.astype(jnp.int32))
    *_, out, counts = jax.lax.while_loop(unfinished, continued, carry)
    return out, counts


def generate_tokens(
    model: Model,
    params: dict,
    vocabulary: Vocabulary,
    prompts: Sequence[np.ndarray],
    *,
    to: str | None,
    sample: Sample,
    max_tokens: int | None = None,
    key: Key[Array, ""],
    guidance: float | None = None,
    max_length: int | None = None,
) -> list[np.ndarray]:
    """Continues every prompt; what comes back holds whole spans, ready for `documents.from_tokens`.

    Args:
      model: resolved. params: on any devices; put together on one where they fit there, else used where they are.
      prompts: int32 tokens from BOS on, ending between spans, as `to_tokens(..., eos=False)` gives them.
      to: a modality: one span of it, from its begin marker to its end marker. "text": text, at least a
        token, until the document ends or another span would begin. None: anything, until EOS.
      max_tokens: the most codes of a span of varying length; for "text" and None, the most tokens in all.
        None takes `sample.max_tokens`; a modality with a fixed span length ignores it.
      key: row i draws with `fold_in(key, i)`, whatever the other rows are.
      guidance: classifier-free guidance against the prompt [BOS]; None takes `sample.guidance`.
      max_length: the most tokens a row may reach, prompt included; None: no limit.

    Returns:
      The new tokens of each prompt, without EOS.

    Raises:
      DataError: no such modality, or a prompt that leaves no room.
      UserError: the model needs auxiliary routers for this and has none.
    """
    check_causal(model)
    if not len(prompts):
        return []
    max_tokens = sample.max_tokens if max_tokens is None else max_tokens
    guidance = sample.guidance if guidance is None else guidance
    mode = 0 if to is None else vocabulary.index(to)
    span = vocabulary.modalities[mode]
    opening = [] if span.begin is None else [span.begin]
    tokens = [np.concatenate([np.asarray(prompt, np.int32), opening]).astype(np.int32) for prompt in prompts]
    lengths = np.array([len(row) for row in tokens])
    if min(map(len, prompts)) < 1:
        raise DataError("a prompt is empty: expected at least BOS")
    limits = room(vocabulary, to, max_tokens, max_length, lengths)
    guided = guidance != 1.0
    batch, steps = bucket(len(prompts), 1), bucket(span.span_length or max_tokens, 8)
    if guided:
        tokens = pad_rows(tokens, batch) + [np.array([vocabulary.bos, *opening], np.int32)] * len(prompts)
    tokens = pad_rows(tokens, batch * (1 + guided))
    size = bucket(max(len(row) for row in tokens), 8)
    absent = np.arange(batch) >= len(prompts)
    request = Request(
        tokens=np.stack([np.pad(row, (0, size - len(row)), constant_values=vocabulary.pad) for row in tokens]),
        lengths=np.array([len(row) for row in tokens], np.int32),
        modality_of=np.pad(vocabulary.token_modality, (0, model.vocab_size - vocabulary.size)),
        grammar=grammar.make_grammar(vocabulary, model.vocab_size, max_tokens=max_tokens, single=to is not None),
        state=State(mode=np.full(batch, mode, np.int32), used=np.zeros(batch, np.int32), done=absent),
        limits=np.pad(limits, (0, batch - len(limits))).astype(np.int32),
        keys=row_keys(key, batch),
        temperature=np.float32(sample.temperature),
        top_k=np.int32(sample.top_k),
        top_p=np.float32(sample.top_p),
        guidance=np.float32(guidance),
    )
    truncated = sample.temperature > 0 and (sample.top_k > 0 or sample.top_p < 1)
    placement = None if fits_one_device(params) else placement_of(model, params)
    if placement is None:
        params, request = jax.device_put((params, request), one_device(params))
    else:
        request = jax.device_put(request, replicated(placement.mesh))
    out, counts = generate_rows(
        model, params, request, steps=steps, guided=guided, truncated=truncated, placement=placement
    )
    out, counts = jax.device_get((out, counts))
    closing = [] if span.end is None else [span.end]
    return [
        np.concatenate([opening, row[:count], closing]).astype(np.int32)
        for row, count in zip(out[: len(prompts)], counts, strict=False)
    ]


def room(
    vocabulary: Vocabulary, to: str | None, max_tokens: int, max_length: int | None, lengths: np.ndarray
) -> np.ndarray:
    """int[B]: the most tokens each row may generate, a span's end marker included.

    Args:
      lengths: tokens in front, the span's begin marker included.

    Raises:
      DataError: a row has no room for what was asked.
    """
    if max_tokens < 1:
        raise DataError(f"max_tokens: expected at least 1, got {max_tokens}")
    span = vocabulary.modality(to or TEXT)
    wanted = (span.span_length or max_tokens) + (span.end is not None)
    if max_length is None:
        return np.full(len(lengths), wanted)
    least = 1 if span.end is None else (span.span_length or 1) + 1
    if len(bad := np.flatnonzero(max_length - lengths < least)):
        given, most = lengths[bad[0]] - (span.begin is not None), max_length - least - (span.begin is not None)
        raise DataError(
            f"prompt {bad[0]} is too long: it has {given} tokens, and at most {most} leave room for {to or 'a token'} "
            f"in {max_length}"
        )
    return np.minimum(wanted, max_length - lengths)


def bucket(size: int, least: int) -> int:
    """The next of the powers of two and their middles (8, 12, 16, 24, ...): few shapes, so few compilations."""
    power = max(least, 1 << (size - 1).bit_length())
    middle = power * 3 // 4
    return middle if power > least and size <= middle and power % 4 == 0 else power


def pad_rows(rows: list[np.ndarray], count: int) -> list[np.ndarray]:
    """Adds empty rows up to `count`."""
    return rows + [np.zeros(0, np.int32)] * (count - len(rows))


@functools.partial(jax.jit, static_argnums=1)
def row_keys(key: Key[Array, ""], rows: int) -> Key[Array, "B"]:
    """A key a row, the same however many rows there are."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
