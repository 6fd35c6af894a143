"""One section per stage, and the closing ones: what was checked, what this does not show, where it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING

from ..figures.tables import table_of
from ..results.calibration import NOT_CALIBRATED
from ..results.frozen import dumps
from .examples import examples
from .finding import controls_of
from .gallery import Gallery
from .markup import Html, fold, join, table, tag
from .outline import Stage, heading
from .prose import VERDICT, asked, limits
from .summary import about
from .tables import badge, controls, numbers, observed, outcome, typeset

if TYPE_CHECKING:
    from ..results.result import Result
    from ..results.verdicts import Control


def section(stage: Stage, gallery: Gallery) -> Html:
    """A stage: asked, pictures, controls, verdict, raw examples, numbers, query."""
    result = stage.result
    facts = [
        f"n {stage.n}" if stage.n is not None else None,
        f"{stage.seconds:,.1f} s" if stage.seconds is not None else None,
        _tally(result),
        stage.note or None,
    ]
    return tag(
        "section",
        tag("h2", tag("span", f"{stage.number}. ", cls="no"), heading(stage)),
        tag("p", " · ".join(f for f in facts if f), cls="aside") if any(facts) else None,
        tag("p", asked(result), cls="asked"),
        tag(
            "p",
            badge(result.verdict),
            " ",
            tag("span", VERDICT.get(result.verdict.word, "")),
            cls="judgement",
        ),
        tag("ul", [tag("li", r) for r in result.verdict.reasons], cls="reasons"),
        gallery.of(result, stage.path, stage.anchor),
        controls(result),
        examples(result),
        numbers(result),
        _query(result),
        id=stage.anchor,
        aria_label=stage.name,
    )


def _tally(result: Result) -> str | None:
    """How many of its controls passed; None where it has none."""
    passed = sum(c.passed is True for c in result.controls)
    return f"{passed} of {len(result.controls)} controls passed" if result.controls else None


def whole(result: Result, gallery: Gallery) -> Html | None:
    """What belongs to no single stage: the pictures, controls and examples of a result that has children."""
    if not result.children:
        return None
    pictures = gallery.of(result, (), "whole")
    return tag(
        "section",
        tag("h2", "The stages together"),
        pictures,
        controls(result) if result.controls else None,
        examples(result),
        id="whole",
    )


def checked(result: Result, stages: Sequence[Stage], left_out: Sequence[str]) -> Html:
    """What was checked, what failed, what did not run, and what none of it shows."""
    every = controls_of(result, stages)
    failed = [(s, c) for s, c in every if c.passed is False]
    idle = [(s, c) for s, c in every if c.passed is None]
    passed = len(every) - len(failed) - len(idle)
    left = f"Figures left out to keep the file small: {', '.join(left_out)}."
    return tag(
        "section",
        tag("h2", "What was checked, what failed, what this does not show"),
        tag("p", f"{passed} of {len(every)} controls passed."),
        _missed("Failed", "Not ruled out", failed, result),
        _missed("Did not run", "Not asked", idle, result),
        _checks(result),
        tag("p", left, cls="absent") if left_out else None,
        tag("h3", "What this does not show"),
        tag("ul", [tag("li", sentence) for sentence in limits(result)]),
        fold("What the verdicts mean", _verdicts()),
        id="checked",
    )


def _missed(head: str, so: str, rows: Sequence[tuple[Stage | None, Control]], result: Result) -> Html:
    """The controls that failed, or did not run, each with what it leaves open, and in which stages."""
    if not rows:
        return join(tag("h3", head), tag("p", "None."))
    grouped: dict[tuple[str, str, str], list[tuple[Stage | None, Control]]] = {}
    for stage, control in rows:
        grouped.setdefault((control.name, control.rules_out, control.expected), []).append((stage, control))
    items = [
        tag(
            "li",
            tag("p", tag("strong", name.replace("_", " ")), f". {so}: {typeset(alternative)}."),
            tag("p", f"Expected: {typeset(expected)}.", cls="aside"),
            tag("ul", [_one(stage, control, result) for stage, control in found], cls="plain"),
        )
        for (name, alternative, expected), found in grouped.items()
    ]
    return join(tag("h3", head), tag("ul", items, cls="missed"))


def _one(stage: Stage | None, control: Control, result: Result) -> Html:
    """One stage in which a control failed or did not run, and whether its verdict stands on it."""
    where = tag("a", f"{stage.number}. {heading(stage)}", href=f"#{stage.anchor}") if stage else "The whole"
    own = (stage.result if stage else result).verdict
    needs = control.gates or control.name in own.mandatory
    weight = "the verdict needs it" if needs else "the verdict does not rest on it"
    seen = typeset(control.detail) or f"observed {observed(control)}".removesuffix("observed ")
    said = f"{seen}; {weight}" if seen else weight
    return tag("li", where, f": {said}")


def _verdicts() -> Html:
    return tag(
        "dl",
        [join(tag("dt", badge(word)), tag("dd", said)) for word, said in VERDICT.items()],
        cls="verdicts",
    )


def _checks(result: Result) -> Html | None:
    found = table_of(result, "checks")
    if found is None or (result.children and "stage" in found.columns):
        return None  # with a stage each, they are the controls that the sections show already
    rows = [
        [str(r.get("check", "")), outcome(str(r.get("outcome", ""))), str(r.get("detail", "") or "")]
        for r in found.to_dict("records")
    ]
    return table("Checks of the whole", ["check", "outcome", "detail"], rows, cls="cards")


def provenance(result: Result, stages: Sequence[Stage], command: str) -> Html:
    """What it takes to run this again."""
    query = result.query
    facts: list[tuple[str, str]] = [(k, v) for k, v in about(result).items() if k != "question"]
    if command:
        facts.append(("command", command))
    if query is not None:
        facts += [
            ("method", f"{query.method}, version {query.version}"),
            ("model (content hash)", query.model),
            ("task (content hash)", query.task),
            ("data (content hash)", query.data),
            ("seed", "none: nothing is drawn" if query.seed is None else str(query.seed)),
            ("numerics", _flat(query.numerics)),
            ("query", query.id),
        ]
    facts += [("page made with", f"microtome {_version('microtome')}, plotly {_version('plotly')}")]
    body = [
        join(tag("dt", k), tag("dd", tag("code", v) if k in ("command", "query") else v))
        for k, v in facts
        if v
    ]
    methods = table(
        "Methods", ["stage", "method", "version", "calibration"], [_method(s) for s in stages], cls="cards"
    )
    return tag(
        "section",
        tag("h2", "Where this came from"),
        tag("dl", body, cls="facts"),
        methods,
        _query(result),
        id="provenance",
    )


def _method(stage: Stage) -> list[str]:
    query = stage.result.query
    name = f"{stage.number}. {heading(stage)}"
    return (
        [name, "–", "–", NOT_CALIBRATED]
        if query is None
        else [name, query.method, query.version, stage.result.calibration]
    )


def _query(result: Result) -> Html:
    if result.query is None:
        return join()
    return fold("Query", tag("pre", tag("code", dumps(result.query.as_json(), indent=1)), tabindex="0"))


def _flat(mapping: Mapping[str, object]) -> str:
    return ", ".join(f"{k} {v}" for k, v in mapping.items()) or "–"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed as a package)"
