"""The questions of the facts task, kept under `DIR/evaluation/facts.json` beside a data set's documents."""

import dataclasses
import json

from etils import epath

from mot_jax.errors import DataError

FILE = "evaluation/facts.json"


@dataclasses.dataclass(frozen=True)
class Question:
    """`text` is to be continued with a space and `answer`, and then to end."""

    relation: str
    text: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Questions:
    """What a model may be asked; any first part of a tuple is a random sample of it.

    Attributes:
      asked: of facts that training states, in other words than these.
      untold: of cities that no training document is about (a few are the answer of another): what a name gives away.
      usual: relation -> its most frequent answer in training.
    """

    asked: tuple[Question, ...]
    untold: tuple[Question, ...]
    usual: dict[str, str]


def save(directory: epath.PathLike, questions: Questions) -> None:
    """Writes `directory/evaluation/facts.json`."""
    path = epath.Path(directory) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(questions), indent=1, ensure_ascii=False) + "\n")


def load(directory: epath.PathLike) -> Questions:
    """Reads what `save` wrote; raises DataError where it is missing or damaged."""
    path = epath.Path(directory) / FILE
    if not path.exists():
        raise DataError(f"{path}: not found; the facts task needs a data set made by mot_jax.data.facts")
    try:
        read = json.loads(path.read_text())
        asked, untold = (tuple(Question(**one) for one in read[part]) for part in ("asked", "untold"))
        return Questions(asked, untold, dict(read["usual"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged questions ({error}); prepare the data set again") from error
