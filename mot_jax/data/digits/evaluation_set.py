"""What judging the digits needs beside the documents: labelled codes, kept under `DIR/evaluation/digits.npz`."""

import dataclasses
import re

import numpy as np
from etils import epath
from jaxtyping import Int32

from mot_jax.data.evaluation_file import load_fields, save_fields

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
    save_fields(epath.Path(directory) / FILE, evaluation)


def load(directory: str) -> EvaluationSet:
    """Reads what `save` wrote beside a data set's manifest; raises DataError where it is missing or damaged."""
    return load_fields(epath.Path(directory) / FILE, EvaluationSet, "the digit tasks", "mot_jax.data.digits")
