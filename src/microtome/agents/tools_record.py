"""Tools that read the record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microtome.agents.bounds import plain
from microtome.agents.telling import rows_of, tell
from microtome.agents.tools import Answer, Tool, made, number, text, texts
from microtome.errors import LabError
from microtome.results.arguments import suggest

if TYPE_CHECKING:
    from microtome.agents.desk import Call

__all__ = ["TOOLS"]

RUN = number("number of a run", minimum=1)
_ROWS = 200


def runs_list(
    call: Call,
    n: int = 30,
    method: str | None = None,
    family: str | None = None,
    person: str | None = None,
    state: str | None = None,
    looks: bool = True,
    before: int | None = None,
) -> dict[str, Any]:
    """Runs of this project, the newest first, by people and agents."""
    from microtome.lab.reading import Wanted

    wanted = Wanted(method=method, family=family, person=person, state=state, looks=looks, before=before)
    with call.record() as record:
        rows = record.runs(wanted, limit=n)
    return {"runs": [_line(r) for r in rows]}


def _line(row: Any) -> dict[str, Any]:
    kept = (
        "number",
        "title",
        "person",
        "by",
        "method",
        "state",
        "model_name",
        "family",
        "seed",
        "seconds",
        "verdict",
        "p",
        "children",
        "error",
    )
    found = {name: plain(getattr(row, name)) for name in kept}
    return {**{k: v for k, v in found.items() if v not in (None, "", 0)}, "asked": row.about}


def run_show(call: Call, run: int, picture: bool = True) -> Answer:
    """A run in full: question, verdict, numbers beside nulls, controls, calibration, raw examples, figure; and whether it is
    stale."""  # fmt: skip
    from microtome.lab.staleness import stale

    with call.record() as record:
        row = record.run(run)
        old = stale(record, [row]).get(row.number, ())
        sites = record.sites(row.number)
        result = record.result(row.number) if row.result is not None else None
    asked = {"asked": plain(row.question), **_line(row), "stale": list(old), "sites": list(sites)}
    if result is None:
        return Answer(asked)
    told = tell(call, result, row.number, picture=picture)
    return Answer({**asked, **told.data}, told.svg, told.png)


def run_table(
    call: Call,
    run: int,
    table: str,
    where: dict[str, Any] | None = None,
    sort: str | None = None,
    largest: bool = True,
    columns: list[str] | None = None,
    n: int = 20,
) -> dict[str, Any]:
    """Rows of a table of a run's result ("frame" is all its cells): filtered by equal values, sorted by a column, the first n."""
    with call.record() as record:
        result = record.result(run)
    known = {**result.tables, **({"frame": result.frame()} if result.effects is not None or "cells" in result.tables else {})}  # fmt: skip
    if table not in known:
        raise LabError(f"run {run} has no table {table!r}", why=f"it has {', '.join(known)}", instead=suggest(table, known))  # fmt: skip
    frame = known[table]
    for column in [*(where or {}), *([sort] if sort else []), *(columns or [])]:
        if column not in frame.columns:
            names = list(map(str, frame.columns))
            raise LabError(f"{table} has no column {column!r}", why=f"it has {', '.join(names)}", instead=suggest(column, names))  # fmt: skip
    for column, value in (where or {}).items():
        frame = frame[frame[column] == value]
    if sort is not None:
        frame = frame.sort_values(sort, ascending=not largest, kind="stable")
    shown = frame.head(n)
    return {"run": run, "table": table, "rows_that_fit": len(frame), "rows": rows_of(shown[columns] if columns else shown)}  # fmt: skip


def runs_compare(call: Call, first: int, second: int, n: int = 15) -> dict[str, Any]:
    """Two runs: what differs in the question, and effects paired prompt by prompt, sign flips and the largest first."""
    from microtome.lab.comparing import compare

    with call.record() as record:
        found = compare(record, first, second)
    return {**plain(found), "cells": [plain(c) for c in found.cells[:n]], "n_cells": len(found.cells)}


def record_sql(call: Call, sql: str, limit: int = 100) -> dict[str, Any]:
    """One SELECT over the record (tables run, control, prediction, claim, evidence, study, model, ...). It only reads."""
    from microtome.lab import sql as reading

    found = reading.query(call.desk.settings.place, sql, limit)
    return {"columns": list(found.columns), "rows": plain(found.rows), "more": found.more}


_TEXT = text()

TOOLS: tuple[Tool, ...] = (
    made(runs_list, {"n": number(minimum=1, maximum=_ROWS, default=30), "method": _TEXT, "family": text("name of the task or data"), "person": _TEXT,
                     "state": {"enum": ["running", "finished", "failed", "interrupted"]}, "looks": {"type": "boolean", "default": True},
                     "before": number("only runs with a lower number", minimum=1)}),
    made(run_show, {"run": RUN, "picture": {"type": "boolean", "default": True}}, ["run"]),
    made(run_table, {"run": RUN, "table": _TEXT, "where": {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}},
                     "sort": text("a column"), "largest": {"type": "boolean", "default": True}, "columns": texts(),
                     "n": number(minimum=1, maximum=_ROWS, default=20)}, ["run", "table"]),
    made(runs_compare, {"first": RUN, "second": RUN, "n": number(minimum=1, maximum=100, default=15)}, ["first", "second"]),
    made(record_sql, {"sql": _TEXT, "limit": number(minimum=1, maximum=1000, default=100)}, ["sql"]),
)  # fmt: skip
