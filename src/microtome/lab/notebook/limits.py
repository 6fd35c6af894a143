"""The numbers of the guide, in one table. A project changes them in `notebook/limits.yaml`, a line each:

    nothing_learned_mini: 3 h
    zoom_out: 90 min
    new_look: off

Source tags: A the main guide, M26 its newest advice, D the companion on distillation, P Bogdan's statistical suggestions,
"ours" what the guide leaves open.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from microtome.errors import LabError
from microtome.lab.notebook import folder, front
from microtome.lab.notebook.pages import decode

__all__ = ["FILE", "LIMITS", "Limit", "Limits", "read_limits", "said"]

FILE = "limits.yaml"
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_UNITS = {"second": "s", "seconds": "s", "minute": "min", "minutes": "min", "hour": "h", "hours": "h", "days": "day",
          "d": "day", "weeks": "week", "m": "min"}  # fmt: skip


@dataclass(frozen=True)
class Limit:
    """One number.

    value: in `unit`; None switches off what depends on it. unit: "min", "h", "day" (a working day, see `working_day`),
    "week" (seven days of the calendar), or what is counted. source: a tag, see above. what: what it limits.
    changed: the value comes from this project's `limits.yaml`; `guide` is then the guide's own.
    """

    value: float | None
    unit: str
    source: str
    what: str
    changed: bool = False
    guide: float | None = None

    def __str__(self) -> str:
        return "off" if self.value is None else f"{self.value:g} {self.unit}"


def _all(*rows: tuple[str, float, str, str, str]) -> Mapping[str, Limit]:
    return {name: Limit(value, unit, source, what) for name, value, unit, source, what in rows}


LIMITS: Mapping[str, Limit] = _all(
    ("gap", 15, "min", "ours", "a longer time without anything recorded is no work"),
    ("working_day", 8, "h", "ours", "hours of work that the guide's day stands for"),
    # when nothing is learned
    ("nothing_learned_mini", 2, "h", "A", "mini-project without a highlight before the approach changes"),
    ("dead_approaches", 2, "approaches", "A", "dead approaches from which on another problem is due"),
    ("dead_approaches_most", 3, "approaches", "A", "dead approaches with which the problem is given up"),
    ("nothing_learned_full", 5, "h", "A", "full project without a highlight before the approach changes"),
    ("pivot", 2, "day", "A", "full project without a highlight before a pivot is considered"),
    ("one_thread", 1, "day", "D", "exploration without a highlight before one thread is chosen"),
    ("one_thread_most", 2, "day", "D", "exploration without a highlight with which the choice is overdue"),
    ("learned_anything", 30, "min", "M26", "work after which to ask whether anything was learned"),
    # moving fast
    ("new_look", 10, "min", "A; ours: how many minutes a few are", "exploration without a new plot or run"),
    ("no_code", 4, "h", "D", "work without running code before a quick experiment is due"),
    ("long_experiment", 30, "min", "A", "expected time of an experiment from which on alternatives come first"),
    ("alternatives", 2, "alternatives", "ours", "other ways to be written before a long experiment"),
    ("zoom_out", 1, "h", "A", "work after which to zoom out"),
    ("zoom_out_most", 2, "h", "A", "work with which zooming out is overdue"),
    ("brainstorm", 5, "min", "A", "timer when stuck, when confused, before a test, for alternatives"),
    # how long things last
    ("foundation_hours", 200, "h", "A", "learning the foundations"),
    ("foundation_weeks", 4, "week", "A (a month)", "learning the foundations"),
    ("mini_project", 5, "day", "A", "one mini-project"),
    ("mini_projects", 2, "week", "A", "mini-projects together before a full project may begin"),
    ("mini_projects_most", 4, "week", "A", "mini-projects together"),
    ("sprint", 1, "week", "A", "a sprint; then pivot unless going on is chosen"),
    ("sprint_most", 2, "week", "A", "a sprint at most"),
    ("timed_project", 20, "h", "M26", "a timed project without its write-up"),
    ("timed_reading", 5, "h", "M26", "reading in a timed project, at most"),
    ("timed_write_up", 2, "h", "M26", "writing up a timed project"),
    ("ideation_block", 1, "h", "A", "a block of ideation, at least"),
    ("ideas", 20, "ideas", "A", "ideas from a block of ideation, at least"),
    # looking back
    ("post_mortem", 1, "h", "A", "post-mortem of a mini-project or a sprint, at least"),
    ("post_mortem_most", 2, "h", "A", "post-mortem of a sprint, at most"),
    ("weekly_review", 1, "week", "A", "from one review to the next"),
    # writing up
    ("claims_least", 1, "claims", "A", "key claims of a write-up, at least"),
    ("claims_most", 3, "claims", "A", "key claims of a write-up, at most"),
    ("summary_words", 600, "words", "M26", "a summary, at most"),
    ("summary_pages", 1, "pages", "M26", "a summary, about"),
    ("summary_pages_most", 3, "pages", "M26", "a summary with figures, at most"),
    ("alpha", 0.001, "p", "P", "the bar for p where data are cheap"),
    ("case_studies", 5, "cases", "D", "case studies that say much more than one"),
    ("micro_hypotheses", 10, "hypotheses", "D", "cheap hypotheses that beat one good one"),
)  # fmt: skip
"""Name -> the guide's number."""


@dataclass(frozen=True)
class Limits:
    """The table as a project has it."""

    table: Mapping[str, Limit]

    def __getitem__(self, name: str) -> Limit:
        return self.table[name]

    def value(self, name: str) -> float | None:
        """The number in the table's unit; None if switched off."""
        return self.table[name].value

    def seconds(self, name: str) -> float:
        """A time in seconds; infinity if switched off. A day is a working day, a week seven days of the calendar."""
        limit = self.table[name]
        if limit.value is None:
            return math.inf
        return limit.value * self.unit(limit.unit)

    def unit(self, unit: str) -> float:
        """Seconds of a unit of time."""
        if unit == "day":
            return (self.table["working_day"].value or 0.0) * 3600
        return 7 * 86400.0 if unit == "week" else _SECONDS[unit]

    def why(self, name: str) -> str:
        """ "2 h (guide, A)", or what the project has instead of it."""
        limit = self.table[name]
        if limit.changed:
            guide = replace(limit, value=limit.guide)
            return f"{limit} ({FILE}; guide, {limit.source}: {guide})"
        return f"{limit} ({limit.source})" if limit.source == "ours" else f"{limit} (guide, {limit.source})"


def said(limits: Limits) -> tuple[tuple[str, str, str, str], ...]:
    """Rows of the table: name, value, source, what."""
    return tuple((name, str(l), l.source + (f"; changed from {replace(l, value=l.guide)}" if l.changed else ""), l.what) for name, l in limits.table.items())  # fmt: skip  # noqa: E741


def read_limits(root: Path) -> Limits:
    """The table with what the notebook's `limits.yaml` changes; without that file the guide's.

    A value is a number in the table's unit, a time with its unit ("45 min", "3 h", "2 days", "1 week"), or "off".

    Raises
    ------
    LabError: a file that is no YAML mapping, an unknown name (the nearest is suggested), a value that is none.
    """
    place = folder.inside(root, FILE)
    if not place.exists():
        return Limits(LIMITS)
    try:
        data = place.read_bytes()
    except OSError as error:
        raise LabError(f"{FILE} cannot be read", why=str(error.strerror or error), instead="check its permissions") from error  # fmt: skip
    try:
        values, written, odd = front.load(decode(data, FILE).replace("\r\n", "\n"))
    except front.Raw as error:
        raise LabError(f"{FILE} line {error.line} is no YAML", why=error.why, instead="a line each: zoom_out: 90 min") from error  # fmt: skip
    if odd:
        raise LabError(
            f"{FILE}: {odd[0]}", why="one of the two numbers would be a guess", instead="keep one line"
        )
    table = dict(LIMITS)
    for name, value in values.items():
        if name not in table:
            near = difflib.get_close_matches(name, table, n=1, cutoff=0.5)
            raise LabError(f"{FILE}: there is no limit called {name!r}", why="it would have no effect",
                           instead=f"did you mean {near[0]!r}?" if near else f"one of {', '.join(table)}")  # fmt: skip
        old = table[name]
        table[name] = replace(old, value=_read(name, value, written.get(name, ""), old.unit), changed=True, guide=old.value)  # fmt: skip
    limits = Limits(table)
    if not limits["working_day"].value or limits["gap"].value is None:
        raise LabError(f"{FILE}: working_day and gap cannot be off", why="working time is measured by them", instead="give a time")  # fmt: skip
    return limits


def _read(name: str, value: Any, written: str, unit: str) -> float | None:
    if value == "off":
        return None
    number: float | None = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
    elif isinstance(value, str) and (match := re.fullmatch(r"([0-9.]+)\s*([A-Za-z]+)", value.strip())):
        number = _converted(match[1], match[2].lower(), unit)
    if number is None or not 0 < number < math.inf:
        raise LabError(f"{FILE}: {name} is {written or value!r}", why=f"it is counted in {unit}", instead=f"a number above 0, for example 2 {unit}, or off")  # fmt: skip
    return number


def _converted(number: str, word: str, unit: str) -> float | None:
    """A number with a unit in the table's unit; None if the two are not of one kind. Days and weeks are not converted: a
    working day is not 24 hours."""
    try:
        value = float(number)
    except ValueError:
        return None
    given = _UNITS.get(word, word)
    if given == unit or word == unit.rstrip("s"):
        return value
    if given in _SECONDS and unit in _SECONDS:
        return value * _SECONDS[given] / _SECONDS[unit]
    return None
