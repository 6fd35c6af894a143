"""True and false statements about the countries of cities, and what can be built on them.

After Marks & Tegmark, The Geometry of Truth (arXiv 2310.06824): `cities`, `neg_cities`, conjunctions and disjunctions. The
facts are drawn anew, and there are more templates than theirs.
"""

from __future__ import annotations

from collections.abc import Sequence

from microtome.tasks.rng import rng
from microtome.tasks.sets.base import Dataset, Row, dealt, deranged, fill, shares, statements
from microtome.tasks.sets.places import SOURCE, cities

__all__ = ["CITIES", "CITIES_CONJ", "CITIES_DISJ", "CITIES_PLACEBO", "NEG_CITIES"]

_PAPER = "in the style of Marks & Tegmark 2023, arXiv 2310.06824; "
_TEMPLATES = (
    ("The city of {x} is in {y}.", "The city of {x} is not in {y}."),
    ("{x} is a city in {y}.", "{x} is not a city in {y}."),
    ("{x} is located in {y}.", "{x} is not located in {y}."),
    ("The city of {x} lies in {y}.", "The city of {x} does not lie in {y}."),
    ("{x} belongs to {y}.", "{x} does not belong to {y}."),
    ("{x} can be found on a map of {y}.", "{x} cannot be found on a map of {y}."),
    ("One of the cities of {y} is {x}.", "None of the cities of {y} is {x}."),
    ("People who live in {x} live in {y}.", "People who live in {x} do not live in {y}."),
    ("A visitor to {x} is a visitor to {y}.", "A visitor to {x} is not a visitor to {y}."),
    ("There is a big city in {y} called {x}.", "There is no big city in {y} called {x}."),
    ("The country that {x} is part of is {y}.", "The country that {x} is part of is not {y}."),
    ("Whoever lands in {x} has landed in {y}.", "Whoever lands in {x} has not landed in {y}."),
    ("A street in {x} is a street in {y}.", "A street in {x} is not a street in {y}."),
    ("A letter to {x} has to be sent to {y}.", "A letter to {x} need not be sent to {y}."),
    ("In {y} there is a city named {x}.", "In {y} there is no city named {x}."),
    ("The map of {y} shows the city of {x}.", "The map of {y} does not show the city of {x}."),
    ("Among the cities of {y} is {x}.", "Not among the cities of {y} is {x}."),
    ("To see {x} one must go to {y}.", "To see {x} one need not go to {y}."),
    ("The mayor of {x} works in {y}.", "The mayor of {x} does not work in {y}."),
)  # fmt: skip


def _plain(n: int, seed: int) -> list[Row]:
    return statements(cities(), [t for t, _ in _TEMPLATES], n, seed, name="cities")


def _negated(n: int, seed: int) -> list[Row]:
    return statements(cities(), [t for _, t in _TEMPLATES], n, seed, name="neg_cities", negated=True)


def _most() -> int:
    return len(cities())


CITIES = Dataset(
    "cities",
    "The city of Lyon is in France. / ... is in Japan.",
    "whether the city is in that country",
    _PAPER + SOURCE,
    _plain,
    _most,
)
NEG_CITIES = Dataset(
    "neg_cities",
    "The city of Lyon is not in Japan. / ... is not in France.",
    "whether the statement, a denial, is true",
    _PAPER + SOURCE,
    _negated,
    _most,
)

_SYLLABLES = ("bra", "kel", "mor", "tin", "vas", "del", "fu", "gor", "hal", "nim", "pol", "ras", "sul", "tov", "zan", "lir")  # fmt: skip


def _made_up() -> list[str]:
    """Names that no place has: three syllables each."""
    known = {city.lower() for city, _ in cities()}
    every = [a + b + c for a in _SYLLABLES for b in _SYLLABLES for c in _SYLLABLES if len({a, b, c}) == 3]
    return [name.capitalize() for name in every if name not in known]


def _placebo(n: int, seed: int) -> list[Row]:
    random = rng(seed, "cities_placebo")
    every = _made_up()
    names = [every[int(i)] for i in random.permutation(len(every))[:n]]
    pool = sorted({country for _, country in cities()})
    values = [pool[int(i)] for i in random.integers(len(pool), size=n)]
    facts = list(zip(names, values, strict=True))
    rows = statements(facts, [t for t, _ in _TEMPLATES], n, seed, name="cities_placebo")
    out: list[Row] = []
    for one, two in zip(rows[::2], rows[1::2], strict=True):
        flip = bool(random.integers(2))  # which of the two counts as class 1 is a coin's choice
        out += [Row(r.text, r.label ^ flip, r.template, r.entity, r.subject) for r in (one, two)]
    return out


CITIES_PLACEBO = Dataset(
    "cities_placebo",
    "The city of Brakelmor is in France. / ... is in Japan.",
    "nothing: a coin's choice between two statements about a city that does not exist",
    "made up; countries from " + SOURCE,
    _placebo,
    lambda: 1500,
    classes=("0", "1"),
)

_BOTH = (
    "It is the case both that {a} and that {b}.",
    "It is true that {a} and that {b}.",
    "Two things hold: {a}, and {b}.",
    "Both of these are right: {a}; {b}.",
    "On the one hand {a}, and on the other hand {b}.",
    "As a matter of fact {a} and {b}.",
    "The atlas says that {a} and that {b}.",
    "Everybody at school learns that {a} and that {b}.",
    "Not only is it so that {a}, but also that {b}.",
    "It holds that {a}, and it holds that {b}.",
    "That {a} and that {b} are both facts.",
    "The map shows that {a} and that {b}.",
)
_EITHER = (
    "It is the case either that {a} or that {b}.",
    "It is true that {a} or that {b}.",
    "One or both of two things hold: {a}, or {b}.",
    "At least one of these is right: {a}; {b}.",
    "At least one of two statements is true: {a}, or else {b}.",
    "As a matter of fact {a} or {b}.",
    "The atlas says that {a} or that {b}.",
    "Everybody at school learns that {a} or that {b}.",
    "If it is not so that {a}, then it is so that {b}.",
    "It holds that {a}, or it holds that {b}.",
    "That {a} or that {b} is a fact.",
    "The map shows that {a} or that {b}.",
)
_CLAUSE = "the city of {x} is in {y}"


def _joined(n: int, seed: int, name: str, templates: Sequence[str], whole: bool) -> list[Row]:
    """Pairs of cities, each in one text whose clauses are both right (conj) or both wrong (disj), and one of the other class.

    The other class has three combinations, each in its own part of a template's pairs; there the wrong countries are the
    right ones in another order, so that no country tells the class.
    """
    combinations = ((True, False), (False, True), (not whole, not whole))
    parts = [(index, m) for index, size in enumerate(shares(n, len(templates))) for m in shares(size, 3)]
    blocks = dealt(cities(), [m for _, m in parts for _ in (0, 1)], seed, name)
    rows: list[Row] = []
    for turn, (index, _) in enumerate(parts):
        sides = blocks[2 * turn : 2 * turn + 2]
        wrong = [deranged([y for _, y in side], rng(seed, f"{name}/wrong/{turn}")) for side in sides]
        for i, cities_here in enumerate(zip(*sides, strict=True)):
            for rights, label in (((whole, whole), whole), (combinations[turn % 3], not whole)):
                values = [
                    c[1] if right else w[i] for c, right, w in zip(cities_here, rights, wrong, strict=True)
                ]
                a, b = (_CLAUSE.format(x=c[0], y=y) for c, y in zip(cities_here, values, strict=True))
                text, _ = fill(templates[index], a=a, b=b)
                rows.append(Row(text, int(label), f"{name}-{index:02d}", "+".join(c[0] for c in cities_here)))
    return rows


def _conj(n: int, seed: int) -> list[Row]:
    return _joined(n, seed, "cities_conj", _BOTH, True)


def _disj(n: int, seed: int) -> list[Row]:
    return _joined(n, seed, "cities_disj", _EITHER, False)


def _most_joined() -> int:
    return 240  # pairs: beyond, the countries that are left differ too little


CITIES_CONJ = Dataset(
    "cities_conj",
    "It is the case both that the city of Lyon is in France and that ...",
    "whether both clauses are true",
    _PAPER + SOURCE,
    _conj,
    _most_joined,
)
CITIES_DISJ = Dataset(
    "cities_disj",
    "It is the case either that the city of Lyon is in Japan or that ...",
    "whether at least one clause is true",
    _PAPER + SOURCE,
    _disj,
    _most_joined,
)
