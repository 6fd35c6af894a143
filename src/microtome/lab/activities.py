"""The runs of a record as activities of the notebook: what timers and audits count as work."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import insert

from microtome.lab.notebook.timeline import Activity
from microtome.lab.reading import Wanted
from microtome.lab.schema import page

if TYPE_CHECKING:
    from microtome.lab.notebook.pages import Page
    from microtome.lab.reading import Record, RunRow

__all__ = ["activities", "keep_index"]

UNATTENDED = 1800.0
"""Seconds from which a run counts as one that nobody waits for: it is shown, and is no working time."""
_STATES = ("finished", "failed", "interrupted")


def activities(record: Record, *, since: float | None = None) -> tuple[Activity, ...]:
    """Every run and look that no other called, the oldest first."""
    rows = record.runs(Wanted(since=since), limit=None)
    return tuple(_activity(row) for row in reversed(rows))


def _activity(row: RunRow) -> Activity:
    begin = datetime.fromtimestamp(row.begun_at, UTC)
    end = (
        None
        if row.state == "running"
        else datetime.fromtimestamp(max(row.ended_at or row.begun_at, row.begun_at), UTC)
    )
    kind = "look" if row.method == "look" else "run"
    what = f"{row.method} on {row.family}" if row.family else row.method
    state = row.state if row.state in _STATES else ""
    return Activity(
        begin, end, kind, what, method=row.method, state=state, attended=(row.seconds or 0.0) < UNATTENDED
    )


def keep_index(record: Record, pages: Sequence[Page]) -> None:
    """Write what was found in the notebook into the record's table `page`: the files are what counts, this is for queries."""
    rows = [
        {"path": p.path[:500], "kind": p.kind[:40], "title": p.title, "dated": _dated(p), "digest": p.digest[:32],
         "fields": json.dumps(p.fields, default=str, sort_keys=True), "problems": json.dumps(list(p.problems), default=str),
         "indexed_at": time.time()}
        for p in pages
    ]  # fmt: skip
    with record.database.writing(durable=False) as connection:
        connection.execute(page.delete())
        if rows:
            connection.execute(insert(page), rows)


def _dated(one: Page) -> float | None:
    try:
        return datetime.fromisoformat(one.date).timestamp()
    except ValueError:  # a page without a date, or with one that a person wrote in words
        return None
