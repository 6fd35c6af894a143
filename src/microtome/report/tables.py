"""Tables of a report: controls, stages, the numbers behind the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..figures.text import number, visible
from .markup import Html, fold, join, table, tag
from .outline import Refused, Stage, capital, heading
from .prose import GLYPH, SLUG

if TYPE_CHECKING:
    import pandas as pd

    from ..results.result import Result
    from ..results.verdicts import Control

ROWS = 24
_LAST = {"low": 1, "high": 2, "p": 3, "of": 4}  # a number first, then how sure it is; files sort names
_SIGNS = {"<=": "≤", ">=": "≥", "+-": "±"}
_OUTCOME = {"passed": "✓", "failed": "✕", "did not run": "–"}


def badge(verdict: str) -> Html:
    """A verdict as a word with a sign; never by colour alone."""
    word = str.__str__(verdict)
    return tag(
        "span",
        tag("span", GLYPH.get(word, "?"), aria_hidden="true"),
        f" {word}",
        cls=f"verdict {SLUG.get(word, 'unchecked')}",
    )


def outcome(word: str) -> Html:
    """Whether something passed, failed or did not run."""
    slug = {"passed": "ok", "failed": "bad"}.get(word, "idle")
    return tag(
        "span", tag("span", _OUTCOME.get(word, ""), aria_hidden="true"), f" {word}", cls=f"outcome {slug}"
    )


def typeset(text: str) -> str:
    """Text of a control with the signs that a keyboard lacks."""
    for plain, sign in _SIGNS.items():
        text = text.replace(plain, sign)
    return text


def controls(result: Result) -> Html:
    """Every control: what it rules out, expected, observed, outcome."""
    if not result.controls:
        return tag("p", "No controls.", cls="absent")
    rows = [
        [_name(c, result), c.rules_out, typeset(c.expected), _observed(c), outcome(c.outcome), c.n or "–"]
        for c in result.controls
    ]
    return table(
        "Controls",
        ["control", "rules out", "expected", "observed", "outcome", "n"],
        rows,
        cls="cards controls",
        numeric=(5,),
    )


def _name(control: Control, result: Result) -> Html:
    marks = ["gate"] if control.gates else []
    if control.name in result.verdict.mandatory:
        marks.append("mandatory")
    return join(tag("strong", control.name.replace("_", " ")), [tag("span", m, cls="mark") for m in marks])


def observed(control: Control) -> str:
    """What a control observed, in a few words; "" where it did not run."""
    seen = control.observed
    if isinstance(seen, Mapping):
        pairs = [f"{visible(k, most=60, prose=True)} {_value(v)}" for k, v in list(seen.items())[:4]]
        return ", ".join(pairs) + (f" and {len(seen) - 4} more" if len(seen) > 4 else "")
    return "" if seen is None else _value(seen)


def _observed(control: Control) -> Html:
    null = (
        None
        if control.null is None
        else tag("span", f"null {number(control.null[0])} to {number(control.null[1])}", cls="aside")
    )
    detail = tag("span", typeset(control.detail), cls="aside") if control.detail else None
    seen = control.observed
    if isinstance(seen, Mapping):
        pairs = [
            tag("li", tag("bdi", visible(k, most=80, prose=True)), " ", tag("b", _value(v)))
            for k, v in sorted(seen.items(), key=lambda pair: _LAST.get(str(pair[0]), 0))[:8]
        ]
        hidden = tag("li", f"{len(seen) - 8} more") if len(seen) > 8 else None
        return join(tag("ul", pairs, hidden, cls="plain"), null, detail)
    return join("" if seen is None else tag("b", _value(seen)), null, detail)


def stages(found: Sequence[Stage], rest: Sequence[Refused]) -> Html:
    """Verdict, controls passed, n and seconds of every stage, in the order they ran; those that came to no result in their places."""
    lines: list[tuple[float, list[Any]]] = []
    total = 0.0
    for s in found:
        link: list[object] = [tag("a", f"{s.number}. {heading(s)}", href=f"#{s.anchor}"), _aside(s.note)]
        lines.append(
            (
                s.number,
                [
                    join(link),
                    badge(s.result.verdict),
                    _passed(s.result),
                    "–" if s.n is None else s.n,
                    _seconds(s.seconds),
                ],
            )
        )
        total += s.seconds or 0.0
    for one in rest:
        refused = tag("span", "– ", one.word, cls="verdict unchecked")
        name: list[object] = [capital(visible(one.name, most=60, prose=True)), _aside(one.note)]
        lines.append(
            (
                one.after + 0.5,
                [join(name), refused, "–", "–" if one.n is None else one.n, _seconds(one.seconds)],
            )
        )
        total += one.seconds or 0.0
    rows = [row for _, row in sorted(lines, key=lambda line: line[0])]
    if total and len(rows) > 1:
        rows.append([tag("b", "All stages"), "", "", "", tag("b", _seconds(total))])
    head = ["stage", "verdict", "controls", "n", "seconds"]
    return table("Stages", head, rows, cls="stages", numeric=(2, 3, 4))


def _passed(result: Result) -> Html | str:
    """How many of its controls passed, set apart where not all did."""
    every = result.controls
    passed = sum(c.passed is True for c in every)
    text = f"{passed}/{len(every)}" if every else "–"
    failed = any(c.passed is False for c in every)
    return tag("span", text, cls="outcome bad", title="passed / all") if failed else text


def _aside(note: str) -> Html | None:
    return tag("span", visible(note, most=160, prose=True), cls="aside") if note else None


def numbers(result: Result) -> Html:
    """The numbers behind the figures: the largest cells, and every table (its first rows)."""
    made = []
    frame = result.frame()
    if len(frame):
        order = frame["value"].abs().sort_values(ascending=False, na_position="last", kind="stable").index
        made.append(
            _frame(
                frame.loc[order[:ROWS]].dropna(axis=1, how="all"),
                f"Cells, largest first: {min(ROWS, len(frame))} of {len(frame)}",
            )
        )
    for name, content in result.tables.items():
        if name not in ("cells", "normalised", "about", "stages", "checks"):
            made.append(
                _frame(
                    content.head(ROWS),
                    f"{name.replace('_', ' ').capitalize()}: {min(ROWS, len(content))} of {len(content)} rows",
                )
            )
    return fold("Numbers", made) if made else join()


def _frame(frame: pd.DataFrame, caption: str) -> Html:
    head = [str(c) for c in frame.columns]
    numeric = [i for i, c in enumerate(frame.columns) if frame[c].dtype.kind in "fiu"]
    rows = [[_value(v) for v in row] for row in frame.itertuples(index=False, name=None)]
    return table(caption, head, rows, cls="data", numeric=numeric)


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}"


def _value(value: Any) -> str:
    """A number to four digits, text as a reader can see it."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "–" if value != value else f"{value:.4g}".replace("-", "−")
    return visible(value, most=200, prose=True)
