"""What judging the pictures needs beside the documents: labelled codes, kept under `DIR/evaluation/pictures.npz`."""

import dataclasses

import numpy as np
from etils import epath
from jaxtyping import Int32

from mot_jax.data.evaluation_file import load_fields, save_fields

FILE = "evaluation/pictures.npz"


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationSet:
    """One picture of every name, that without skin tones where there is one. C codes a picture.

    Training pictures, each in V tokenisations, are for fitting a judge; held-out ones, of families that no training
    document and no codec saw, for prompting the model and for measuring the judge. Groups are indices in names.GROUPS.
    `heldout_captions[i]` describes held-out picture i as training captions do, its colours included;
    `heldout_colours[i]` is the main one, an index in colours.NAMES, measured before the codec.
    """

    training_codes: Int32[np.ndarray, "N V C"]
    training_groups: Int32[np.ndarray, "N"]
    heldout_codes: Int32[np.ndarray, "H C"]
    heldout_groups: Int32[np.ndarray, "H"]
    heldout_colours: Int32[np.ndarray, "H"]
    heldout_captions: tuple[str, ...]


def save(directory: epath.PathLike, evaluation: EvaluationSet) -> None:
    """Writes `directory/evaluation/pictures.npz`; the same content gives the same bytes."""
    save_fields(epath.Path(directory) / FILE, evaluation)


def load(directory: epath.PathLike) -> EvaluationSet:
    """Reads what `save` wrote beside a data set's manifest; raises DataError where it is missing or damaged."""
    return load_fields(epath.Path(directory) / FILE, EvaluationSet, "the picture tasks", "mot_jax.data.pictures")
