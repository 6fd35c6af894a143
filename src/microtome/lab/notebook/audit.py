"""Where the time went, from a timeline: every moment of work counted once."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from microtome.errors import LabError
from microtome.escapes import visible
from microtome.lab.notebook.entries import aware
from microtome.lab.notebook.limits import LIMITS, Limits
from microtome.lab.notebook.timeline import BETWEEN, Activity, Segment, segments

__all__ = ["Audit", "audit", "markdown", "safe"]


@dataclass(frozen=True)
class Audit:
    """Where the working time of a span went. Hours, unless said otherwise.

    total: of work. stages, kinds, methods: name -> hours; each adds up to `total` ("" is what belongs to none; the kind
    "between" is short gaps). failed: in runs that failed or were interrupted. unattended: of runs that nobody waited for,
    which are not in `total`.
    runs, highlights: how many began or were written. dry: the longest working time without a highlight, and when it began
    (None without work). sink: the largest kind and what (without "between"), and its hours.
    """

    since: datetime
    until: datetime
    total: float
    stages: Mapping[str, float]
    kinds: Mapping[str, float]
    methods: Mapping[str, float]
    failed: float
    unattended: float
    runs: int
    highlights: int
    dry: float
    dry_since: datetime | None
    sink: tuple[str, float] | None

    @property
    def failed_share(self) -> float | None:
        """Share of the working time in runs that failed or were interrupted; None without work."""
        return self.failed / self.total if self.total else None

    @property
    def runs_per_highlight(self) -> float | None:
        """None without a highlight."""
        return self.runs / self.highlights if self.highlights else None

    @property
    def highlights_per_hour(self) -> float | None:
        """The guide's measure of progress; None without work."""
        return self.highlights / self.total if self.total else None


def audit(
    activities: Iterable[Activity], since: datetime, until: datetime, limits: Limits | None = None
) -> Audit:
    """The audit of a span of time.

    Raises
    ------
    LabError: a span that ends before it begins, or a time without an offset.
    """
    since, until = aware(since, "the begin of the span"), aware(until, "the end of the span")
    if until < since:
        raise LabError(
            f"a span from {since} to {until}", why="it ends before it begins", instead="change the two"
        )
    every = sorted((a for a in activities if a.begin <= until), key=lambda a: a.begin)
    pieces = segments(every, since, until, (limits or Limits(LIMITS)).seconds("gap"))
    inside = [a for a in every if a.begin >= since]
    lit = [a.begin for a in inside if a.kind == "highlight" and a.attended]
    dry, dry_since = _dry(pieces, lit)
    alone = [a for a in every if not a.attended]
    return Audit(
        since,
        until,
        sum(s.seconds for s in pieces) / 3600,
        _by(pieces, lambda s: s.stage),
        _by(pieces, lambda s: s.of.kind if s.of else BETWEEN),
        _by(pieces, lambda s: s.of.method if s.of else ""),
        sum(
            s.seconds
            for s in pieces
            if s.of and s.of.kind == "run" and s.of.state in ("failed", "interrupted")
        )
        / 3600,
        sum(max(0.0, (min(a.end or until, until) - max(a.begin, since)).total_seconds()) for a in alone)
        / 3600,
        sum(a.kind == "run" for a in inside),
        len(lit),
        dry,
        dry_since,
        _sink(pieces),
    )


def _by(pieces: Iterable[Segment], key: Callable[[Segment], str]) -> Mapping[str, float]:
    found: dict[str, float] = {}
    for s in pieces:
        name = key(s)
        found[name] = found.get(name, 0.0) + s.seconds / 3600
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _dry(pieces: tuple[Segment, ...], lit: list[datetime]) -> tuple[float, datetime | None]:
    """The longest working time between two highlights (or an end of the span), in hours, and when it began."""
    if not pieces:
        return 0.0, None
    found: list[tuple[float, datetime]] = []
    spent, began, at = 0.0, pieces[0].begin, 0
    for s in pieces:  # none goes past a highlight: what takes no time still cuts
        while at < len(lit) and lit[at] <= s.begin:
            found.append((spent, began))
            spent, began, at = 0.0, lit[at], at + 1
        spent += s.seconds / 3600
    found.append((spent, began))
    return max(found, key=lambda pair: pair[0])


def _about(a: Activity) -> str:
    return ": ".join(x for x in (a.kind, a.method or a.what) if x)


def _sink(pieces: Iterable[Segment]) -> tuple[str, float] | None:
    """What took most: of runs the method, of anything else its kind, with what it was about."""
    by = _by([s for s in pieces if s.of], lambda s: _about(s.of) if s.of else "")
    return next(iter(by.items()), None)


def safe(text: object) -> str:
    """Text on one line of Markdown that no reader takes for HTML, a link, a table or a mark of ours."""
    escaped = html.escape(visible(" ".join(str(text).split())), quote=False)
    return "".join("\\" + c if c in "\\`*_[]|#!~" else c for c in escaped)


def markdown(found: Audit) -> str:
    """The audit as Markdown."""
    day = timedelta(days=1)
    lines = [f"From {found.since:%Y-%m-%d %H:%M} to {found.until:%Y-%m-%d %H:%M %z}" + (f" ({(found.until - found.since) / day:.1f} days)" if found.until > found.since else ""), ""]  # fmt: skip
    lines += [f"- work: {found.total:.2f} h, and {found.unattended:.2f} h of runs that nobody waited for"]
    share, per_run, per_hour = found.failed_share, found.runs_per_highlight, found.highlights_per_hour
    lines += [f"- runs: {found.runs}; highlights: {found.highlights}"]
    lines += [f"- runs per highlight: {'no highlight' if per_run is None else f'{per_run:.1f}'}"]
    lines += [f"- highlights per hour: {'no work' if per_hour is None else f'{per_hour:.2f}'}"]
    lines += [f"- in runs that failed or were interrupted: {found.failed:.2f} h" + ("" if share is None else f", {share:.0%} of the work")]  # fmt: skip
    if found.dry_since:
        lines += [
            f"- longest stretch without a highlight: {found.dry:.2f} h of work, from {found.dry_since:%Y-%m-%d %H:%M}"
        ]
    if found.sink:
        lines += [f"- biggest time sink: {safe(found.sink[0])}, {found.sink[1]:.2f} h"]
    for name, table in (("stage", found.stages), ("kind", found.kinds), ("method", found.methods)):
        lines += ["", f"| {name} | hours |", "|---|---:|"]
        lines += [f"| {safe(key) or '(none)'} | {hours:.2f} |" for key, hours in table.items()]
        lines += [f"| all | {found.total:.2f} |"]
    return "\n".join(lines) + "\n"
