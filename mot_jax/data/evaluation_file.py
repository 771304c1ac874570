"""What a task needs beside a data set's documents, as one file of it: the fields of a dataclass in an npz."""

import dataclasses
import io
import zipfile
import zlib
from typing import TypeVar

import numpy as np
from etils import epath

from mot_jax.errors import DataError

Fields = TypeVar("Fields")


def save_fields(path: epath.PathLike, value: object) -> None:
    """Writes a dataclass of arrays, tuples of str and tuples of arrays; the same content gives the same bytes."""
    arrays = {}
    for field in dataclasses.fields(value):
        one = getattr(value, field.name)
        if isinstance(one, np.ndarray) or isinstance(one[0], str):
            arrays[field.name] = np.asarray(one)
        else:
            arrays[f"{field.name}.flat"] = np.concatenate(one)
            arrays[f"{field.name}.lengths"] = np.array([len(codes) for codes in one], np.int32)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())


def load_fields(path: epath.PathLike, cls: type[Fields], reader: str, writer: str) -> Fields:
    """Reads what `save_fields` wrote of a `cls`.

    Raises:
      DataError: it is missing (`reader` needs a data set made by `writer`), or damaged.
    """
    path = epath.Path(path)
    if not path.exists():
        raise DataError(f"{path}: not found; {reader} need a data set made by {writer}")
    values = {}
    try:
        with np.load(io.BytesIO(path.read_bytes())) as stored:
            for field in dataclasses.fields(cls):
                if field.name in stored:
                    array = stored[field.name]
                    values[field.name] = tuple(array.tolist()) if array.dtype.kind == "U" else array
                else:
                    ends = np.cumsum(stored[f"{field.name}.lengths"])[:-1]
                    values[field.name] = tuple(np.split(stored[f"{field.name}.flat"], ends))
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged evaluation set ({error}); prepare the data set again") from error
    return cls(**values)
