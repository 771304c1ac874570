"""What can be said of a city or a country, and in which words."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Fact:
    """`relation` of `subject` is `answer`, and nothing else is."""

    relation: str
    subject: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Relation:
    """Beginnings of sentences that the answer ends: those that state it, and the one that asks for it."""

    statements: tuple[str, ...]
    question: str


OF_CITIES = ("country", "population", "time_zone", "state")  # the others are of countries
RELATIONS = {
    "country": Relation(
        ("{} is a city in", "{} lies in the country", "The country of {} is", "Travel to {} in"),
        "Which country is {} in?",
    ),
    "population": Relation(
        ("{} has a population of", "The population of {} is", "Inhabitants of {}:", "{} is home to people numbering"),
        "How many people live in {}?",
    ),
    "time_zone": Relation(
        ("{} is in the time zone", "The time zone of {} is", "Clocks in {} follow", "{} keeps the time of"),
        "Which time zone is {} in?",
    ),
    "state": Relation(
        ("{} is a city in the state of", "The state of {} is", "{} lies in the state", "Drive to {} in"),
        "Which state is {} in?",
    ),
    "capital": Relation(
        ("The capital of {} is", "{} has its capital in", "{} is governed from", "Capital city of {}:"),
        "What is the capital of {}?",
    ),
    "currency": Relation(
        ("The currency of {} is the", "{} pays in the", "Money in {}: the", "Prices in {} are in the"),
        "Which currency does {} use? The",
    ),
    "continent": Relation(
        ("{} is a country in", "The continent of {} is", "{} belongs to the continent", "{} is part of"),
        "Which continent is {} on?",
    ),
    "calling_code": Relation(
        ("The calling code of {} is", "To phone {} dial", "Calls to {} begin with", "{} has the calling code"),
        "What is the calling code of {}?",
    ),
}


def statements(fact: Fact) -> list[str]:
    """The fact in each phrasing that states it."""
    return [f"{phrasing.format(fact.subject)} {fact.answer}" for phrasing in RELATIONS[fact.relation].statements]


def question(fact: Fact) -> str:
    """What asks for the fact; a document that answers it goes on with a space and the answer."""
    return RELATIONS[fact.relation].question.format(fact.subject)
