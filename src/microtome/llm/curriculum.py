"""What to learn, in which order and how long, and how far a learner has come. Reading alone does not count.

The topics are in curriculum.yaml, in Microtome's own words, after N. Nanda's guide to becoming a mechanistic
interpretability researcher (alignmentforum.org/posts/jP9KDyMkchuv6tHwm).
"""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from microtome.errors import ChatError
from microtome.llm.progress import UNCOUNTED, Entry

__all__ = ["Curriculum", "Standing", "Status", "Topic", "curriculum", "status"]

TESTS = ("quiz", "exercise", "summary")


@dataclass(frozen=True)
class Topic:
    """One topic. need: "essential" or "nice". hours: a time box. knowing: what can be checked. notes: the topic in short."""

    id: str
    title: str
    need: str
    hours: float
    knowing: tuple[str, ...]
    notes: str


@dataclass(frozen=True)
class Curriculum:
    """The topics in their order, and the limits of the whole stage: days from the first entry, hours spent."""

    topics: tuple[Topic, ...]
    days: int
    hours: int
    after: str

    def topic(self, name: str) -> Topic:
        """The topic with this id. Raises ChatError with the nearest ids."""
        found = next((t for t in self.topics if t.id == name), None)
        if found:
            return found
        ids = [t.id for t in self.topics]
        near = difflib.get_close_matches(name, ids, 1)
        raise ChatError(
            f"there is no topic {name!r}",
            why=f"the topics are {', '.join(ids)}",
            instead=f"did you mean {near[0]!r}?" if near else "one of these",
        )


@cache
def curriculum() -> Curriculum:
    """The curriculum that comes with Microtome."""
    import yaml

    read: Any = yaml.safe_load((files("microtome.llm") / "curriculum.yaml").read_text(encoding="utf-8"))
    topics = tuple(Topic(**{**row, "knowing": tuple(row["knowing"])}) for row in read["topics"])
    limits = read["limits"]
    return Curriculum(topics, limits["days"], limits["hours"], limits["after"])


@dataclass(frozen=True)
class Standing:
    """How a topic stands. state: "not begun", "only read", "tried", "begun" (one kind of test passed) or "known".

    passed: the kinds of test that were passed. hours: spent on it.
    """

    topic: Topic
    state: str
    passed: tuple[str, ...]
    hours: float


@dataclass(frozen=True)
class Status:
    """How the learner stands.

    started: day of the first entry. days, hours: since then, and spent. next: the topic to go on with; None when all
    essential ones are known. notes: limits that were reached, and topics that were read only.
    """

    standings: tuple[Standing, ...]
    started: datetime.date | None
    days: int
    hours: float
    next: Topic | None
    notes: tuple[str, ...]


def status(entries: Sequence[Entry], today: datetime.date, plan: Curriculum | None = None) -> Status:
    """How far a learner has come.

    A topic is known when a quiz on it was passed, and an exercise or a summary too: to recognise is not to produce.
    """
    plan = plan or curriculum()
    standings = tuple(_standing(topic, entries) for topic in plan.topics)
    started = min((e.date for e in entries), default=None)
    days = (today - started).days if started else 0
    hours = sum(e.minutes for e in entries) / 60
    open_ = [s.topic for s in standings if s.state != "known" and s.topic.need == "essential"]
    return Status(standings, started, days, hours, open_[0] if open_ else None, tuple(_notes(plan, standings, days, hours, bool(open_))))  # fmt: skip


def _standing(topic: Topic, entries: Sequence[Entry]) -> Standing:
    own = [e for e in entries if e.topic == topic.id]
    passed = tuple(kind for kind in TESTS if any(e.kind == kind and e.passed for e in own))
    if "quiz" in passed and len(passed) > 1:
        state = "known"
    elif passed:
        state = "begun"
    elif any(e.kind not in UNCOUNTED for e in own):
        state = "tried"
    else:
        state = "only read" if own else "not begun"
    return Standing(topic, state, passed, sum(e.minutes for e in own) / 60)


def _notes(
    plan: Curriculum, standings: Sequence[Standing], days: int, hours: float, open_: bool
) -> list[str]:
    notes = []
    if days >= plan.days or hours >= plan.hours:
        notes.append(
            f"{days} days and {hours:.0f} h: this stage was to take at most {plan.days} days and {plan.hours} h; "
            f"go on with {plan.after}, and learn the rest when it is needed"
        )
    elif not open_:
        notes.append(f"everything essential is known; go on with {plan.after}")
    read = [s.topic.id for s in standings if s.state == "only read"]
    if read:
        notes.append(f"only read, which does not count: {', '.join(read)}; take a quiz, and write a summary")
    long = [s for s in standings if s.hours > s.topic.hours and s.state != "known"]
    notes += [f"{s.topic.id}: {s.hours:.1f} h of {s.topic.hours:g} h; move on" for s in long]
    return notes
