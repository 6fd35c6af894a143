"""What a terminal shows of a notebook: plain rows and lines, every control character an escape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from microtome.escapes import visible
from microtome.lab.notebook.audit import Audit
from microtome.lab.notebook.ideas import Rating
from microtome.lab.notebook.pages import Page
from microtome.lab.notebook.records import Confidence, Goal, Step
from microtome.lab.notebook.stages import Move
from microtome.lab.notebook.stages import stage as told_of
from microtome.lab.notebook.timers import Trigger

__all__ = [
    "audit",
    "beliefs",
    "goals",
    "pages",
    "plan",
    "problems",
    "ratings",
    "stage",
    "triggers",
]

Rows = tuple[tuple[str, ...], ...]


def _rows(rows: Iterable[Sequence[object]]) -> Rows:
    return tuple(tuple(visible(cell) for cell in row) for row in rows)


def pages(every: Iterable[Page]) -> Rows:
    """path, kind, date, title, how many problems."""
    return _rows((p.path, p.kind, p.date, p.title, len(p.problems) or "") for p in every)


def problems(every: Iterable[Page]) -> tuple[str, ...]:
    """A line for each thing that is odd about a page."""
    return tuple(visible(f"{p.path}: {said}") for p in every for said in p.problems)


def triggers(every: Iterable[Trigger]) -> tuple[str, ...]:
    """Three lines for each trigger: what, why, what to do."""
    lines = []
    for t in every:
        lines += [f"{'OVERDUE ' if t.overdue else ''}{t.name}: {t.what} (since {t.since:%Y-%m-%d %H:%M})"]
        lines += [f"  why:  {t.why}", f"  do:   {t.do}"]
    return tuple(map(visible, lines)) or ("nothing is due",)


def stage(moves: Sequence[Move]) -> tuple[str, ...]:
    """The present stage, what it is for, and what its move left open."""
    if not moves:
        return ("no stage yet; the first is ideation, or exploration if the problem was handed to you",)
    now = moves[-1]
    told = told_of(now.to)
    lines = [
        f"stage: {now.to}, since {now.at:%Y-%m-%d %H:%M}" + (f", back from {now.before}" if now.back else "")
    ]
    lines += [
        f"north star: {told.north_star}",
        f"keep asking: {told.keep_asking}",
        f"it mostly fails by: {told.failure}",
    ]
    lines += [f"no answer yet: {key}" for key in now.unanswered] + [
        f"answered not yet: {key}" for key in now.not_yet
    ]
    return tuple(map(visible, lines))


def goals(every: Iterable[Goal]) -> Rows:
    """tier, goal, state, until, since."""
    return _rows((g.tier, g.text, g.state, g.until, f"{g.since:%Y-%m-%d}") for g in every)


def plan(every: Sequence[Step]) -> Rows:
    """step, hours estimated, hours taken, how many times the estimate; last the sums over steps that have both."""
    rows = [
        (s.text, _hours(s.hours), _hours(s.took), f"{s.took / s.hours:.1f}x" if s.hours and s.took else "")
        for s in every
    ]
    both = [(s.hours, s.took) for s in every if s.hours and s.took]
    hours, took = sum(h for h, _ in both), sum(t for _, t in both)
    return _rows(
        [*rows, ("all that are done", _hours(hours), _hours(took), f"{took / hours:.1f}x")] if both else rows
    )


def _hours(value: float | None) -> str:
    return "" if value is None else f"{value:g} h"


def beliefs(every: Iterable[tuple[Page, Sequence[Confidence]]]) -> Rows:
    """belief, confidence by now, how it got there."""
    return _rows(
        (p.title, f"{h[-1].confidence:g}" if h else "", " -> ".join(f"{c.confidence:g}" for c in h))
        for p, h in every
    )


def ratings(every: Iterable[Rating]) -> Rows:
    """person, rating, why, later ratings."""
    return _rows((r.person, f"{r.rating:g}", r.why, ", ".join(f"{c:g}" for c in r.changed)) for r in every)


def audit(found: Audit) -> Rows:
    """name and value of everything in an audit."""
    rows: list[tuple[object, ...]] = [
        ("work", f"{found.total:.2f} h"),
        ("unattended", f"{found.unattended:.2f} h"),
    ]
    rows += [("runs", found.runs), ("highlights", found.highlights)]
    rows += [
        ("runs per highlight", _number(found.runs_per_highlight)),
        ("highlights per hour", _number(found.highlights_per_hour)),
    ]
    rows += [
        (
            "failed or interrupted",
            f"{found.failed:.2f} h" + ("" if found.failed_share is None else f" ({found.failed_share:.0%})"),
        )
    ]
    rows += [("longest without a highlight", f"{found.dry:.2f} h")]
    rows += [("biggest time sink", f"{found.sink[0]} ({found.sink[1]:.2f} h)" if found.sink else "")]
    for name, table in (("stage", found.stages), ("kind", found.kinds), ("method", found.methods)):
        rows += [(f"{name} {key or '(none)'}", f"{hours:.2f} h") for key, hours in table.items()]
    return _rows(rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
