"""Which of the guide's timers have run out, from a timeline and a clock that are given.

A trigger says what is due, since when, why (the number and its source), and what to do. None of them stops anybody. "At
most" and "more than" fire past their number, everything else at it. Times are working time (`timeline`), except sprints,
weeks and months, which are those of the calendar.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from microtome.errors import LabError
from microtome.lab.notebook.entries import aware
from microtome.lab.notebook.limits import LIMITS, Limits
from microtome.lab.notebook.rules import OCCASIONS, RULES, Settings, Trigger, View, hours
from microtome.lab.notebook.stages import stage as known_stage
from microtome.lab.notebook.timeline import PROJECTS, Activity

__all__ = ["OCCASIONS", "PROJECTS", "Blessing", "Settings", "Trigger", "due", "gate", "settings_of"]


def settings_of(
    activities: Iterable[Activity], *, project: str = "", ideas: int = 0, limits: Limits | None = None
) -> Settings:
    """Settings by what was written down: the last "project-begin" says which project it is and when it began; mini-projects
    in a row count from the first of them.

    project: another kind than the one that was written down; "" takes that one, or "mini" where there is none.

    Raises
    ------
    LabError: an unknown kind of project.
    """
    known = (a for a in activities if a.kind == "project-begin" and a.what in PROJECTS)
    begins = sorted(known, key=lambda a: a.begin)
    first = None
    for a in begins:
        first = (first or a.begin) if a.what == "mini" else None
    kind = project or (begins[-1].what if begins else "mini")
    begun = begins[-1].begin if begins else None
    return Settings(kind, begun, first, ideas, limits or Limits(LIMITS))  # type: ignore[arg-type]


def due(
    now: datetime, stage: str, activities: Iterable[Activity], settings: Settings | None = None
) -> tuple[Trigger, ...]:
    """What is due, overdue things first.

    stage: one of `stages.STAGES`, "end", or "" before the first. Activities that begin after `now` are not known yet.

    Raises
    ------
    LabError: an unknown stage, a time without an offset.
    """
    if stage:
        known_stage(stage)
    now = aware(now, "now")
    known = sorted((a for a in activities if a.begin <= now), key=lambda a: a.begin)
    view = View(now, stage, tuple(known), settings or Settings())
    found = [trigger for rule in RULES if (trigger := rule(view)) is not None]
    return tuple(sorted(found, key=lambda t: not t.overdue))


@dataclass(frozen=True)
class Blessing:
    """An experiment may begin: how long it should take, which other ways were thought of, and the reason if they were not.

    long: whether it was expected to take longer than the limit. overridden: it was let through by its reason alone.
    """

    expected: timedelta
    alternatives: tuple[str, ...]
    reason: str
    long: bool
    overridden: bool

    def fields(self) -> dict[str, str]:
        """What the log should say of it."""
        told = {
            "expected": hours(self.expected.total_seconds()),
            "alternatives": "; ".join(self.alternatives),
        }
        return {**told, "overridden because": self.reason} if self.overridden else told


def gate(
    expected_seconds: float, alternatives: Sequence[str], *, reason: str = "", limits: Limits | None = None
) -> Blessing:
    """Ask for other ways before an experiment that is expected to take more than half an hour [A].

    alternatives: other experiments that would tell the same, or enough of it, sooner; the same one twice is one.
    reason: lets the experiment through without them, and is recorded.

    Raises
    ------
    LabError: a long experiment with too few alternatives and no reason; a time that is negative or no number.
    """
    if isinstance(expected_seconds, bool) or not 0 <= expected_seconds < math.inf:
        raise LabError(f"an experiment of {expected_seconds!r} seconds", why="a duration is a number from 0 on", instead="give the seconds that you expect")  # fmt: skip
    table = limits or Limits(LIMITS)
    written = {" ".join(a.casefold().split()): " ".join(a.split()) for a in alternatives if a.strip()}
    long = expected_seconds > table.seconds("long_experiment")
    short = len(written) < (table.value("alternatives") or 0)
    if long and short and not reason.strip():
        raise LabError(
            f"this experiment should take {hours(expected_seconds)}, and {len(written)} alternatives are written",
            why=f"over {table.why('long_experiment')} a quicker way is worth five minutes of looking; {table.why('alternatives')} are asked for",
            instead="write them down, or give a reason, which is recorded",
        )
    try:
        expected = timedelta(seconds=expected_seconds)
    except OverflowError as error:
        raise LabError(f"an experiment of {expected_seconds!r} seconds", why="that is longer than a calendar has", instead="give seconds") from error  # fmt: skip
    return Blessing(expected, tuple(written.values()), reason.strip(), long, long and short)
