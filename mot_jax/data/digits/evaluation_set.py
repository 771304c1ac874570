"""What judging the digits needs beside the documents: labelled codes, kept under `DIR/evaluation/digits.npz`."""

import dataclasses
import io
import re
import zipfile
import zlib

import numpy as np
from etils import epath
from jaxtyping import Int32

from mot_jax.errors import DataError

FILE = "evaluation/digits.npz"


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationSet:
    """Labelled codes (a modality's own, not vocabulary ids) and prompts. N images, C codes an image, labels 0..9.

    Training examples are for fitting judges, held-out ones for prompting the model and for measuring the judges.
    Held-out images and held-out voices were seen by no training document and by no codec. Utterances vary in length,
    so they are tuples of arrays; `*_speech_labels[i]` belongs to `*_speech[i]`.
    `heldout_captions[i]` describes held-out image i (digit, stroke thickness, slant) as training captions do.
    `image_prompts` and `speech_prompts` are phrasings that training puts before an image or an utterance, without
    attributes: `prompt.format(digit=words[7])`. `words[d]` is the word for digit d; every caption holds exactly one.
    """

    training_image_codes: Int32[np.ndarray, "N C"]
    training_image_labels: Int32[np.ndarray, "N"]
    heldout_image_codes: Int32[np.ndarray, "H C"]
    heldout_image_labels: Int32[np.ndarray, "H"]
    training_speech: tuple[Int32[np.ndarray, "_"], ...]
    training_speech_labels: Int32[np.ndarray, "U"]
    heldout_speech: tuple[Int32[np.ndarray, "_"], ...]
    heldout_speech_labels: Int32[np.ndarray, "V"]
    training_voices: tuple[str, ...]
    heldout_voices: tuple[str, ...]
    heldout_captions: tuple[str, ...]
    image_prompts: tuple[str, ...]
    speech_prompts: tuple[str, ...]
    words: tuple[str, ...]

    def digit_in(self, text: str) -> int | None:
        """The digit whose word comes first in a text; None where there is none."""
        found = [word for word in re.findall("[a-z]+", text.lower()) if word in self.words]
        return self.words.index(found[0]) if found else None


def save(directory: str, evaluation: EvaluationSet) -> None:
    """Writes `directory/evaluation/digits.npz`; the same content gives the same bytes."""
    arrays = {}
    for field in dataclasses.fields(evaluation):
        value = getattr(evaluation, field.name)
        if isinstance(value, np.ndarray) or isinstance(value[0], str):
            arrays[field.name] = np.asarray(value)
        else:
            arrays[f"{field.name}.flat"] = np.concatenate(value)
            arrays[f"{field.name}.lengths"] = np.array([len(codes) for codes in value], np.int32)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    path = epath.Path(directory) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())


def load(directory: str) -> EvaluationSet:
    """Reads what `save` wrote beside a data set's manifest; raises DataError where it is missing or damaged."""
    path = epath.Path(directory) / FILE
    if not path.exists():
        raise DataError(f"{path}: not found; the digit tasks need a data set made by mot_jax.data.digits")
    values = {}
    try:
        with np.load(io.BytesIO(path.read_bytes())) as stored:
            for field in dataclasses.fields(EvaluationSet):
                if field.name in stored:
                    array = stored[field.name]
                    values[field.name] = tuple(array.tolist()) if array.dtype.kind == "U" else array
                else:
                    ends = np.cumsum(stored[f"{field.name}.lengths"])[:-1]
                    values[field.name] = tuple(np.split(stored[f"{field.name}.flat"], ends))
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged evaluation set ({error}); prepare the data set again") from error
    return EvaluationSet(**values)
