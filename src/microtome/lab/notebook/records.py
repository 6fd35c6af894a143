"""What a notebook holds, kind by kind: each function makes an entry, and says on which page it belongs.

`folder.add(root, *log_entry(now, tried="..."))` writes it. What a page says by now (the state of a goal, the confidence in a
belief) is read from its entries: the last one counts, the earlier ones are its history.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches

from microtome.errors import LabError
from microtome.lab.notebook.entries import Entry, aware, entries
from microtome.lab.notebook.pages import Page, slug
from microtome.lab.notebook.timeline import KINDS, PROJECTS

__all__ = [
    "BECAUSE", "STATES", "TIERS", "Confidence", "Goal", "Step", "belief", "confidence", "decision", "did", "goal", "goals",
    "highlight", "log_entry", "outcome", "plan", "question", "step",
]  # fmt: skip

TIERS: Mapping[str, str] = {"north star": "months", "sub-goal": "weeks", "objective": "days"}
"""Goals in three tiers, and how long one of each lasts."""
STATES = ("open", "reached", "dropped")
BECAUSE = ("luck", "execution", "judgement")
"""Why a decision came out as it did."""

Placed = tuple[Page, Entry]


def _day(now: datetime) -> str:
    return f"{aware(now, 'now'):%Y-%m-%d}"


def _runs(runs: Sequence[int | str]) -> str:
    """Links to runs: a number is "run 17", an id "run:0fa3..."."""
    made = []
    for run in runs:
        text = str(run).strip().lower()
        hexadecimal = len(text) >= 4 and not text.isdigit() and all(c in "0123456789abcdef" for c in text)
        if not (text.isascii() and text.isdigit()) and not hexadecimal:
            raise LabError(f"{run!r} is no run", why="a run is its number or at least 4 digits of its id", instead="for example 17 or 0fa3b2c4")  # fmt: skip
        made.append(f"run {text}" if text.isdigit() else f"run:{text}")
    return ", ".join(made)


def _needed(text: str, what: str) -> str:
    if not text.strip():
        raise LabError(
            f"{what} is empty", why="the entry would say nothing", instead=f"give {what} in a sentence"
        )
    return text


def log_entry(
    now: datetime, *, stage: str = "", goal: str = "", tried: str = "", observed: str = "", next: str = "", runs: Sequence[int | str] = (), text: str = ""
) -> Placed:  # fmt: skip
    """An entry of the day's log: what for, what was tried, what was seen (above all what is odd), runs, what is next.

    Raises
    ------
    LabError: nothing to say at all, or a run that is none.
    """
    said = {
        "stage": stage,
        "goal": goal,
        "tried": tried,
        "observed": observed,
        "runs": _runs(runs),
        "next": next,
    }
    _needed("".join(said.values()) + text, "the log entry")
    day = _day(now)
    return Page("log", f"Log of {day}", day), Entry(now, stage, said, text)


def did(now: datetime, kind: str, what: str = "", *, minutes: int = 0) -> Placed:
    """An entry of the log that says what was done: one of `timeline.KINDS`, for so many minutes until now. Timers and the
    audit read it.

    Raises
    ------
    LabError: an unknown kind, or one that is recorded elsewhere (runs, looks, highlights); minutes that are no number from 0
    to those of a day; going on without a reason; a project of an unknown kind.
    """
    known = [k for k in KINDS if k not in ("run", "look", "log", "highlight")]
    if kind not in known:
        near = get_close_matches(kind, known, n=1)
        raise LabError(f"{kind!r} is nothing to write down so", why=f"kinds: {', '.join(known)}; runs and highlights have records of their own",
                       instead=f"did you mean {near[0]!r}?" if near else "one of these")  # fmt: skip
    if isinstance(minutes, bool) or not isinstance(minutes, int) or not 0 <= minutes <= 1440:
        raise LabError(f"it took {minutes!r} minutes", why="an entry covers a part of a day", instead="a whole number from 0 to 1440")  # fmt: skip
    if kind == "continue":
        _needed(what, "the reason for going on")
    if kind == "project-begin":
        _one_of(what, PROJECTS, "the kind of project")
    said = {"activity": kind, "what": what, "took": f"{minutes} min" if minutes else ""}
    day = _day(now)
    return Page("log", f"Log of {day}", day), Entry(now, "", said)


def highlight(now: datetime, title: str, *, text: str = "", runs: Sequence[int | str] = ()) -> Placed:
    """Something that was learned. `timers` and `audit` measure progress by these.

    Raises
    ------
    LabError: an empty title, or a run that is none.
    """
    return Page("highlights", "Highlights"), Entry(
        now, _needed(title, "the highlight"), {"runs": _runs(runs)}, text
    )


def question(now: datetime, text: str, *, state: str = "open", answer: str = "") -> Placed:
    """A question or a curiosity; the same text again with another state (open, answered, dropped) closes it.

    Raises
    ------
    LabError: an empty question, or an unknown state.
    """
    _one_of(state, ("open", "answered", "dropped"), "state")
    return Page("questions", "Questions and curiosities"), Entry(now, _needed(text, "the question"), {"state": state, "answer": answer})  # fmt: skip


def belief(
    now: datetime, statement: str, confidence: float, *, experiment: str = "", result: str = "", why: str = "", runs: Sequence[int | str] = ()
) -> Placed:  # fmt: skip
    """A statement believed with some confidence, 0 to 1, and the experiment that moved it there. One page a statement;
    each call adds to its history.

    Raises
    ------
    LabError: an empty statement, or a confidence that is no number from 0 to 1.
    """
    if isinstance(confidence, bool) or not isinstance(confidence, int | float) or not 0 <= confidence <= 1:
        raise LabError(
            f"a confidence of {confidence!r}", why="it is a probability", instead="give a number from 0 to 1"
        )
    said = {
        "confidence": f"{confidence:g}",
        "experiment": experiment,
        "result": result,
        "why": why,
        "runs": _runs(runs),
    }
    page = Page(
        "belief",
        _needed(statement, "the statement"),
        "",
        {},
        f"{statement.strip()}\n",
        f"beliefs/{slug(statement)}.md",
    )
    return page, Entry(now, f"confidence {confidence:g}", said)


@dataclass(frozen=True)
class Confidence:
    """How far a statement was believed at a time, 0 to 1, and what moved it there."""

    at: datetime
    confidence: float
    experiment: str = ""
    result: str = ""


def confidence(page: Page) -> tuple[Confidence, ...]:
    """The history of a belief, in order of time. Entries without a number from 0 to 1 are left out."""
    found = []
    for entry in entries(page):
        try:
            value = float(entry.fields.get("confidence", "nan"))
        except ValueError:
            continue
        if not math.isnan(value) and 0 <= value <= 1:
            found.append(
                Confidence(
                    entry.at, value, entry.fields.get("experiment", ""), entry.fields.get("result", "")
                )
            )
    return tuple(sorted(found, key=lambda c: c.at))


def decision(
    now: datetime, what: str, *, why: str, alternatives: Sequence[str] = (), would_change: str = ""
) -> Placed:
    """A decision, with why, what else was possible, and what would change it.

    Raises
    ------
    LabError: an empty decision, or no reason.
    """
    _needed(why, "the reason")
    said = {"why": why, "alternatives": "; ".join(a.strip() for a in alternatives if a.strip()), "would change it": would_change}  # fmt: skip
    day = _day(now)
    return Page("decision", _needed(what, "the decision"), day, {}, ""), Entry(now, f"decided: {what}", said)


def outcome(now: datetime, came: str, because: str, *, learned: str = "") -> Entry:
    """How a decision came out, to be added to its page: by luck, execution or judgement.

    Raises
    ------
    LabError: an empty outcome, or another reason.
    """
    _one_of(because, BECAUSE, "because")
    return Entry(
        now, "outcome", {"outcome": _needed(came, "the outcome"), "because": because, "learned": learned}
    )


def _one_of(value: str, allowed: Sequence[str], what: str) -> None:
    if value not in allowed:
        raise LabError(
            f"{what} is {value!r}", why=f"it is one of {', '.join(allowed)}", instead="use one of these"
        )


def goal(now: datetime, tier: str, text: str, *, until: str = "", state: str = "open") -> Placed:
    """A goal of a tier (`TIERS`); the same tier and text again with another state (`STATES`) closes it.

    Raises
    ------
    LabError: an unknown tier or state, or an empty goal.
    """
    _one_of(tier, tuple(TIERS), "the tier")
    _one_of(state, STATES, "the state")
    return Page("goals", "Goals"), Entry(
        now, _needed(text, "the goal"), {"tier": tier, "state": state, "until": until}
    )


@dataclass(frozen=True)
class Goal:
    """A goal as it stands: tier, text, state, since when it has that state, until when it should be reached."""

    tier: str
    text: str
    state: str
    since: datetime
    until: str = ""


def goals(page: Page) -> tuple[Goal, ...]:
    """The goals of a page as they stand, north stars first. Entries without a known tier are left out."""
    found: dict[tuple[str, str], Goal] = {}
    for e in sorted(entries(page), key=lambda e: e.at):
        tier, state = e.fields.get("tier", ""), e.fields.get("state", "open")
        if tier in TIERS:
            before = found.get((tier, e.title))
            until = e.fields.get("until", before.until if before else "")
            found[tier, e.title] = Goal(tier, e.title, state, e.at, until)
    order = list(TIERS)
    return tuple(sorted(found.values(), key=lambda g: order.index(g.tier)))


def step(now: datetime, text: str, *, hours: float | None = None, took: float | None = None) -> Placed:
    """A step of the plan with the hours that it should take; the same text again with `took` closes it.

    Raises
    ------
    LabError: an empty step, neither of both, or hours that are not positive and finite.
    """
    given = {"estimate": hours, "took": took}
    said = {name: f"{value:g} h" for name, value in given.items() if value is not None}
    if not said or any(value is not None and not 0 < value < math.inf for value in given.values()):
        raise LabError(f"a step of {hours} hours that took {took}", why="a plan has time estimates", instead="give hours above 0")  # fmt: skip
    return Page("plan", "Plan"), Entry(now, _needed(text, "the step"), said)


@dataclass(frozen=True)
class Step:
    """A step of the plan: hours estimated, hours that it took (None: not known, not done)."""

    text: str
    hours: float | None
    took: float | None


def plan(page: Page) -> tuple[Step, ...]:
    """The steps of a plan in the order in which they were first written."""
    found: dict[str, Step] = {}
    for e in sorted(entries(page), key=lambda e: e.at):
        before = found.get(e.title, Step(e.title, None, None))
        hours, took = _hours(e.fields.get("estimate")), _hours(e.fields.get("took"))
        if hours is not None or took is not None:
            found[e.title] = Step(e.title, before.hours if hours is None else hours, before.took if took is None else took)  # fmt: skip
    return tuple(found.values())


def _hours(text: str | None) -> float | None:
    try:
        value = float((text or "").removesuffix("h").strip())
    except ValueError:
        return None
    return value if 0 < value < math.inf else None
