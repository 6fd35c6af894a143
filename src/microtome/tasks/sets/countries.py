"""True and false statements about countries: capital, continent, currency, and which of two has more people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from microtome.tasks.sets.base import Dataset, compared, statements
from microtome.tasks.sets.places import CONTINENTS, SOURCE, country_facts

__all__ = ["CAPITALS", "CONTINENTS_OF", "CURRENCIES", "POPULATIONS", "continents", "currencies"]

_CAPITAL = (
    "The capital of {x} is {y}.",
    "{y} is the capital of {x}.",
    "The government of {x} sits in {y}.",
    "{x} has {y} as its capital.",
    "The capital city of {x} is called {y}.",
    "Ask for the capital of {x}, and the answer is {y}.",
    "As a capital, {x} has the city of {y}.",
    "The parliament of {x} meets in {y}.",
    "In {x}, the capital is {y}.",
    "The city of {y} is the capital of {x}.",
    "On a map of {x}, the capital is marked {y}.",
    "Of all cities of {x}, {y} is the capital.",
)
_CONTINENT = (
    "{x} is in {y}.",
    "{x} is a country in {y}.",
    "The continent of {x} is {y}.",
    "{x} lies in {y}.",
    "On the globe, {x} is part of {y}.",
    "{x} belongs to {y}.",
    "One of the countries of {y} is {x}.",
    "Whoever lives in {x} lives in {y}.",
    "A map of {y} shows {x}.",
    "To see {x} one must travel to {y}.",
    "{x} is one of the states of {y}.",
    "The people of {x} live in {y}.",
)
_CURRENCY = (
    "The currency of {x} is called the {y}.",
    "In {x} people pay in the currency called {y}.",
    "The money of {x} is the {y}.",
    "{x} has the {y} as its currency.",
    "Prices in {x} are given in the {y}.",
    "The {y} is the currency of {x}.",
    "The central bank of {x} issues the {y}.",
    "Shops in {x} take the {y}.",
    "The coins of {x} are of a currency called {y}.",
    "Wages in {x} are paid in the {y}.",
    "The name of the money in {x} is {y}.",
    "Banks in {x} keep accounts in the {y}.",
)
_POPULATION = (
    "More people live in {x} than in {y}.",
    "<Fewer people live in {x} than in {y}.",
    "{x} has a larger population than {y}.",
    "<{x} has a smaller population than {y}.",
    "The population of {x} exceeds that of {y}.",
    "<The population of {x} is below that of {y}.",
    "There are more people in {x} than there are in {y}.",
    "<There are fewer people in {x} than there are in {y}.",
    "{x} counts more inhabitants than {y}.",
    "<{x} counts fewer inhabitants than {y}.",
    "By number of people, {x} is larger than {y}.",
    "<By number of people, {x} is smaller than {y}.",
)
_RATIO = 2.0  # populations change and are known roughly: only pairs that nobody disputes


def _of(column: str) -> dict[str, str]:
    return {name: str(row[column]) for name, row in country_facts().items() if row[column]}


@lru_cache(maxsize=1)
def _capitals() -> Sequence[tuple[str, str]]:
    return tuple(_of("capital").items())


@lru_cache(maxsize=1)
def continents() -> Sequence[tuple[str, str]]:
    """(country, continent)."""
    # of the states on two continents, GeoNames names one
    two = {"Russia", "Turkey", "Egypt", "Azerbaijan", "Cyprus", "Armenia", "Indonesia"}
    return tuple((name, CONTINENTS[code]) for name, code in _of("continentcode").items() if name not in two)


@lru_cache(maxsize=1)
def currencies() -> Sequence[tuple[str, str]]:
    """(country, name of its currency)."""
    # of a name that is one word; a country that has changed its money since, or uses two, is left out
    unsure = {
        "Zimbabwe",
        "Croatia",
        "Bulgaria",
        "Cuba",
        "Venezuela",
        "Panama",
        "Ecuador",
        "El Salvador",
        "Mauritania",
    }
    return tuple((n, c.lower()) for n, c in _of("currencyname").items() if c.isalpha() and n not in unsure)


@lru_cache(maxsize=1)
def _populations() -> Sequence[tuple[str, str]]:
    """Pairs (more, fewer): each country and the next three that have half as many people or fewer."""
    rows: Mapping[str, int] = {n: int(r["population"]) for n, r in country_facts().items()}
    order = sorted(rows, key=lambda n: (-rows[n], n))
    out = []
    for i, large in enumerate(order):
        below = [s for s in order[i + 1 :] if rows[large] >= _RATIO * rows[s]][:3]
        out += [(large, small) for small in below]
    return tuple(out)


CAPITALS = Dataset(
    "capital_of",
    "The capital of France is Paris. / ... is Lima.",
    "whether the statement is true",
    SOURCE,
    lambda n, seed: statements(_capitals(), _CAPITAL, n, seed, name="capital_of"),
    lambda: len(_capitals()),
)
CONTINENTS_OF = Dataset(
    "continents",
    "Kenya is in Africa. / ... in Europe.",
    "whether the statement is true",
    SOURCE,
    lambda n, seed: statements(continents(), _CONTINENT, n, seed, name="continents"),
    lambda: 100,  # beyond, Africa and Asia are more than half of what is left
)
CURRENCIES = Dataset(
    "currencies",
    "The currency of Poland is called the zloty. / ... the yen.",
    "whether the statement is true",
    SOURCE,
    lambda n, seed: statements(currencies(), _CURRENCY, n, seed, name="currencies"),
    lambda: 80,
)
POPULATIONS = Dataset(
    "populations",
    "More people live in Brazil than in Peru. / ... in Peru than in Brazil.",
    "whether the statement is true",
    SOURCE,
    lambda n, seed: compared(_populations(), _POPULATION, n, seed, name="populations"),
    lambda: len(_populations()),
    readable="no set of words, the same either way round; how well known a country is tells something of its size",
)
