"""Ideas, and ratings from 0 to 10 that are given before another's is shown.

A rating is worth something only if it was made alone: `reveal` shows those of others to a person whose own is in. The first
rating of a person is the one that is compared; what is given after that was given knowing the others'. The files are plain:
who opens another's `ratings/PERSON.md` has seen it, and no tool can tell.

Source: N. Nanda's exercise for research taste: rate at least 20 ideas, then compare with a mentor's and discuss large gaps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from microtome.errors import LabError
from microtome.lab.notebook import folder
from microtome.lab.notebook.entries import Entry, aware, entries
from microtome.lab.notebook.pages import Page, slug

__all__ = ["QUESTIONS", "Rating", "gaps", "idea", "rate", "reveal"]

QUESTIONS: Mapping[str, str] = {
    "success": "What would success look like?",
    "surprise": "How surprised would you be to have nothing after a month?",
    "skills": "Which skills does it need, and do you have them?",
    "means": "Which models, data and compute does it need?",
    "prior work": "What is the closest prior work, and what is new against it?",
}
"""Five questions to an idea."""


def idea(
    now: datetime, title: str, *, text: str = "", answers: Mapping[str, str] | None = None
) -> tuple[Page, Entry]:
    """An idea with answers to `QUESTIONS`; questions without one are asked on the page.

    Raises
    ------
    LabError: an empty title, or an answer to no question.
    """
    given = dict(answers or {})
    if unknown := [key for key in given if key not in QUESTIONS]:
        raise LabError(f"an answer to {unknown[0]!r}", why=f"the questions are {', '.join(QUESTIONS)}", instead="use one of these")  # fmt: skip
    if not title.strip():
        raise LabError(
            "the idea has no title", why="its ratings refer to it", instead="name it in a few words"
        )
    said = {name: given.get(name) or f"({asked})" for name, asked in QUESTIONS.items()}
    return Page("idea", title, f"{aware(now, 'now'):%Y-%m-%d}", path=f"ideas/{slug(title)}.md"), Entry(
        now, "idea", said, text
    )


@dataclass(frozen=True)
class Rating:
    """What a person gave an idea, 0 to 10. changed: ratings given later, in order."""

    person: str
    idea: str
    rating: float
    at: datetime
    why: str = ""
    changed: tuple[float, ...] = ()


def rate(root: Path, now: datetime, idea: str, person: str, rating: float, *, why: str = "") -> Page:
    """Write a rating into the person's own file.

    idea: the name of the idea's page, without folder and ending.

    Raises
    ------
    LabError: no such idea, no person, a rating that is no number from 0 to 10, or as `folder.append`.
    """
    if isinstance(rating, bool) or not isinstance(rating, int | float) or not 0 <= rating <= 10:
        raise LabError(
            f"a rating of {rating!r}",
            why="ideas are rated from 0 to 10",
            instead="give a number from 0 to 10",
        )
    name = _idea(root, idea)
    page = Page("ratings", f"Ratings by {person.strip()}", "", {"person": person.strip()}, path=_file(person))
    return folder.add(root, page, Entry(now, name, {"rating": f"{rating:g}", "why": why}))


def _file(person: str) -> str:
    if not person.strip():
        raise LabError(
            "a rating by nobody", why="ratings are compared between persons", instead="give a name"
        )
    return f"ratings/{slug(person)}.md"


def _idea(root: Path, idea: str) -> str:
    name = slug(idea)
    if not folder.inside(root, f"ideas/{name}.md").is_file():
        raise LabError(f"there is no idea called {idea!r}", why=f"ideas/{name}.md is not there", instead="write the idea down first")  # fmt: skip
    return name


def _ratings(root: Path) -> dict[str, dict[str, Rating]]:
    """File of a person -> idea -> rating. A file that cannot be read is an error: a missing rating would look like none."""
    found: dict[str, dict[str, Rating]] = {}
    place = folder.inside(root, "ratings")
    for file in sorted(place.glob("*.md")) if place.is_dir() else ():
        path = f"ratings/{file.name}"
        page = folder.read(root, path)
        given: dict[str, Rating] = {}
        for e in sorted(entries(page), key=lambda e: e.at):
            try:
                value = float(e.fields.get("rating", "nan"))
            except ValueError:
                value = math.nan
            if not 0 <= value <= 10:
                continue
            first = given.get(e.title)
            if first is None:
                given[e.title] = Rating(str(page.fields.get("person") or file.stem), e.title, value, e.at, e.fields.get("why", ""))  # fmt: skip
            else:
                given[e.title] = Rating(first.person, e.title, first.rating, first.at, first.why, (*first.changed, value))  # fmt: skip
        found[path] = given
    return found


def reveal(root: Path, idea: str, person: str) -> tuple[Rating, ...]:
    """Everybody's ratings of an idea, one's own first.

    Raises
    ------
    LabError: one's own is not in; no such idea; a file of ratings cannot be read.
    """
    name, own = _idea(root, idea), _file(person)
    every = _ratings(root)
    if name not in every.get(own, {}):
        raise LabError(f"{person} has not rated {name!r} yet", why="a rating that knows another's is no second opinion",
                       instead="give your own first, from 0 to 10")  # fmt: skip
    return every[own][name], *(given[name] for path, given in every.items() if path != own and name in given)


def gaps(root: Path, person: str, *, least: float = 3.0) -> tuple[tuple[Rating, Rating], ...]:
    """Pairs of one's own rating and another's that differ by `least` points or more, the largest first: worth a talk.
    Only ideas that the person has rated.

    Raises
    ------
    LabError: a file of ratings cannot be read.
    """
    every = _ratings(root)
    own = every.get(_file(person), {})
    pairs = [(own[i], r) for path, given in every.items() if path != _file(person) for i, r in given.items() if i in own]  # fmt: skip
    large = [pair for pair in pairs if abs(pair[0].rating - pair[1].rating) >= least]
    return tuple(sorted(large, key=lambda pair: -abs(pair[0].rating - pair[1].rating)))
