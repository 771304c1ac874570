"""A data set on disk, opened: verified, with random access to its documents. docs/data-format.md has the format."""

import dataclasses
import functools
import hashlib
import json
import os

import msgpack
import numpy as np
from array_record.python import array_record_module
from etils import epath

from mot_jax.codecs.protocol import Codec
from mot_jax.data import artifacts
from mot_jax.data.artifacts import Artifacts, copy_artifacts, load_artifacts
from mot_jax.data.writer import DatasetWriter
from mot_jax.documents import Document, Span
from mot_jax.errors import DataError, nearest
from mot_jax.vocabulary import Vocabulary

__all__ = [
    "Artifacts",
    "Dataset",
    "DatasetWriter",
    "Documents",
    "copy_artifacts",
    "load_artifacts",
    "open_dataset",
]

MEMORY_LIMIT = 256 << 20  # bytes of codes up to which a split is held in memory


class Documents:
    """A split's documents in the order they were written. Small splits are decoded once, large ones as asked for."""

    def __init__(self, directory: epath.Path, split: dict, names: tuple[str, ...], code_type: str):
        self._paths = [directory / file["file"] for file in split["files"]]
        self._counts = [file["documents"] for file in split["files"]]
        self._length, self._names, self._dtype = split["documents"], names, np.dtype(code_type)
        self._small = sum(split["codes"].values()) * self._dtype.itemsize <= MEMORY_LIMIT

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Document:
        """The document; its codes are int32."""
        if not 0 <= index < self._length:
            raise IndexError(f"document {index} of {self._length}")
        if not self._small:
            file, record = index % len(self._paths), index // len(self._paths)
            spans = msgpack.unpackb(self._readers[file].read([record])[0])["spans"]
            return tuple(Span(self._names[m], np.frombuffer(b, self._dtype).astype(np.int32)) for m, b in spans)
        modalities, ends, starts, codes = self._decoded
        return tuple(
            Span(self._names[modalities[span]], codes[ends[span] : ends[span + 1]].astype(np.int32))
            for span in range(starts[index], starts[index + 1])
        )

    @functools.cached_property
    def _readers(self) -> list:
        readers = [
            array_record_module.ArrayRecordReader(os.fspath(path), "readahead_buffer_size:0") for path in self._paths
        ]
        for path, reader, count in zip(self._paths, readers, self._counts, strict=True):
            if not reader.ok() or reader.num_records() != count:
                raise DataError(f"{path}: damaged shard: expected {count} documents")
        return readers

    @functools.cached_property
    def _decoded(self) -> tuple[list[int], list[int], list[int], np.ndarray]:
        """Modality and first code of every span, first span of every document, and all codes."""
        files = [
            reader.read(0, count) if count else [] for reader, count in zip(self._readers, self._counts, strict=True)
        ]
        modalities, chunks, starts = [], [], [0]
        for index in range(self._length):
            for modality, codes in msgpack.unpackb(files[index % len(files)][index // len(files)])["spans"]:
                modalities.append(modality)
                chunks.append(codes)
            starts.append(len(modalities))
        ends = np.cumsum([0, *map(len, chunks)]) // self._dtype.itemsize
        return modalities, ends.tolist(), starts, np.frombuffer(b"".join(chunks), self._dtype)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A verified data set.

    Attributes:
      directory: where it lies.
      vocabulary: its token ids.
      manifest: what manifest.json holds.
    """

    directory: epath.Path
    vocabulary: Vocabulary
    manifest: dict

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of everything the manifest says but where the documents come from."""
        content = {key: value for key, value in self.manifest.items() if key != "provenance"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def split(self, name: str) -> Documents:
        """The documents of a split; raises DataError naming the nearest one."""
        splits = self.manifest["splits"]
        if name not in splits:
            raise DataError(f"{self.directory}: no split {name!r}{nearest(name, splits)}")
        return Documents(self.directory, splits[name], self.vocabulary.names, self.manifest["code_type"])

    def load_codecs(self) -> dict[str, Codec]:
        """Every modality's codec, in modality order."""
        return artifacts.load_codecs(self.manifest, self.directory)


def open_dataset(directory: epath.PathLike, *, verify: bool = True) -> Dataset:
    """Opens a data set, its file sizes and codecs compared with the manifest, all files' digests too with `verify`.

    Raises:
      DataError: what is missing or damaged, named.
    """
    directory = epath.Path(directory)
    manifest = artifacts.read_manifest(directory)
    vocabulary = artifacts.read_vocabulary(manifest, directory)
    artifacts.check_codecs(manifest, directory)
    for split in manifest["splits"].values():
        for file in split["files"]:
            _check_file(directory / file["file"], file, "shard", verify)
    for file in artifacts.read_other_files(manifest, directory):
        _check_file(directory / file["file"], file, "file", verify)
    return Dataset(directory, vocabulary, manifest)


def _check_file(path: epath.Path, file: dict, what: str, verify: bool) -> None:
    if not path.exists():
        raise DataError(f"{path}: the {what} is missing")
    size = path.stat().length
    if size != file["bytes"]:
        raise DataError(f"{path}: damaged {what}: it has {size} bytes, the manifest says {file['bytes']}")
    if verify and artifacts.file_digest(path) != file["sha256"]:
        raise DataError(f"{path}: damaged {what}: its sha256 is not the manifest's")
