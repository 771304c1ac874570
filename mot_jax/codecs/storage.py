"""A codec's directory as numbers in `codec.json` and one array in `codebook.npy`."""

import io
import json

import numpy as np
from etils import epath

from mot_jax.errors import DataError


def save(directory: epath.PathLike, settings: dict[str, int], codebook: np.ndarray) -> None:
    """Writes both files; the same content gives the same bytes."""
    directory = epath.Path(directory)
    (directory / "codec.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    buffer = io.BytesIO()
    np.save(buffer, codebook)
    (directory / "codebook.npy").write_bytes(buffer.getvalue())


def load(directory: epath.PathLike) -> tuple[dict[str, int], np.ndarray]:
    """(settings, codebook); raises DataError where a file is missing or damaged."""
    directory = epath.Path(directory)
    try:
        settings = json.loads((directory / "codec.json").read_text())
        codebook = np.load(io.BytesIO((directory / "codebook.npy").read_bytes()), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{directory}: not a saved codec ({error})") from error
    return settings, codebook


def check_codes(kind: str, codes: np.ndarray, size: int) -> np.ndarray:
    """Codes as an integer array; raises DataError for one outside 0..size-1."""
    codes = np.asarray(codes)
    if codes.size and (codes.min() < 0 or codes.max() >= size):
        raise DataError(f"{kind}: codes {codes.min()}..{codes.max()} go outside 0..{size - 1}")
    return codes.astype(np.int64)
