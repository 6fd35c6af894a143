"""The labelled datasets that have a name: built-in ones, and those that other packages add by entry point."""

from __future__ import annotations

from typing import Any

from microtome.results import registry

__all__ = ["describe", "names"]

SETS = {
    "capital_of": "countries:CAPITALS",
    "cities": "cities:CITIES",
    "cities_conj": "cities:CITIES_CONJ",
    "cities_disj": "cities:CITIES_DISJ",
    "cities_placebo": "cities:CITIES_PLACEBO",
    "continents": "countries:CONTINENTS_OF",
    "currencies": "countries:CURRENCIES",
    "elements": "facts:ELEMENTS",
    "formality": "style:FORMALITY",
    "happiness": "style:HAPPINESS",
    "language": "style:LANGUAGE",
    "larger_than": "numbers:LARGER_THAN",
    "likely": "facts:LIKELY",
    "neg_cities": "cities:NEG_CITIES",
    "number": "grammar:NUMBER",
    "populations": "countries:POPULATIONS",
    "sentiment": "style:SENTIMENT",
    "sentiment_negated": "style:SENTIMENT_NEGATED",
    "smaller_than": "numbers:SMALLER_THAN",
    "sp_en_trans": "facts:SP_EN_TRANS",
    "sums": "numbers:SUMS",
    "tense": "grammar:TENSE",
}

for _name, _path in SETS.items():
    registry.register("datasets", _name, registry.Lazy(f"microtome.tasks.sets.{_path}"))


def names() -> tuple[str, ...]:
    """Names of all labelled datasets, sorted: built-in, registered in this process, and those of installed packages."""
    return registry.names("datasets")


def describe(name: str) -> dict[str, object]:
    """What a dataset is: name, summary, about, classes, source, what makes its label readable, how many texts at most.

    Raises
    ------
    RegistryError: no such dataset; the nearest name is suggested.
    """
    from microtome.tasks.sets.base import Dataset

    made: Any = registry.get("datasets", name)
    if not isinstance(made, Dataset):
        return {"name": name, "summary": (made.__doc__ or "").partition("\n")[0]}
    said = {k: getattr(made, k) for k in ("name", "summary", "about", "source", "readable", "version")}
    return {**said, "classes": list(made.classes), "most": made.most() * made.per}
