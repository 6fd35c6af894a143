"""What was done when, as values, and how much of a span of time was work.

A gap that is longer than `LIMITS["gap"]` is no work. Where activities overlap (a run inside a run, a note during a run), each
moment belongs to the one that began last, so that hours add up.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise

from microtome.errors import LabError
from microtome.lab.notebook.entries import Entry, aware, entries
from microtome.lab.notebook.pages import Page

__all__ = [
    "BETWEEN",
    "KINDS",
    "PROJECTS",
    "Activity",
    "Segment",
    "active_seconds",
    "of_pages",
    "segments",
    "staged",
]

KINDS = {
    "run": "a technique ran", "look": "a raw look at a model", "log": "an entry of the log", "highlight": "something was learned",
    "reading": "papers, posts", "writing": "writing up", "ideation": "looking for ideas", "coding": "writing code",
    "meeting": "talking to others", "zoom-out": "the large picture", "learned-nothing": "asked, and nothing was learned",
    "brainstorm": "a five-minute timer", "stuck": "nothing works", "confused": "something does not fit",
    "hypothesis": "a hypothesis is about to be tested", "approach": "another approach begins", "dead-end": "an approach is dead",
    "problem": "another problem begins", "sprint": "a sprint begins", "continue": "going on was chosen; what: the reason",
    "pivot": "a pivot was chosen", "thread": "one thread was chosen", "project-begin": "a project begins; what: foundation, mini, full or timed", "project-end": "a mini-project or sprint ended",
    "post-mortem": "looking back at it", "review": "the weekly review",
}  # fmt: skip
"""Kinds that timers know; others are work like any other."""
PROJECTS = ("foundation", "mini", "full", "timed")
"""Kinds of project: learning, a few days, weeks, 20 h and a write-up."""
BETWEEN = "between"
"""The kind of a short gap between two activities."""
STATES = ("", "finished", "failed", "interrupted")


@dataclass(frozen=True)
class Activity:
    """Something that was done.

    begin, end: with their offset from UTC; the same for what takes no time; end None: still going on.
    kind: one of `KINDS`, or another word. what: in a few words. stage, method: where it belongs.
    state: of a run: "finished", "failed", "interrupted".
    attended: False for a run that nobody waits for (over night): it is no working time.

    Raises
    ------
    LabError: a time without an offset, an end before the begin, no kind, an unknown state.
    """

    begin: datetime
    end: datetime | None
    kind: str
    what: str = ""
    stage: str = ""
    method: str = ""
    state: str = ""
    attended: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "begin", aware(self.begin, "the begin of an activity"))
        if self.end is not None:
            object.__setattr__(self, "end", aware(self.end, "the end of an activity"))
        if self.end is not None and self.end < self.begin:
            raise LabError(f"an activity ends at {self.end}, before it begins", why=f"it begins at {self.begin}", instead="check the clock")  # fmt: skip
        if not self.kind or self.kind == BETWEEN or self.state not in STATES:
            raise LabError(f"an activity of kind {self.kind!r} and state {self.state!r}", why=f"it has a kind; states are {', '.join(STATES[1:])}", instead="see KINDS")  # fmt: skip


@dataclass(frozen=True)
class Segment:
    """A piece of working time and what it belongs to; `of` None: a short gap, filed under the stage of what came before."""

    begin: datetime
    end: datetime
    of: Activity | None
    stage: str

    @property
    def seconds(self) -> float:
        """How long it is."""
        return (self.end - self.begin).total_seconds()


def segments(
    activities: Iterable[Activity], since: datetime, until: datetime, gap: float
) -> tuple[Segment, ...]:
    """The working time from `since` to `until`, cut into pieces that do not overlap, in order.

    gap: seconds. Time from the last activity to `until` counts like any other gap. What begins after `until` is left out.
    """
    known = sorted((a for a in activities if a.begin <= until and a.attended), key=lambda a: a.begin)
    found: list[Segment] = []
    latest: datetime | None = None  # how far the timeline is covered
    last: Activity | None = None
    for begin, end, of in _pieces(known, until):
        if latest is not None and begin > latest and (begin - latest).total_seconds() <= gap:
            found.append(Segment(latest, begin, None, last.stage if last else ""))
        if end > begin:
            found.append(Segment(begin, end, of, of.stage))
        latest = end if latest is None else max(latest, end)
        last = (
            of if end > begin or of.stage or last is None else last
        )  # a note that says no stage is no change of stage
    if latest is not None and until > latest and (until - latest).total_seconds() <= gap:
        found.append(Segment(latest, until, None, last.stage if last else ""))
    clipped = (Segment(max(s.begin, since), min(s.end, until), s.of, s.stage) for s in found)
    return tuple(s for s in clipped if s.end > s.begin)


def _pieces(known: Sequence[Activity], until: datetime) -> Iterable[tuple[datetime, datetime, Activity]]:
    """Between two neighbouring times at which something begins or ends, the activity that began last; what takes no time is
    a piece of no length, since it bridges gaps."""
    ends = [min(a.end or until, until) for a in known]
    times = sorted({*(a.begin for a in known), *ends})
    running: list[tuple[float, int]] = []  # a heap: the last begun first
    at = 0
    for now, following in pairwise([*times, until + timedelta(microseconds=1)]):
        while at < len(known) and known[at].begin <= now:
            if ends[at] > known[at].begin:
                heapq.heappush(running, (-known[at].begin.timestamp(), -at))
            else:
                yield known[at].begin, known[at].begin, known[at]
            at += 1
        while running and ends[-running[0][1]] <= now:
            heapq.heappop(running)
        if running and following <= until:
            yield now, following, known[-running[0][1]]


def active_seconds(activities: Iterable[Activity], since: datetime, until: datetime, gap: float) -> float:
    """Working time from `since` to `until`, in seconds."""
    pieces = segments(activities, since, until, gap)
    return sum((s.end - s.begin for s in pieces), timedelta()).total_seconds()


def staged(activities: Iterable[Activity], moves: Iterable[tuple[datetime, str]]) -> tuple[Activity, ...]:
    """The activities, each without a stage given the one that was on when it began.

    moves: when which stage began.
    """
    order = sorted(moves)
    times = [at for at, _ in order]
    found = []
    for a in activities:
        at = bisect_right(times, a.begin)
        found.append(replace(a, stage=order[at - 1][1]) if at and not a.stage else a)
    return tuple(found)


def of_pages(pages: Iterable[Page]) -> tuple[Activity, ...]:
    """What the pages of a notebook say was done when: log entries, highlights, reviews, decisions, moves. They take no time.

    The record knows runs and looks; together they make the timeline.
    """
    kinds = {
        "log": "log",
        "highlights": "highlight",
        "review": "review",
        "decision": "decision",
        "stage": "stage",
    }
    found = []
    for page in pages:
        for entry in (
            entries(page) if page.kind in (*kinds, "belief", "idea", "questions", "goals", "plan") else ()
        ):
            kind = kinds.get(page.kind, "note")
            if page.kind == "log" and entry.fields.get("activity"):
                kind = entry.fields["activity"]
            stage = entry.fields.get("stage", "") if page.kind == "log" else ""
            what = _what(entry, page.kind, kind)
            minutes = _minutes(entry.fields.get("took", "")) if page.kind == "log" else 0.0
            found.append(Activity(entry.at - timedelta(minutes=minutes), entry.at, kind if kind != BETWEEN else "note", what, stage))  # fmt: skip
    return tuple(sorted(found, key=lambda a: a.begin))


def _what(entry: Entry, page: str, kind: str) -> str:
    """In a few words. A log entry is called by its stage; what it says was done is the reason of a "continue", and no
    other text may stand for one."""
    if page != "log":
        return entry.title
    told = [entry.fields.get("what", "")]
    told += [] if kind != "log" else [entry.fields.get("tried", ""), entry.fields.get("goal", ""), entry.text]
    return next((text.split("\n")[0] for text in told if text), "")


def _minutes(text: str) -> float:
    """ "90 min" as 90; 0 for anything else, and for more than a day."""
    number = text.removesuffix("min").strip()
    return float(number) if number.isascii() and number.isdigit() and int(number) <= 1440 else 0.0
