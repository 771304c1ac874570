"""Where documents come from and how they become batches."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A preparation: turns something outside into a data set on disk. Subclass it to bring your own."""

    version: ClassVar[int] = 1  # raise it when prepare() makes something else of the same fields

    def fingerprint(self) -> dict[str, object]:
        """Everything that shapes the result, JSON-able; the cache is keyed by it."""
        return {
            "source": type(self).__name__,
            "module": type(self).__module__,  # two users may each have a class of one name
            "version": self.version,
            **dataclasses.asdict(self),
        }

    def prepare(self, directory: str, report: Callable[[str, float], None]) -> None:
        """Writes the data set into `directory`; `report(what, fraction)` shows progress."""
        raise NotImplementedError(f"{type(self).__name__} does not define prepare()")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digits(Source):
    """Handwritten digits as image tokens, captions as text, spoken digits as speech units, and plain English."""

    version: ClassVar[int] = 2

    image_size: int = 16  # pixels a side: 16, 24 (centre crop) or 28
    patch_size: int = 4
    image_codes: int = 256
    speech_codes: int = 200
    text_codes: int = 1024
    documents: int = 80_000
    seed: int = 0

    def prepare(self, directory: str, report: Callable[[str, float], None]) -> None:
        from mot_jax.data.digits import prepare

        prepare(self, directory, report)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts(Source):
    """Facts about cities and countries, each stated in several phrasings and asked for in another; text alone."""

    cities: int = 8_000  # the most populous of some 30,000 that have a name of their own; 2.4 facts each
    text_codes: int = 1024
    seed: int = 0

    def prepare(self, directory: str, report: Callable[[str, float], None]) -> None:
        from mot_jax.data.facts import prepare

        prepare(self, directory, report)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pictures(Source):
    """Colour pictures of faces, people, animals, things, signs and flags as image tokens, beside captions."""

    groups: tuple[str, ...] = ()  # as in ("animals and nature", "flags"); empty: all nine
    image_size: int = 32  # pixels a side
    patch_size: int = 4
    image_codes: int = 1024
    text_codes: int = 1024
    documents: int = 60_000
    seed: int = 0

    def prepare(self, directory: str, report: Callable[[str, float], None]) -> None:
        from mot_jax.data.pictures import prepare

        prepare(self, directory, report)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """The documents and how they become batches. `path` is a prepared data set; without it `source` is prepared."""

    path: str | None = None
    source: Source = Digits()
    cache_dir: str | None = None  # None: $MOT_JAX_CACHE, or ~/.cache/mot_jax
    sequence_length: int = 256
    global_batch_size: int = 4  # rows per optimizer step
    shards: int = 1  # independent packed streams; fixed for the life of a run
    packing_bins: int = 16
    reader_threads: int = 0  # raise for remote storage
    prefetch: int = 2  # batches made ahead, in the background
    verify: bool = True  # compare every shard's digest with the manifest when opening
    seed: int = 0
