"""The guide's timers, a rule each: from a view of the timeline to what is due, or nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Literal

from microtome.errors import LabError
from microtome.lab.notebook.entries import aware
from microtome.lab.notebook.limits import LIMITS, Limits
from microtome.lab.notebook.timeline import PROJECTS, Activity, Segment, segments

__all__ = ["OCCASIONS", "RULES", "Settings", "Trigger", "View", "hours"]

OCCASIONS: Mapping[str, str] = {
    "stuck": "Five minutes, alone with paper: what else could be tried? What would somebody else do?",
    "confused": "Five minutes: say what exactly does not fit, and what would have to be true for it to fit.",
    "hypothesis": "Five minutes before the test: in what ways could this be false?",
    "alternatives": "Five minutes: what else would explain what you see?",
}
"""When to set a timer of five minutes, and what for [A]."""


@dataclass(frozen=True)
class Trigger:
    """Something that is due.

    name: of the rule. what: what is the case. since: from when it was counted. why: the number, with its source.
    do: what to do now. overdue: the guide's larger number is reached as well.
    """

    name: str
    what: str
    since: datetime
    why: str
    do: str
    overdue: bool = False


@dataclass(frozen=True)
class Settings:
    """What the timers must know of a project.

    project: "foundation" (learning), "mini", "full", or "timed" (20 h and a write-up). begun: when this project began (None:
    with its first activity). first_mini: when the first of the mini-projects began, if there were several. ideas: how many
    ideas are written down. limits: the numbers.
    """

    project: Literal["foundation", "mini", "full", "timed"] = "mini"
    begun: datetime | None = None
    first_mini: datetime | None = None
    ideas: int = 0
    limits: Limits = field(default_factory=lambda: Limits(LIMITS))

    def __post_init__(self) -> None:
        if self.project not in PROJECTS:
            raise LabError(f"a project of kind {self.project!r}", why=f"kinds are {', '.join(PROJECTS)}", instead="use one of these")  # fmt: skip
        for name in ("begun", "first_mini"):
            if (at := getattr(self, name)) is not None:
                object.__setattr__(self, name, aware(at, "the begin of a project"))


@dataclass(frozen=True)
class View:
    """The timeline as the rules ask it."""

    now: datetime
    stage: str
    all: tuple[Activity, ...]
    settings: Settings

    @property
    def limits(self) -> Limits:
        """The project's numbers."""
        return self.settings.limits

    @cached_property
    def begun(self) -> datetime:
        """When the project began."""
        first = self.all[0].begin if self.all else self.now
        return self.settings.begun or first

    @cached_property
    def work(self) -> tuple[Segment, ...]:
        """All working time: what ended an earlier project may be looked back at before this one began."""
        since = min([self.begun, *(a.begin for a in self.all[:1])])
        return segments(self.all, since, self.now, self.limits.seconds("gap"))

    def last(self, *kinds: str) -> datetime:
        """When one of these last ended since the project began; its begin if never, now if one goes on. To go on without
        a reason counts for nothing."""
        asked = (a for a in self.all if a.kind in kinds and (a.kind != "continue" or a.what.strip()))
        return max([self.begun, *(min(a.end or self.now, self.now) for a in asked)])

    def active(self, since: datetime, kind: str = "") -> float:
        """Seconds of work since a time, of one kind if given; exact, so that a limit is met when it is met."""
        every = (s for s in self.work if s.end > since and (not kind or (s.of and s.of.kind == kind)))
        return sum((s.end - max(s.begin, since) for s in every), timedelta()).total_seconds()


Rule = Callable[[View], "Trigger | None"]


def hours(seconds: float) -> str:
    """ "2 h 05 min", "25 min"."""
    minutes = int(seconds // 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


# ---- when nothing is learned


def _approach(v: View) -> Trigger | None:
    name = {
        "mini": "nothing_learned_mini",
        "timed": "nothing_learned_mini",
        "full": "nothing_learned_full",
    }.get(v.settings.project)
    since = v.last("highlight", "approach", "dead-end", "pivot", "problem")
    spent = v.active(since)
    if name is None or spent < v.limits.seconds(name):
        return None
    do = "Take another approach: say in the log why this one gave nothing, and begin the other."
    return Trigger(
        "change-approach", f"{hours(spent)} of work without a highlight", since, v.limits.why(name), do
    )


def _pivot(v: View) -> Trigger | None:
    since = v.last("highlight", "pivot", "continue", "problem")
    spent = v.active(since)
    if v.settings.project != "full" or spent < v.limits.seconds("pivot"):
        return None
    do = "Consider a pivot. Write down why you go on, or to what you turn; ask somebody outside."
    return Trigger(
        "consider-pivot", f"{hours(spent)} of work without a highlight", since, v.limits.why("pivot"), do
    )


def _dead(v: View) -> Trigger | None:
    since = v.last("problem", "pivot")
    dead = [a for a in v.all if a.kind == "dead-end" and a.begin >= since]
    least, most = (v.limits.value(n) or math.inf for n in ("dead_approaches", "dead_approaches_most"))
    if v.settings.project == "full" or len(dead) < min(least, most):
        return None
    names = ", ".join(a.what or "one without a name" for a in dead)
    why = f"{v.limits.why('dead_approaches')}, {v.limits.why('dead_approaches_most')} at most"
    return Trigger(
        "new-problem",
        f"{len(dead)} approaches are dead: {names}",
        since,
        why,
        "Take another problem.",
        len(dead) >= most,
    )


def _thread(v: View) -> Trigger | None:
    since = v.last("highlight", "thread", "pivot", "problem")
    spent = v.active(since)
    if v.stage != "exploration" or spent < v.limits.seconds("one_thread"):
        return None
    why = f"{v.limits.why('one_thread')}, {v.limits.why('one_thread_most')} at most"
    do = "Choose one thread and follow it until it ends; put the others on the list of questions."
    return Trigger(
        "one-thread",
        f"{hours(spent)} of exploring, nothing concrete",
        since,
        why,
        do,
        spent >= v.limits.seconds("one_thread_most"),
    )


def _learned(v: View) -> Trigger | None:
    since = v.last("highlight", "learned-nothing")
    spent = v.active(since)
    if spent < v.limits.seconds("learned_anything"):
        return None
    do = "Ask: have I learned anything in this time? If so write a highlight; if not, say so and change something."
    return Trigger(
        "learned-anything",
        f"{hours(spent)} since the last highlight or answer",
        since,
        v.limits.why("learned_anything"),
        do,
    )


# ---- moving fast


def _look(v: View) -> Trigger | None:
    since = v.last("run", "look", "highlight")
    spent = v.active(since)
    if v.stage != "exploration" or spent < v.limits.seconds("new_look"):
        return None
    do = "Make a plot, whichever takes the shortest time."
    return Trigger(
        "new-look", f"{hours(spent)} without a new plot or run", since, v.limits.why("new_look"), do
    )


def _code(v: View) -> Trigger | None:
    since = v.last("run", "look")
    spent = v.active(since)
    if v.stage not in ("ideation", "exploration", "understanding", "") or spent <= v.limits.seconds(
        "no_code"
    ):
        return None
    do = "Run something small now; do not wait for the good experiment."
    return Trigger(
        "quick-experiment",
        f"{hours(spent)} of work without running code",
        since,
        f"more than {v.limits.why('no_code')}",
        do,
    )


def _zoom(v: View) -> Trigger | None:
    since = v.last("zoom-out", "review", "post-mortem")
    spent = v.active(since)
    if spent < v.limits.seconds("zoom_out"):
        return None
    why = f"{v.limits.why('zoom_out')}, {v.limits.why('zoom_out_most')} at most"
    do = "Zoom out: what is the goal, is this the shortest way to it, what has been learned?"
    return Trigger(
        "zoom-out",
        f"{hours(spent)} since the last look at the large picture",
        since,
        why,
        do,
        spent >= v.limits.seconds("zoom_out_most"),
    )


def _five(v: View) -> Trigger | None:
    """Stuck, confused, or about to test: five minutes of thinking must follow."""
    said = [a for a in v.all if a.kind in ("stuck", "confused", "hypothesis") and a.begin >= v.begun]
    if not said or math.isinf(v.limits.seconds("brainstorm")):
        return None
    last = max(said, key=lambda a: a.begin)
    thought = v.active(last.begin, "brainstorm")
    if thought >= v.limits.seconds("brainstorm"):
        return None
    do = OCCASIONS[last.kind] + (f" {OCCASIONS['alternatives']}" if last.kind == "hypothesis" else "")
    return Trigger(
        f"five-minutes-{last.kind}",
        f"{last.kind}: {last.what}".rstrip(": "),
        last.begin,
        v.limits.why("brainstorm"),
        do,
    )


# ---- how long things last


def _sprint(v: View) -> Trigger | None:
    chosen = [a for a in v.all if a.kind in ("sprint", "pivot") or (a.kind == "continue" and a.what.strip())]
    if not any(a.kind == "sprint" for a in chosen):
        return None
    since = chosen[-1].begin
    lasted = (v.now - since).total_seconds()
    if lasted < v.limits.seconds("sprint"):
        return None
    empty = any(a.kind == "continue" and not a.what.strip() and a.begin >= since for a in v.all)
    what = f"the sprint of {since:%Y-%m-%d} is {lasted / 86400:.0f} days old" + ("; going on was chosen without a reason" if empty else "")  # fmt: skip
    why = f"{v.limits.why('sprint')}, {v.limits.why('sprint_most')} at most"
    do = "PIVOT is the default. To go on, choose it and write down why. Either way: a post-mortem first."
    return Trigger("sprint", what, since, why, do, lasted >= v.limits.seconds("sprint_most"))


def _length(v: View) -> Trigger | None:
    spent = v.active(v.begun)
    rule = {
        "mini": ("mini_project", "Wrap up: write down what you have, do the post-mortem, take the next one."),
        "timed": ("timed_project", "Stop experimenting and write it up."),
        "foundation": (
            "foundation_hours",
            "You know enough to begin: take a mini-project and learn the rest on the way.",
        ),
    }.get(v.settings.project)
    if rule is None or spent < v.limits.seconds(rule[0]):
        return None
    return Trigger(
        "time-is-up",
        f"{hours(spent)} of work in this {v.settings.project} project",
        v.begun,
        v.limits.why(rule[0]),
        rule[1],
    )


def _foundation(v: View) -> Trigger | None:
    lasted = (v.now - v.begun).total_seconds()
    if v.settings.project != "foundation" or lasted < v.limits.seconds("foundation_weeks"):
        return None
    do = "Begin a mini-project, whatever is left on the list."
    return Trigger(
        "begin-a-project",
        f"{lasted / 604800:.1f} weeks of foundations",
        v.begun,
        v.limits.why("foundation_weeks"),
        do,
    )


def _minis(v: View) -> Trigger | None:
    since = v.settings.first_mini
    lasted = (v.now - since).total_seconds() if since else 0.0
    if since is None or v.settings.project != "mini" or lasted < v.limits.seconds("mini_projects"):
        return None
    why = f"{v.limits.why('mini_projects')}, {v.limits.why('mini_projects_most')} at most"
    do = "Consider a full project: which of these was the most fruitful?"
    return Trigger(
        "full-project",
        f"{lasted / 604800:.1f} weeks of mini-projects",
        since,
        why,
        do,
        lasted >= v.limits.seconds("mini_projects_most"),
    )


def _reading(v: View) -> Trigger | None:
    spent = v.active(v.begun, "reading")
    if v.settings.project != "timed" or spent <= v.limits.seconds("timed_reading"):
        return None
    return Trigger(
        "enough-reading",
        f"{hours(spent)} of reading",
        v.begun,
        f"at most {v.limits.why('timed_reading')}",
        "Stop reading; run something.",
    )


def _write_up(v: View) -> Trigger | None:
    spent = v.active(v.begun, "writing")
    if v.settings.project != "timed" or spent < v.limits.seconds("timed_write_up"):
        return None
    return Trigger(
        "share-it",
        f"{hours(spent)} of writing",
        v.begun,
        v.limits.why("timed_write_up"),
        "Share the write-up as it is.",
    )


def _ideation(v: View) -> Trigger | None:
    """A block of looking for ideas that has ended too early."""
    block = [a for a in v.all if a.kind == "ideation" and a.begin >= v.begun]
    if not block or any(a.end is None or a.end > v.now for a in block):
        return None
    spent = v.active(v.begun, "ideation")
    short, few = spent < _on(v.limits, "ideation_block"), v.settings.ideas < (v.limits.value("ideas") or 0)
    if not short and not few:
        return None
    why = f"at least {v.limits.why('ideation_block')} and {v.limits.why('ideas')}"
    do = "Go on; the good ones come after the obvious ones. Rate them from 0 to 10 before you see another's ratings."
    return Trigger("more-ideas", f"{v.settings.ideas} ideas in {hours(spent)}", block[0].begin, why, do)


def _post_mortem(v: View) -> Trigger | None:
    ended = [a for a in v.all if a.kind == "project-end"]
    if not ended:
        return None
    since = ended[-1].begin
    spent = v.active(since, "post-mortem")
    if spent >= _on(v.limits, "post_mortem"):
        return None
    why = f"at least {v.limits.why('post_mortem')}; {v.limits.why('post_mortem_most')} at most after a sprint"
    return Trigger(
        "post-mortem",
        f"{hours(spent)} of looking back since it ended",
        since,
        why,
        "Take the time for a post-mortem, while you remember.",
    )


def _review(v: View) -> Trigger | None:
    since = v.last("review")
    lasted = (v.now - since).total_seconds()
    if not v.all or lasted < v.limits.seconds("weekly_review"):
        return None
    return Trigger(
        "weekly-review",
        f"{lasted / 86400:.0f} days since the last review",
        since,
        v.limits.why("weekly_review"),
        "Write the weekly review: seven questions.",
    )


def _on(limits: Limits, name: str) -> float:
    """A least time in seconds; 0, which nothing falls short of, when it is switched off."""
    seconds = limits.seconds(name)
    return 0.0 if math.isinf(seconds) else seconds


RULES: tuple[Rule, ...] = (
    _approach, _pivot, _dead, _thread, _learned, _look, _code, _zoom, _five, _sprint, _length, _foundation, _minis, _reading,
    _write_up, _ideation, _post_mortem, _review,
)  # fmt: skip
