"""The manifest and the codecs: what a data set and every run trained on it share."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping

import numpy as np
from etils import epath

from mot_jax.codecs.protocol import Codec, codec_class
from mot_jax.errors import DataError
from mot_jax.vocabulary import Modality, Vocabulary

FORMAT = 1
MANIFEST = "manifest.json"
CODECS = "codecs"


@dataclasses.dataclass(frozen=True)
class Artifacts:
    """What a run keeps of its data: enough to turn values into tokens and back."""

    vocabulary: Vocabulary
    codecs: Mapping[str, Codec]
    manifest: dict


def file_digest(path: epath.Path) -> str:
    """The hexadecimal sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def directory_digest(directory: epath.Path) -> str:
    """The hexadecimal sha256 of the names and contents of every file below a directory."""
    digest = hashlib.sha256()
    for name, path in sorted(files_below(directory)):
        digest.update(f"{name} {file_digest(path)}\n".encode())
    return digest.hexdigest()


def files_below(directory: epath.Path, prefix: str = "") -> Iterator[tuple[str, epath.Path]]:
    """(name relative to the directory, with `/`; path) of every file below it, in no order."""
    for path in directory.iterdir():
        if path.is_dir():
            yield from files_below(path, f"{prefix}{path.name}/")
        else:
            yield f"{prefix}{path.name}", path


def save_codecs(codecs: Mapping[str, Codec], directory: epath.Path) -> dict[str, dict[str, str]]:
    """Saves each codec below `directory`/codecs and returns the manifest's entry: kind and digest by modality."""
    entry = {}
    for name, codec in codecs.items():
        place = directory / CODECS / name
        place.mkdir(parents=True)
        codec.save(place)
        entry[name] = {"kind": codec.kind, "digest": directory_digest(place)}
    return entry


def read_manifest(directory: epath.PathLike) -> dict:
    """The manifest of a data set or of a run's artifacts, its format checked.

    Raises:
      DataError: there is none, it cannot be read, or it has another format version.
    """
    directory = epath.Path(directory)
    path = directory / MANIFEST
    if not path.exists():
        missing = "has no manifest.json" if directory.exists() else "does not exist"
        raise DataError(f"{directory}: expected a prepared data set, but it {missing}")
    with _damaged(path):
        manifest = json.loads(path.read_text())
        version = manifest["format"]
    if version != FORMAT:
        raise DataError(f"{path}: format {version} is not the one this version reads ({FORMAT})")
    with _damaged(path):
        for split in manifest["splits"].values():
            _check_split(split)
        modalities = [modality["name"] for modality in manifest["vocabulary"]["modalities"]]
        if list(manifest["codecs"]) != modalities:
            raise DataError(f"{path}: codecs {list(manifest['codecs'])} are not the vocabulary's {modalities}")
        np.dtype(manifest["code_type"])
    return manifest


def read_other_files(manifest: dict, directory: epath.PathLike) -> list[dict]:
    """The manifest's entries of the files beside codecs and shards; `directory` is named in errors."""
    with _damaged(epath.Path(directory) / MANIFEST):
        files = manifest["other_files"]
        if not all(file.keys() >= {"file", "bytes", "sha256"} for file in files):
            raise ValueError("a file lacks its name, size or digest")
        return files


def _check_split(split: dict) -> None:
    total, files = split["documents"], split["files"]
    if not all(file.keys() >= {"file", "documents", "bytes", "sha256"} for file in files):
        raise ValueError("a shard lacks its name, count, size or digest")
    if [file["documents"] for file in files] != [len(range(index, total, len(files))) for index in range(len(files))]:
        raise ValueError(f"{total} documents are not spread evenly over {len(files)} files")
    sum(split["codes"].values())


def read_vocabulary(manifest: dict, directory: epath.PathLike) -> Vocabulary:
    """The manifest's vocabulary; `directory` is named in errors."""
    with _damaged(epath.Path(directory) / MANIFEST):
        return Vocabulary.from_json(manifest["vocabulary"])


@contextlib.contextmanager
def _damaged(path: epath.Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is damaged ({type(error).__name__}: {error})") from error


def check_codecs(manifest: dict, directory: epath.PathLike) -> None:
    """Raises DataError naming the codec whose files are not those the manifest was written with."""
    for name, entry in manifest["codecs"].items():
        place = epath.Path(directory) / CODECS / name
        if not place.is_dir():
            raise DataError(f"{place}: the {name} codec is missing")
        if directory_digest(place) != entry["digest"]:
            raise DataError(f"{place}: the {name} codec does not match the manifest (another digest)")


def load_codecs(manifest: dict, directory: epath.PathLike) -> dict[str, Codec]:
    """Every modality's codec, in modality order.

    Raises:
      DataError: files or sizes that do not match the manifest, or an unknown kind.
    """
    check_codecs(manifest, directory)
    vocabulary = read_vocabulary(manifest, directory)
    codecs = {}
    for name, entry in manifest["codecs"].items():
        place = epath.Path(directory) / CODECS / name
        codec = codec_class(entry["kind"]).load(place)
        modality: Modality = vocabulary.modality(name)
        if (codec.size, codec.span_length) != (modality.size, modality.span_length):
            raise DataError(
                f"{place}: the {name} codec does not match the manifest: it has {codec.size} codes and span length "
                f"{codec.span_length}, expected {modality.size} and {modality.span_length}"
            )
        codecs[name] = codec
    return codecs


def copy_artifacts(dataset_directory: epath.PathLike, destination: epath.PathLike) -> None:
    """Copies manifest and codecs, not the documents; made beside `destination` and renamed when whole.

    A whole copy that is there already stays as it is, and where the manifest alone differs (the same data elsewhere)
    that is replaced in one move: a run being resumed can be loaded at any moment, killed or not. Only codecs that are
    damaged, or of other data, are ever away for a moment; they are no loss.
    """
    source, destination = epath.Path(dataset_directory), epath.Path(destination)
    manifest = read_manifest(source)
    check_codecs(manifest, source)
    if (destination / MANIFEST).exists():
        with contextlib.suppress(DataError):
            check_codecs(manifest, destination)
            if (destination / MANIFEST).read_bytes() != (source / MANIFEST).read_bytes():
                whole = destination / f"{MANIFEST}.partial"
                (source / MANIFEST).copy(whole, overwrite=True)
                whole.replace(destination / MANIFEST)
            return
    partial, replaced = (destination.with_name(f"{destination.name}.{end}") for end in ("partial", "replaced"))
    for left_over in (partial, replaced):
        if left_over.exists():
            left_over.rmtree()
    for modality in manifest["codecs"]:
        for name, path in files_below(source / CODECS / modality):
            copied = partial / CODECS / modality / name
            copied.parent.mkdir(parents=True, exist_ok=True)
            path.copy(copied)
    (source / MANIFEST).copy(partial / MANIFEST)
    if destination.exists():
        destination.rename(replaced)  # a kill must not find it half deleted
    partial.rename(destination)
    if replaced.exists():
        replaced.rmtree()


def load_artifacts(directory: epath.PathLike) -> Artifacts:
    """Reads what `copy_artifacts` wrote (or a data set's own), digests checked; raises DataError."""
    manifest = read_manifest(directory)
    return Artifacts(read_vocabulary(manifest, directory), load_codecs(manifest, directory), manifest)
