"""A result on one screen: the verdict, the numbers that matter beside their nulls, and what was not ruled out.

What is counted as a stage and which numbers come first is the report's choice: screen and page say the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from microtome.cli import output

if TYPE_CHECKING:
    from microtome.report.numbers import Number
    from microtome.report.outline import Stage
    from microtome.results import Control, Result

FAILED_SHOWN = 8


def as_data(result: Result) -> dict[str, Any]:
    """What `show` prints, with the query and every control, as JSON-able data. All cells are in the saved folder."""
    from microtome.report.numbers import headline
    from microtome.report.outline import outline, unlinked

    stages = outline(result)
    return {
        "kind": result.kind,
        "title": result.title(),
        "query": result.query.as_json() if result.query else None,
        "verdict": _verdict(result),
        "calibration": result.calibration,
        "controls": [_control(c) for c in result.controls],
        "numbers": [output.plain(n) for n in headline(result, stages)],
        "stages": [{"name": s.name, "kind": s.result.kind, "n": s.n, "seconds": s.seconds, "verdict": _verdict(s.result),
                    "calibration": s.result.calibration, "controls": [_control(c) for c in s.result.controls]} for s in stages],
        "not_run": [output.plain(row) for row in unlinked(result, stages)],
    }  # fmt: skip


def _verdict(result: Result) -> dict[str, Any]:
    v = result.verdict
    return {
        "word": v.word,
        "reasons": list(v.reasons),
        "p": v.p,
        "alpha": v.alpha,
        "smallest_p": v.smallest_p,
    }


def _control(control: Control) -> dict[str, Any]:
    return {**output.plain(control), "outcome": control.outcome}


def show(result: Result) -> None:
    """Print it."""
    from microtome.report.numbers import headline
    from microtome.report.outline import outline, unlinked

    stages = outline(result)
    output.say(result.title(), style="bold")
    for reason in result.verdict.reasons:
        output.say(f"  {reason}")
    numbers = [_number(n) for n in headline(result, stages)]
    if numbers:
        output.table(("what", "value", "interval", "null", "n"), numbers, title="Numbers")
    rows = [_stage(s) for s in stages]
    rows += [(r.name, output.number(r.n), "", "", f"{r.word}: {r.note}") for r in unlinked(result, stages)]
    output.table(("stage", "n", "seconds", "controls passed", "verdict"), rows, title="Stages")
    output.table(("stage", "how often it is right"), _calibrations(stages), title="Calibration")
    failed = _failed(result, stages)
    if failed:
        more = f" ({len(failed) - FAILED_SHOWN} more in the report)" if len(failed) > FAILED_SHOWN else ""
        output.table(
            ("not ruled out", "control", "in"), failed[:FAILED_SHOWN], title="Controls that failed" + more
        )


def _number(one: Number) -> tuple[str, ...]:
    value = f"{output.number(one.value)} {one.unit}".rstrip()
    null = f"{output.interval(one.null_low, one.null_high)} {one.null}".strip()
    return one.label, value, output.interval(one.low, one.high), null, output.number(one.n)


def _stage(stage: Stage) -> tuple[str, ...]:
    controls = stage.result.controls
    passed = f"{sum(c.passed is True for c in controls)}/{len(controls)}"
    seconds = "" if stage.seconds is None else f"{stage.seconds:.0f}"
    return stage.name.replace("_", " "), output.number(stage.n), seconds, passed, stage.result.verdict.word


def _calibrations(stages: tuple[Stage, ...]) -> list[tuple[str, str]]:
    """One row per line of the shipped table, with the stages that it is of."""
    of: dict[str, list[str]] = {}
    for s in stages:
        of.setdefault(s.result.calibration, []).append(s.name.replace("_", " "))
    return [(_list(names), line) for line, names in of.items()]


def _failed(result: Result, stages: tuple[Stage, ...]) -> list[tuple[str, str, str]]:
    """One row per alternative that was not ruled out, with the stages in which it was not."""
    own = [("the whole", result)] if result.children else []
    every: list[tuple[str, Result]] = [*own, *((s.name.replace("_", " "), s.result) for s in stages)]
    where: dict[tuple[str, str], list[str]] = {}
    for name, one in every:
        for control in one.controls:
            if control.passed is False:
                where.setdefault((control.rules_out, control.name), []).append(name)
    return [(alternative, control, _list(names)) for (alternative, control), names in where.items()]


def _list(names: list[str]) -> str:
    """Names in order, each once, with how often where it is more."""
    counted: Mapping[str, int] = {name: names.count(name) for name in names}
    return ", ".join(f"{name} ({n})" if n > 1 else name for name, n in counted.items())
