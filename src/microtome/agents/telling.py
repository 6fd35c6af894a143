"""A result as an agent reads it: the verdict first, numbers beside their nulls, and which controls ran."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from microtome.agents import pictures
from microtome.agents.bounds import UNTRUSTED, plain
from microtome.agents.tools import Answer

if TYPE_CHECKING:
    import pandas as pd

    from microtome.agents.desk import Call
    from microtome.results import Result

__all__ = ["controls", "rows_of", "tell"]

_CELLS, _EXAMPLES = 12, 3


def tell(call: Call, result: Result, number: int | None, *, picture: bool = True) -> Answer:
    """Everything of a result that decides how far to believe it, and its first picture."""
    verdict = result.verdict
    told: dict[str, Any] = {
        "run": number, "method": result.kind, "verdict": verdict.word, "why": plain(getattr(verdict, "reasons", ())), "p": verdict.p,
        "alpha": verdict.alpha, "smallest_p": verdict.smallest_p, "headline": _headline(result), "controls": controls(result),
        "calibration": result.calibration, "strongest_cells": _cells(result), "tables": _tables(result),
        "untrusted": {"raw_examples": plain(result.raw_examples[:_EXAMPLES])}, "note": UNTRUSTED,
    }  # fmt: skip
    if number is not None:
        told["predictions"] = _decided(call, number)
    drawn = pictures.svg(result) if picture else ""
    made = pictures.png(drawn, call.desk.settings.place.home) if drawn and call.desk.settings.pictures else b""  # fmt: skip
    return Answer(dict(plain(told)), drawn, made)


def controls(result: Result) -> list[dict[str, Any]]:
    """Every control: whether it ran and passed, what its failure would mean, what was seen."""
    names = {True: "passed", False: "FAILED", None: "not run"}
    return [{"name": c.name, "outcome": names[c.passed], "mandatory": c.name in result.verdict.mandatory or c.gates,
             "rules_out": c.rules_out, "expected": c.expected, "observed": plain(c.observed), "n": c.n, "detail": c.detail}
            for c in result.controls]  # fmt: skip


def _headline(result: Result) -> list[dict[str, Any]]:
    from microtome.report.numbers import headline
    from microtome.report.outline import Stage

    found = headline(result, [Stage(1, result.kind, result, ())])
    return [{"label": n.label, "value": n.value, "low": n.low, "high": n.high, "null_low": n.null_low, "null_high": n.null_high,
             "null": n.null, "unit": n.unit, "n": n.n} for n in found]  # fmt: skip


def _cells(result: Result) -> list[dict[str, Any]]:
    """The cells with the largest effects, each beside its null band; there are none without effects."""
    if result.effects is None and "cells" not in result.tables:
        return []
    frame = result.frame()
    frame = frame[frame["value"].notna()]
    order = frame["value"].abs().sort_values(ascending=False, kind="stable").index[:_CELLS]
    return rows_of(frame.loc[order])


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a table as mappings; what is not there (NaN, "") is left out."""
    rows = frame.to_dict("records")
    return [{str(k): plain(v) for k, v in row.items() if not _empty(v)} for row in rows]


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or (isinstance(value, str) and not value)  # fmt: skip


def _tables(result: Result) -> dict[str, Any]:
    return {name: {"rows": len(t), "columns": list(map(str, t.columns))} for name, t in result.tables.items()}


def _decided(call: Call, number: int) -> list[dict[str, Any]]:
    from microtome.lab.predicting import predictions

    with call.record() as record:
        found = predictions(record.database)
    return [{"prediction": p.number, "statement": p.statement, "probability": p.probability, "came": p.state, "why": p.reason,
             "post_hoc": p.why_post_hoc} for p in found if p.run == number]  # fmt: skip
