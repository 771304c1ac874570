"""Modalities and token ids: text keeps its codec's ids; other modalities' codes and our markers are appended."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from mot_jax.errors import DataError, nearest

TEXT = "text"


@dataclasses.dataclass(frozen=True)
class Modality:
    """One modality's share of the vocabulary.

    `ranges` lists (first token id, count) in code order, so codes need not be contiguous in the vocabulary.
    `span_length` is the exact number of codes of a span, None where it varies. Text has no begin/end markers.
    """

    name: str
    ranges: tuple[tuple[int, int], ...]
    span_length: int | None = None
    begin: int | None = None
    end: int | None = None

    @property
    def size(self) -> int:
        return sum(count for _, count in self.ranges)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Every token id: `modalities[0]` is text; padding, BOS, EOS and all markers belong to text."""

    modalities: tuple[Modality, ...]
    pad: int
    bos: int
    eos: int

    @functools.cached_property
    def size(self) -> int:
        ends = [first + count for m in self.modalities for first, count in m.ranges]
        marks = [t + 1 for m in self.modalities for t in (m.begin, m.end) if t is not None]
        return max(*ends, *marks, self.pad + 1, self.bos + 1, self.eos + 1)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(m.name for m in self.modalities)

    def index(self, name: str) -> int:
        """The modality's id; raises DataError naming the nearest one."""
        if name not in self.names:
            raise DataError(f"no modality {name!r} in the vocabulary{nearest(name, self.names)}")
        return self.names.index(name)

    def modality(self, name: str) -> Modality:
        return self.modalities[self.index(name)]

    @functools.cached_property
    def token_modality(self) -> np.ndarray:
        """int32[size]: the modality of every token id; markers, padding and unused ids are text."""
        table = np.zeros(self.size, np.int32)
        for index, modality in enumerate(self.modalities):
            table[self.code_tokens(modality.name)] = index
        return table

    @functools.cached_property
    def token_code(self) -> np.ndarray:
        """int32[size]: the code of every token id within its modality; -1 for markers, padding and unused ids."""
        table = np.full(self.size, -1, np.int32)
        for modality in self.modalities:
            table[self.code_tokens(modality.name)] = np.arange(modality.size)
        return table

    @functools.cached_property
    def _code_tables(self) -> dict[str, np.ndarray]:
        return {
            m.name: np.concatenate([np.arange(first, first + count, dtype=np.int32) for first, count in m.ranges])
            for m in self.modalities
        }

    def code_tokens(self, name: str) -> np.ndarray:
        """int32[number of codes]: the token id of every code of a modality."""
        return self._code_tables[self.modality(name).name]

    def to_tokens(self, name: str, codes: np.ndarray) -> np.ndarray:
        """Codes of one modality -> token ids; raises DataError for a code outside the modality's range."""
        codes = np.asarray(codes)
        table = self.code_tokens(name)
        if codes.size and (codes.min() < 0 or codes.max() >= len(table)):
            bad = codes[(codes < 0) | (codes >= len(table))][0]
            raise DataError(f"{name}: code {bad} is outside its range 0..{len(table) - 1}")
        return table[codes]

    def to_json(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict) -> "Vocabulary":
        modalities = tuple(
            Modality(**{**m, "ranges": tuple((int(first), int(count)) for first, count in m["ranges"])})
            for m in value["modalities"]
        )
        return cls(modalities=modalities, pad=value["pad"], bos=value["bos"], eos=value["eos"])


def build_vocabulary(
    text_size: int,
    others: Sequence[tuple[str, int, int | None]] = (),
    *,
    pad: int | None = None,
    bos: int | None = None,
    eos: int | None = None,
) -> Vocabulary:
    """Appends markers and the other modalities' codes to a text codec's ids.

    Args:
      text_size: number of the text codec's ids; they stay 0..text_size-1.
      others: (name, number of codes, exact span length or None) of each further modality, in order.
      pad, bos, eos: ids the text codec already has for these; new ones are appended for those left out.
    """
    names = [TEXT, *(name for name, _, _ in others)]
    if len(set(names)) != len(names):
        raise DataError(f"modality names must differ, got {names}")
    free = text_size
    marks = []
    for given in (pad, bos, eos):
        marks.append(free if given is None else given)
        free += given is None
    modalities = [Modality(TEXT, ((0, text_size),))]
    first_code = free + 2 * len(others)
    for name, count, span_length in others:
        modalities.append(Modality(name, ((first_code, count),), span_length, begin=free, end=free + 1))
        free, first_code = free + 2, first_code + count
    return Vocabulary(tuple(modalities), *marks)
