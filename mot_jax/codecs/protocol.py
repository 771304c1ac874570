"""What a codec is: something <-> codes of one modality, saved with every run that uses it."""

import abc
from typing import Any, ClassVar

import numpy as np
from etils import epath

from mot_jax.errors import DataError, nearest

_KINDS: dict[str, type["Codec"]] = {}


class Codec(abc.ABC):
    """Turns values of one modality (a string, a picture, a waveform) into codes 0..size-1 and back.

    A subclass names itself with `class MyCodec(Codec, kind="my_codec")`; data sets and runs store that name, and a
    run that uses it loads once the module that defines it is imported (`--import my.module`).
    """

    kind: ClassVar[str]
    size: int  # number of codes
    span_length: int | None = None  # exact number of codes of a span; None: it varies

    def __init_subclass__(cls, kind: str | None = None, **kwargs):
        super().__init_subclass__(**kwargs)
        if kind is not None:
            cls.kind = kind
            _KINDS[kind] = cls

    @abc.abstractmethod
    def encode(self, value: Any) -> np.ndarray:
        """A value -> int32[n] codes; raises DataError for a value it cannot take."""

    @abc.abstractmethod
    def decode(self, codes: np.ndarray) -> Any:
        """int32[n] codes -> a value (an approximation where the codec loses detail)."""

    @abc.abstractmethod
    def save(self, directory: epath.Path) -> None:
        """Writes everything `load` needs into an existing, empty directory."""

    @classmethod
    @abc.abstractmethod
    def load(cls, directory: epath.Path) -> "Codec":
        """Reads what `save` wrote."""

    def show(self, codes: np.ndarray) -> str | np.ndarray:
        """What sample pictures print or draw for a span: a string, or a grey [h, w] or colour [h, w, 3] uint8 image."""
        return " ".join(map(str, codes))


def codec_class(kind: str) -> type[Codec]:
    """The registered codec of that kind; raises DataError with the nearest one."""
    import mot_jax.codecs  # noqa: F401  (registers the built-in kinds)

    if kind not in _KINDS:
        raise DataError(
            f"no codec kind {kind!r}{nearest(kind, _KINDS)}; a codec of your own must be imported first (--import)"
        )
    return _KINDS[kind]
