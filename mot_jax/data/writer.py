"""Writes a data set: every document checked, everything in a temporary directory that is renamed at the end."""

import json
import os
import uuid
from collections.abc import Iterable, Mapping

import msgpack
import numpy as np
from array_record.python import array_record_module
from etils import epath

from mot_jax.codecs.protocol import Codec
from mot_jax.data import artifacts
from mot_jax.documents import Span, canonical
from mot_jax.errors import DataError
from mot_jax.vocabulary import TEXT, Vocabulary, build_vocabulary


def temporary_prefix(name: str) -> str:
    """What the names of the temporary directories of a data set called `name` start with."""
    return f".{name}.preparing-"


def code_dtype(vocabulary: Vocabulary) -> np.dtype:
    """The narrowest little-endian unsigned integer that holds every modality's codes."""
    largest = max(modality.size for modality in vocabulary.modalities) - 1
    return np.dtype("<u1" if largest < 1 << 8 else "<u2" if largest < 1 << 16 else "<u4")


def shard_name(split: str, index: int, files: int) -> str:
    return f"{split}/{index:05d}-of-{files:05d}.array_record"


class DatasetWriter:
    """A context manager that leaves a whole data set in `directory`, or nothing at all.

    Args:
      directory: where the data set will be; must not exist, or be empty.
      codecs: modality -> codec in modality order, text first. A text codec that has padding, BOS and EOS ids of its
        own tells them as attributes `pad_id`, `bos_id` and `eos_id`.
      provenance: JSON-able, kept in the manifest: where the documents come from.
      files: number of files of each split; documents go to them in turn.

    Attributes:
      directory: the temporary directory being filled; further files put here become part of the data set,
        listed in the manifest and verified like the documents.
      vocabulary: the token ids that the codecs make.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        codecs: Mapping[str, Codec],
        *,
        provenance: Mapping[str, object] | None = None,
        files: int = 1,
    ):
        self._destination = epath.Path(directory)
        if self._destination.exists() and (not self._destination.is_dir() or any(self._destination.iterdir())):
            raise DataError(f"{self._destination}: is not empty; a data set is written to a new directory")
        if not codecs or next(iter(codecs)) != TEXT:
            raise DataError(f"codecs: expected {TEXT!r} first, got {list(codecs)}")
        text = codecs[TEXT]
        self.vocabulary = build_vocabulary(
            text.size,
            [(name, codec.size, codec.span_length) for name, codec in codecs.items() if name != TEXT],
            **{mark: getattr(text, f"{mark}_id", None) for mark in ("pad", "bos", "eos")},
        )
        self._reserved = [m for m in (self.vocabulary.pad, self.vocabulary.bos, self.vocabulary.eos) if m < text.size]
        self._indices = {name: index for index, name in enumerate(self.vocabulary.names)}
        self._dtype = code_dtype(self.vocabulary)
        self._codecs, self._provenance, self._files = codecs, dict(provenance or {}), files
        self._writers: dict[str, list] = {}
        self._documents: dict[str, int] = {}
        self._codes: dict[str, list[int]] = {}
        self.directory = self._destination.with_name(
            temporary_prefix(self._destination.name) + f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        )

    def __enter__(self) -> "DatasetWriter":
        self.directory.mkdir(parents=True)
        return self

    def add(self, split: str, document: Iterable[Span]) -> None:
        """Appends a document to a split.

        Raises:
          DataError: it is empty, or has an unknown modality, a code out of range or a span of the wrong length.
        """
        count = self._documents.get(split, 0)
        document = canonical(document)
        if not document:
            raise DataError(f"{split}: document {count} is empty, expected at least one code")
        spans = [(self._indices.get(span.modality), self._checked(span, split, count)) for span in document]
        if split not in self._writers:
            (self.directory / split).mkdir(parents=True)
            names = [shard_name(split, index, self._files) for index in range(self._files)]
            self._writers[split] = [
                array_record_module.ArrayRecordWriter(os.fspath(self.directory / name), "group_size:1")
                for name in names
            ]
            self._codes[split] = [0] * len(self._codecs)
        record = {"spans": [[modality, codes.astype(self._dtype).tobytes()] for modality, codes in spans]}
        self._writers[split][count % self._files].write(msgpack.packb(record))
        self._documents[split] = count + 1
        for modality, codes in spans:
            self._codes[split][modality] += len(codes)

    def _checked(self, span: Span, split: str, count: int) -> np.ndarray:
        where = f"{split}: document {count}: {span.modality}"
        if span.modality not in self._indices:
            raise DataError(f"{where}: expected one of the modalities {', '.join(self._indices)}")
        modality, codes = self.vocabulary.modality(span.modality), np.asarray(span.codes)
        if codes.ndim != 1 or (codes.size and not np.issubdtype(codes.dtype, np.integer)):
            raise DataError(f"{where}: expected a row of integer codes, got {codes.dtype}{list(codes.shape)}")
        if modality.span_length is not None and len(codes) != modality.span_length:
            raise DataError(f"{where}: a span has {len(codes)} codes, expected {modality.span_length}")
        if codes.size and (codes.min() < 0 or codes.max() >= modality.size):
            bad = codes[(codes < 0) | (codes >= modality.size)][0]
            raise DataError(f"{where}: code {bad} is outside its range 0..{modality.size - 1}")
        if span.modality == TEXT and self._reserved and np.isin(codes, self._reserved).any():
            bad = codes[np.isin(codes, self._reserved)][0]
            raise DataError(f"{where}: code {bad} is padding, BOS or EOS, which documents must not hold")
        return codes

    def __exit__(self, kind, error, traceback) -> None:
        for writers in self._writers.values():
            for writer in writers:
                writer.close()
        if kind is not None:
            self.directory.rmtree()
            return
        manifest = {
            "format": artifacts.FORMAT,
            "code_type": self._dtype.str,
            "vocabulary": self.vocabulary.to_json(),
            "codecs": artifacts.save_codecs(self._codecs, self.directory),
            "splits": {split: self._split(split) for split in self._writers},
            "other_files": self._other_files(),
            "provenance": self._provenance,
        }
        (self.directory / artifacts.MANIFEST).write_text(json.dumps(manifest, indent=1))
        if self._destination.exists():
            self._destination.rmdir()
        self.directory.rename(self._destination)

    def _split(self, split: str) -> dict:
        total = self._documents[split]
        entries = []
        for index in range(self._files):
            name = shard_name(split, index, self._files)
            documents = len(range(index, total, self._files))
            entries.append({"documents": documents, **_file_entry(name, self.directory / name)})
        codes = dict(zip(self.vocabulary.names, self._codes[split], strict=True))
        return {"documents": total, "codes": codes, "files": entries}

    def _other_files(self) -> list[dict]:
        """Entries of what is neither manifest nor codec nor shard, by name."""
        known = {shard_name(split, index, self._files) for split in self._writers for index in range(self._files)}
        known.add(artifacts.MANIFEST)
        return [
            _file_entry(name, path)
            for name, path in sorted(artifacts.files_below(self.directory))
            if name not in known and not name.startswith(f"{artifacts.CODECS}/")
        ]


def _file_entry(name: str, path: epath.Path) -> dict:
    return {"file": name, "bytes": path.stat().length, "sha256": artifacts.file_digest(path)}
