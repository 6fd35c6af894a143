"""The first screen: the question, the verdict in words, the numbers that matter, the stages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..figures.tables import table_of
from ..figures.text import number, visible
from ..results.verdicts import SUPPORTED
from .finding import controls_of, finding, meaning
from .markup import Html, tag
from .numbers import Number, headline
from .outline import Stage, unlinked
from .prose import asked, title_of
from .tables import badge, stages

if TYPE_CHECKING:
    from ..results.result import Result


def about(result: Result) -> dict[str, str]:
    """What tables["about"] (columns name, value) says: question, model, task and whatever else."""
    table = table_of(result, "about")
    if table is None:
        return {}
    return {str(k): str(v) for k, v in zip(table["name"], table["value"], strict=True)}


def question(result: Result) -> str:
    """The question that heads the page."""
    said = about(result).get("question")
    if said:
        return said
    parameters: Mapping[str, object] = {} if result.query is None else result.query.parameters
    task = about(result).get("task") or parameters.get("task")
    task = task if isinstance(task, str) else ""
    if result.kind == "dissect":
        return (
            f"Which parts of the model carry {task}?"
            if task
            else "Which parts of the model carry this behaviour?"
        )
    return f"{title_of(result)}: {task}" if task else title_of(result)


def summary(result: Result, found: Sequence[Stage], command: str = "") -> Html:
    """The header of the page. command: what was typed; it names model and data where the result does not."""
    facts = about(result)
    subjects = [facts[k] for k in ("model", "task") if facts.get(k)]
    subjects = subjects or ([visible(command, most=110, prose=True)] if command else [])
    word = result.verdict.word
    return tag(
        "header",
        tag("p", "Microtome report", [tag("span", s) for s in subjects], cls="over"),
        tag("h1", question(result)),
        tag("p", asked(result), cls="asked") if not result.children and asked(result) else None,
        tag("p", badge(word), " ", tag("span", meaning(result, found)), cls="judgement"),
        _reasons(result),
        finding(result, found),
        tag(
            "div",
            cards(headline(result, found)),
            tag("div", stages(found, unlinked(result, found)), _tally(result, found)),
            cls="screen",
        ),
    )


def _reasons(result: Result) -> Html | None:
    """Why the verdict is what it is, with the detail of the controls that failed; nothing where all is well."""
    if result.verdict == SUPPORTED:
        return None
    failed = [c.detail for c in result.controls if c.passed is False and c.detail]
    lines = [*result.verdict.reasons[:3], *failed[:2]]
    return (
        tag("ul", [tag("li", visible(line, most=300, prose=True)) for line in lines], cls="reasons")
        if lines
        else None
    )


def _tally(result: Result, found: Sequence[Stage]) -> Html | None:
    """One line that no reader can miss: how many controls passed, failed, did not run."""
    every = [c for _, c in controls_of(result, found)]
    if not every:
        return tag("p", "No control ran.", cls="tally")
    count = {word: sum(c.outcome == word for c in every) for word in ("passed", "failed", "did not run")}
    parts = f"{len(every)} controls: {count['passed']} passed, {count['failed']} failed, {count['did not run']} did not run. "
    return tag("p", parts, tag("a", "What failed", href="#checked"), cls="tally")


def cards(numbers: Sequence[Number]) -> Html | None:
    """The numbers that matter, a card each: value, interval, null, n; None for none."""
    return tag("ul", [_card(one) for one in numbers], cls="numbers") if numbers else None


def _card(one: Number) -> Html:
    label = tag("a", one.label, href=f"#{one.anchor}") if one.anchor else one.label
    value = tag("p", tag("b", number(one.value)), " ", tag("span", one.unit), cls="value")
    facts = []
    if one.share == one.share:
        facts.append(f"{one.share:.0%} of the gap to the donor".replace("%", "\u00a0%"))
    facts.append(f"[{number(one.low)}, {number(one.high)}]" if one.low == one.low else "no interval")
    if one.null_low != one.null_low:
        facts.append("no null")
    elif one.null_low == one.null_high:
        facts.append(f"{one.null or 'null'} {number(one.null_low)}")
    else:
        facts.append(f"{one.null or 'null'} {number(one.null_low)} to {number(one.null_high)}")
    if one.n is not None:
        facts.append(f"n\u00a0{one.n}")
    doubt = tag("p", badge(one.verdict), cls="doubt") if one.verdict not in ("", SUPPORTED) else None
    return tag(
        "li",
        tag("p", label, cls="label"),
        value,
        _strip(one),
        tag("p", _dots(facts), cls="aside"),
        doubt,
    )


def _dots(facts: Sequence[str]) -> list[object]:
    """Facts with dots between them; an interval is not broken."""
    whole: list[object] = [tag("span", f, cls="whole") if f.startswith("[") else f for f in facts]
    return [part for fact in whole for part in (" · ", fact)][1:]


def _strip(one: Number) -> Html:
    """The number, its interval and its null band on one line; the text beside it says the same."""
    known = [v for v in (0.0, one.value, one.low, one.high, one.null_low, one.null_high) if math.isfinite(v)]
    low, high = min(known), max(known)
    room = 0.06 * ((high - low) or 1.0)
    low, high = low - room, high + room

    def at(value: float) -> str:
        return f"{1 + 198 * (value - low) / (high - low):.1f}"

    parts = [tag("line", x1=at(0.0), x2=at(0.0), y1=1, y2=17, cls="zero")]
    if one.null_low == one.null_low:
        a, b = float(at(one.null_low)), float(at(one.null_high))
        parts.append(
            tag(
                "rect",
                x=f"{a - (1 if b - a < 2 else 0):.1f}",
                y=2,
                width=f"{max(b - a, 2):.1f}",
                height=14,
                cls="null",
            )
        )
    if one.low == one.low:
        parts.append(tag("line", x1=at(one.low), x2=at(one.high), y1=9, y2=9, cls="reach"))
    parts.append(tag("line", x1=at(one.value), x2=at(one.value), y1=9, y2=9, cls="dot"))
    return tag("svg", parts, viewBox="0 0 200 18", preserveAspectRatio="none", aria_hidden="true", cls="mini")
