"""Generation end to end on tiny random models: against an uncached reference, and the properties users rely on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mot_jax.batch import Batch
from mot_jax.config import Model, Sample, resolve
from mot_jax.documents import Span, from_tokens, to_tokens
from mot_jax.errors import DataError
from mot_jax.generation.decode import bucket, generate_rows, generate_tokens
from mot_jax.nn import transformer
from mot_jax.vocabulary import build_vocabulary
from tests.generation.models import random_params

VOCABULARY = build_vocabulary(20, [("image", 9, 4), ("speech", 7, None)])
IMAGE, SPEECH = VOCABULARY.modality("image"), VOCABULARY.modality("speech")
TEXT_CODES = set(range(20))
MAX_TOKENS = 8
GREEDY = Sample(temperature=0.0, max_tokens=MAX_TOKENS)
HOT = Sample(temperature=1.5, max_tokens=MAX_TOKENS)
UNTIED = {"dense": (), "MoT": ("attention", "feed_forward", "norm")}


@functools.cache
def tiny(kind):
    settings = {"dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 48, "dtype": "float32"}
    model = resolve(Model(**settings, untied=UNTIED[kind]), VOCABULARY.names, VOCABULARY.size)
    return model, random_params(model, seed=3)


def text_prompt(*codes):
    return to_tokens(VOCABULARY, [Span("text", np.array(codes, np.int32))], eos=False)


PROMPTS = [
    text_prompt(),
    text_prompt(4, 5, 6, 7, 8),
    to_tokens(VOCABULARY, [Span("speech", np.array([1, 2])), Span("text", np.array([3]))], eos=False),
]


def generate(kind, prompts=PROMPTS, seed=0, **settings):
    return generate_tokens(*tiny(kind), VOCABULARY, prompts, key=jax.random.key(seed), **settings)


@functools.partial(jax.jit, static_argnums=0)
def last_logits(model, params, tokens, length):
    """The whole sequence again for every token: float32[V]."""
    place = jnp.arange(tokens.shape[0])[None]
    zeros = jnp.zeros_like(place)
    kinds = jnp.asarray(np.pad(VOCABULARY.token_modality, (0, model.vocab_size - VOCABULARY.size)))[tokens][None]
    batch = Batch(
        tokens[None], kinds, (place < length).astype(jnp.int32), zeros, place[..., None], zeros, zeros.astype(float)
    )
    hidden, _ = transformer.apply(model, params, batch)
    return transformer.logits(model, params, hidden[0, length - 1])


def allowed(written, to, left):
    """The rules, told once more in plain Python: what may follow the tokens `written` since the prompt."""
    opened = [t for t in written if t in (IMAGE.begin, IMAGE.end, SPEECH.begin, SPEECH.end)]
    inside = {IMAGE.begin: IMAGE, SPEECH.begin: SPEECH}.get(opened[-1]) if opened else None
    if inside is None:
        begins = {m.begin for m, least in ((IMAGE, 6), (SPEECH, 3)) if to == "text" or left >= least}
        return TEXT_CODES | ({VOCABULARY.eos} | begins if written or to is None else set())
    used = len(written) - 1 - max(i for i, t in enumerate(written) if t == inside.begin)
    codes, most = set(VOCABULARY.code_tokens(inside.name).tolist()), inside.span_length or MAX_TOKENS
    may_close = used >= (inside.span_length or 1)
    return (codes if used < most and left > 1 else set()) | ({inside.end} if may_close else set())


def reference(kind, prompt, to, guidance=1.0, most=MAX_TOKENS):
    """Greedy decoding without a cache, by argmax over `allowed`."""
    model, params = tiny(kind)
    span = {"image": IMAGE, "speech": SPEECH}.get(to)
    written = [span.begin] if span else []
    limit = most + 2 if span else most

    def logits(start):
        tokens = np.concatenate([start, written]).astype(np.int32)
        return np.asarray(last_logits(model, params, jnp.asarray(np.pad(tokens, (0, 32 - len(tokens)))), len(tokens)))

    while len(written) < limit:
        scores = logits(prompt)
        if guidance != 1.0:
            base = logits(np.array([VOCABULARY.bos]))
            scores = base + guidance * (scores - base)
        legal = sorted(allowed(written, to, limit - len(written)))
        token = legal[int(np.argmax(scores[legal]))]
        if token == VOCABULARY.eos or (to == "text" and token not in TEXT_CODES):
            break
        written.append(token)
        if span and token == span.end:
            break
    return written


@pytest.mark.parametrize("to", ["image", "speech", "text", None])
@pytest.mark.parametrize("kind", UNTIED)
def test_greedy_equals_the_uncached_argmax(kind, to):
    for prompt, got in zip(PROMPTS, generate(kind, to=to, sample=GREEDY), strict=True):
        assert got.tolist() == reference(kind, prompt, to)


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_guided_greedy_equals_the_uncached_argmax(guidance):
    got = generate("MoT", to="image", sample=GREEDY, guidance=guidance)
    assert [row.tolist() for row in got] == [reference("MoT", prompt, "image", guidance) for prompt in PROMPTS]
    if guidance == 0.0:  # nothing of the prompt is left
        assert got[0].tolist() == got[1].tolist() == got[2].tolist()


def test_guidance_1_is_no_guidance():
    plain = generate("MoT", to="image", sample=HOT)
    nearly = generate("MoT", to="image", sample=HOT, guidance=1 + 1e-6)  # through the guided program
    np.testing.assert_array_equal(plain, nearly)


@pytest.mark.parametrize("kind", UNTIED)
def test_everything_generated_is_a_document_with_whole_spans(kind):
    prompts = [text_prompt(i) for i in range(3)]
    seen = set()
    for to in ("image", "speech", "text", None):
        for seed in range(12):
            for prompt, row in zip(prompts, generate(kind, prompts, seed, to=to, sample=HOT), strict=True):
                document = from_tokens(VOCABULARY, row)
                np.testing.assert_array_equal(to_tokens(VOCABULARY, document, bos=False, eos=False), row)
                from_tokens(VOCABULARY, np.concatenate([prompt, row]))
                assert all(0 < len(s.codes) <= MAX_TOKENS for s in document)
                if to in ("image", "speech"):
                    assert [span.modality for span in document] == [to]
                elif to == "text":
                    assert [span.modality for span in document] == ["text"] and len(row) <= MAX_TOKENS
                else:
                    assert len(row) <= MAX_TOKENS
                    seen |= {span.modality for span in document}
    assert seen == {"text", "image", "speech"}


def test_a_row_is_the_same_in_any_company_and_differs_by_place_and_seed():
    row = PROMPTS[1]
    alone = generate("MoT", [row], to="speech", sample=HOT)
    together = generate("MoT", [row, *PROMPTS[1:]], to="speech", sample=HOT)
    assert alone[0].tolist() == together[0].tolist()
    images = generate("dense", [row] * 3, to="image", sample=HOT)
    again = generate("dense", [row] * 3, to="image", sample=HOT)
    other = generate("dense", [row] * 3, seed=1, to="image", sample=HOT)
    np.testing.assert_array_equal(images, again)
    assert len({tuple(r) for r in images}) > 1
    assert not np.array_equal(images, other)


def test_draws_are_independent_over_steps_rows_and_seeds():
    model, params = tiny("dense")
    blank = jax.tree.map(jnp.zeros_like, params)  # every legal token is as likely
    images = np.concatenate(
        [
            generate_tokens(model, blank, VOCABULARY, PROMPTS, to="image", sample=HOT, key=jax.random.key(seed))
            for seed in range(60)
        ]
    )
    codes = VOCABULARY.token_code[images[:, 1:-1]]
    counts = np.bincount(codes.ravel(), minlength=9)
    assert abs(counts - codes.size / 9).max() < 5 * (codes.size / 9) ** 0.5
    for a, b in ((codes[:, 0], codes[:, 1]), (codes[::3, 0], codes[1::3, 0]), (codes[:-3, 0], codes[3:, 0])):
        assert 0.02 < np.mean(a == b) < 0.22  # one in nine


def test_one_program_serves_every_request_of_a_shape():
    generate("dense", to="image", sample=HOT)
    before = generate_rows._cache_size()
    generate("dense", to="speech", sample=GREEDY, seed=5, max_tokens=5)
    generate("dense", [text_prompt(1, 2), text_prompt(3), text_prompt()], to="text", sample=HOT)
    generate("dense", to=None, sample=HOT, max_length=20)
    assert generate_rows._cache_size() == before


def test_lengths_are_respected():
    for most in (1, 3):
        for row in generate("dense", [text_prompt(i) for i in range(3)], to="speech", sample=HOT, max_tokens=most):
            assert 1 <= len(from_tokens(VOCABULARY, row)[0].codes) <= most
    for to in ("speech", None):
        for prompt, row in zip(PROMPTS, generate("dense", to=to, sample=HOT, max_length=10), strict=True):
            assert len(prompt) + len(row) <= 10
            from_tokens(VOCABULARY, np.concatenate([prompt, row]))


def test_no_room_and_no_such_modality_say_so():
    with pytest.raises(DataError, match=r"prompt 1 is too long: it has 6 tokens, and at most 4 leave room for image"):
        generate("dense", to="image", sample=HOT, max_length=10)
    generate("dense", PROMPTS[:1] * 3, to="image", sample=HOT, max_length=7)
    with pytest.raises(DataError, match="did you mean 'image'"):
        generate("dense", to="imgae", sample=HOT)
    with pytest.raises(DataError, match="expected at least 1, got 0"):
        generate("dense", to="text", sample=HOT, max_tokens=0)
    assert generate("dense", [], to="text", sample=HOT) == []


def test_parameters_may_live_on_several_devices():
    model, params = tiny("dense")
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    spread = jax.tree.map(
        lambda p: jax.device_put(
            p, jax.NamedSharding(mesh, jax.P("data") if p.ndim > 1 and p.shape[0] % 4 == 0 else jax.P())
        ),
        params,
    )
    got = generate_tokens(model, spread, VOCABULARY, PROMPTS, to="image", sample=HOT, key=jax.random.key(0))
    np.testing.assert_array_equal(got, generate("dense", to="image", sample=HOT))


def test_buckets_are_few_and_large_enough():
    sizes = [bucket(n, 8) for n in range(1, 1000)]
    assert all(n <= size <= max(8, 1.5 * n) for n, size in enumerate(sizes, 1))
    assert len(set(sizes)) <= 16
