"""First names and whom they are given to; kept to names that English text rarely uses otherwise."""

from __future__ import annotations

from dataclasses import dataclass

from microtome.tasks.encode import Encoder

__all__ = ["Name", "first_names"]

_FEMALE = """Mary Anna Kate Emma Lisa Jane Sarah Alice Laura Maria Julia Susan Rachel Helen Nancy Karen Linda Amy
Lucy Diana Claire Rebecca Jennifer Jessica Michelle Elizabeth Barbara Margaret Catherine Melissa Stephanie Nicole
Sophie Emily Hannah Olivia Martha Ruth Eva Betty Dorothy Sandra Sharon Angela Christine Heather Julie Lauren Megan
Samantha Amanda Patricia Donna Deborah Pamela Cynthia Teresa Anne Ellen Natalie Vanessa Isabella Sophia Ella
Judith Katherine Kathleen Caroline Rosa Clara Irene Marie Louise Annie Edith Esther Eleanor Sally Jenny Nina"""

_MALE = """John Tom James Dan Paul Jack Luke Peter David Michael Robert William Richard Joseph Thomas Charles Daniel
Matthew Anthony Steven Andrew Kevin Brian George Edward Ronald Timothy Jason Jeffrey Ryan Jacob Gary Nicholas Eric
Jonathan Stephen Larry Justin Scott Benjamin Samuel Gregory Raymond Patrick Jerry Dennis Tyler Aaron Henry Adam
Nathan Kyle Carl Arthur Roger Lawrence Sean Joe Ben Simon Harry Oliver Leo Oscar Martin Ian Philip Victor Hugh Fred
Bob Jim Mike Steve Greg Tony Albert Walter Harold Douglas Keith Bruce Alan Roy Ralph Howard Russell Stanley"""


@dataclass(frozen=True)
class Name:
    """A first name and the gender of the pronoun that usually follows it."""

    text: str
    gender: str


def first_names(encoder: Encoder, *, least: int) -> list[Name]:
    """The names that are one token after a space for this tokenizer, women's and men's in turn.

    Raises
    ------
    TaskError: fewer than `least` of either are.
    """
    women = encoder.words(_FEMALE.split(), "women's names", least=least)
    men = encoder.words(_MALE.split(), "men's names", least=least)
    return [*(Name(n, "female") for n in women), *(Name(n, "male") for n in men)]
