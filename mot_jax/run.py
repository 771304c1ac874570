"""A trained run, loaded: `run = mot_jax.load(DIR); run.generate("a bold seven", to="image")`."""

import dataclasses
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8

from mot_jax import config
from mot_jax.codecs.protocol import Codec
from mot_jax.config import Run
from mot_jax.data.artifacts import load_artifacts
from mot_jax.documents import Document, Span, canonical, from_tokens, to_tokens
from mot_jax.errors import UserError, nearest
from mot_jax.generation.auxiliary import check_causal
from mot_jax.generation.decode import generate_tokens
from mot_jax.gin_config import load_run
from mot_jax.nn import transformer
from mot_jax.training.checkpoint import Checkpoints
from mot_jax.training.run_directory import ARTIFACTS, CHECKPOINTS, CONFIG
from mot_jax.training.table_memory import check_table_loads
from mot_jax.vocabulary import TEXT, Vocabulary

Prompt = Any  # a string, a Span of codes, a (modality, value) pair, or a sequence of these; `document` checks it
SHOWN_PIXELS = 256  # a notebook shows pictures enlarged to about this width


@dataclasses.dataclass(frozen=True, eq=False)
class Generated:
    """What a prompt was continued with. `modality` is what was asked for, None for anything."""

    prompt: Document
    document: Document  # the new spans
    modality: str | None
    codecs: Mapping[str, Codec] = dataclasses.field(repr=False)

    @property
    def codes(self) -> np.ndarray:
        """int32[n]: the codes of the span asked for; where anything was, those of all text."""
        asked = [span.codes for span in self.document if span.modality == (self.modality or TEXT)]
        return np.concatenate(asked) if asked else np.zeros(0, np.int32)

    @property
    def value(self) -> Any:
        """`codes` through their codec: a string, a picture, a waveform."""
        return self.codecs[self.modality or TEXT].decode(self.codes)

    @property
    def parts(self) -> list[tuple[str, Any]]:
        """Every new span as (modality, value); a prompt may consist of these."""
        return [(span.modality, self.codecs[span.modality].decode(span.codes)) for span in self.document]

    def __repr__(self) -> str:
        told = [
            repr(self.codecs[TEXT].decode(span.codes))
            if span.modality == TEXT
            else f"<{span.modality}: {len(span.codes)} codes>"
            for span in self.document
        ]
        return f"Generated({' '.join(told)})"

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: the first span that its codec draws."""
        for span in self.document:
            shown = self.codecs[span.modality].show(span.codes)
            if isinstance(shown, np.ndarray):
                times = max(1, SHOWN_PIXELS // shown.shape[1])
                return png(shown.repeat(times, axis=0).repeat(times, axis=1))
        return None


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedRun:
    """A run's config (its model resolved), vocabulary, codecs and the parameters of one step, on one device."""

    config: Run
    vocabulary: Vocabulary
    codecs: Mapping[str, Codec]
    params: dict = dataclasses.field(repr=False)
    step: int
    directory: epath.Path

    def generate(self, prompt: Prompt, to: str | None = None, **settings) -> Generated:
        """Continues one prompt; the settings are those of `generate_batch`.

        Args:
          prompt: a string; or parts in order, each a string, a (modality, value) pair such as ("image", uint8 array),
            or a `Span` of codes.
          to: the modality to answer with; None: anything, until the document ends.
        """
        return self.generate_batch([prompt], to, **settings)[0]

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        to: str | None = None,
        *,
        seed: int = 0,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float | None = None,
        max_tokens: int | None = None,
    ) -> list[Generated]:
        """Continues several prompts at once; what comes of one does not depend on the others.

        Args:
          seed: the same seed, prompt and place in the batch give the same answer.
          temperature: 0 takes the likeliest token. This and the following default to the run's `Sample`.
          top_k: only the k likeliest tokens, 0 for all. top_p: only the likeliest with that mass together.
          guidance: classifier-free guidance; 1 is none.
          max_tokens: the most codes of a span whose length is not fixed; with `to=None` the most tokens in all.

        Raises:
          UserError: an unknown modality, a value its codec cannot take, a prompt that leaves no room in
            `Data.sequence_length`, a setting out of its range, or a model that needs auxiliary routers for this.
        """
        check_causal(self.config.model, self.directory)
        given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance}
        given = {name: value for name, value in given.items() if value is not None}
        sample = dataclasses.replace(self.config.sample, **given)
        check_sample(sample)
        if to is not None and to not in self.vocabulary.names:
            raise UserError(f"to: no modality {to!r} in this run{nearest(to, self.vocabulary.names)}")
        documents = [self.document(prompt) for prompt in prompts]
        rows = generate_tokens(
            self.config.model,
            self.params,
            self.vocabulary,
            [to_tokens(self.vocabulary, document, eos=False) for document in documents],
            to=to,
            sample=sample,
            max_tokens=max_tokens,
            key=jax.random.key(seed),
            max_length=self.config.data.sequence_length,
        )
        return [
            Generated(document, from_tokens(self.vocabulary, row), to, self.codecs)
            for document, row in zip(documents, rows, strict=True)
        ]

    def document(self, prompt: Prompt) -> Document:
        """A prompt as spans of codes; raises UserError for a part that is none."""
        pair = isinstance(prompt, tuple) and len(prompt) == 2 and isinstance(prompt[0], str)
        parts = [prompt] if pair or isinstance(prompt, str | Span) else prompt
        if not isinstance(parts, Sequence):
            raise UserError(f"prompt: expected a string or a list of parts, got {type(parts).__name__}")
        return canonical(self._span(place, part) for place, part in enumerate(parts))

    def _span(self, place: int, part: Any) -> Span:
        if isinstance(part, Span):
            modality, encode = part.modality, lambda: part.codes
        elif isinstance(part, str):
            modality, encode = TEXT, lambda: self.codecs[TEXT].encode(part)
        elif isinstance(part, tuple | list) and len(part) == 2 and isinstance(part[0], str):
            modality, encode = part[0], lambda: self.codecs[part[0]].encode(part[1])
        else:
            raise UserError(
                f"prompt part {place}: expected a string, (modality, value) or a Span, got {type(part).__name__}"
            )
        if modality not in self.codecs:
            raise UserError(
                f"prompt part {place}: no modality {modality!r} in this run{nearest(modality, self.codecs)}"
            )
        try:
            return Span(modality, encode())
        except UserError as error:
            raise UserError(f"prompt part {place} ({modality}): {error}") from error


def check_sample(sample: config.Sample) -> None:
    """Raises UserError for a decoding setting out of its range."""
    for name, good, expected in (
        ("temperature", 0 <= sample.temperature < math.inf, "0 or more"),
        ("top_k", sample.top_k >= 0, "0 (all) or more"),
        ("top_p", 0 < sample.top_p <= 1, "more than 0 and at most 1"),
        ("guidance", math.isfinite(sample.guidance), "a number"),
    ):
        if not good:
            raise UserError(f"{name}: expected {expected}, got {getattr(sample, name)}")


def png(image: UInt8[np.ndarray, "h w *channels"]) -> bytes:
    """A grey or RGB picture as a PNG file (RFC 2083), so that showing one needs nothing installed."""
    height, width = image.shape[:2]
    rows = np.concatenate([np.zeros((height, 1), np.uint8), image.reshape(height, -1)], axis=1)  # 0: unfiltered rows
    colour = 2 if image.ndim == 3 else 0
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows.tobytes())),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def load(run_dir: epath.PathLike, step: int | None = None) -> LoadedRun:
    """Reads a run directory, alone: neither its data set nor the data cache is needed.

    Args:
      step: which checkpoint; None takes the newest that is whole.

    Raises:
      UserError: not a run, a damaged artifact, no such checkpoint. A codec of your own must be imported first.
    """
    directory = epath.Path(run_dir)
    for name in (CONFIG, ARTIFACTS, CHECKPOINTS):
        if not (directory / name).exists():
            raise UserError(f"{directory}: expected a run directory, but it has no {name}")
    run, _ = load_run([str(directory / CONFIG)])
    artifacts = load_artifacts(directory / ARTIFACTS)
    vocabulary = artifacts.vocabulary
    run = dataclasses.replace(run, model=config.resolve(run.model, vocabulary.names, vocabulary.size))
    check_table_loads(run.model, jax.local_devices()[0])
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), transformer.abstract(run.model)
    )
    with Checkpoints(directory / CHECKPOINTS) as checkpoints:
        step, params = checkpoints.restore_params(abstract, step)
    return LoadedRun(run, vocabulary, artifacts.codecs, params, step, directory)
