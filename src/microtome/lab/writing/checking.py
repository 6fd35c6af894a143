"""What the tool itself verified of the runs in a write-up, and how. A sentence each, also where the answer is no."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sqlalchemy import select

from microtome.errors import MicrotomeError
from microtome.lab import schema, seals

if TYPE_CHECKING:
    from microtome.lab.reading import Record, RunRow
    from microtome.results import Result

__all__ = ["checked"]


def checked(record: Record, rows: Sequence[RunRow], results: Mapping[int, Result | None]) -> tuple[str, ...]:
    """Sentences on digests, seals, runs that were made again, and what can be run again."""
    names = sorted(n for n, result in results.items() if result is not None)
    said = []
    if names:
        said.append(f"The results of {_runs(names)} were read back from the record; every file has the digest that was recorded, and every verdict follows from the controls that it was stored with.")  # fmt: skip
    said.append(_seals(record))
    said += _again(record, rows, results)
    lost = {row.number: row.not_again for row in rows if row.not_again and row.method != "look"}
    bare = sorted(row.number for row in rows if row.arguments is None and row.method != "look" and row.number not in lost)  # fmt: skip
    for number, why in sorted(lost.items()):
        said.append(f"Run {number} cannot be run again from its record: {'; '.join(why.splitlines())}.")
    if bare:
        said.append(f"The arguments of {_runs(bare)} were not recorded: they cannot be run again from the record.")  # fmt: skip
    return tuple(said)


def _seals(record: Record) -> str:
    p = schema.prediction
    with record.database.reading() as connection:
        found = connection.execute(select(p).order_by(p.c.number)).mappings().all()
    if not found:
        return "No prediction was registered in this record."
    broken = seals.broken([dict(row) for row in found])
    if broken:
        return f"The seals of the predictions {', '.join(map(str, broken))} do not fit what is recorded: they were changed after they were made, or one is gone."  # fmt: skip
    many = (
        "The one prediction of the record carries"
        if len(found) == 1
        else f"All {len(found)} predictions of the record carry"
    )
    return f"{many} the seal of what was predicted and of the one before: none was changed or removed since."  # fmt: skip


def _again(record: Record, rows: Sequence[RunRow], results: Mapping[int, Result | None]) -> list[str]:
    """Whether the same question was asked again, by the same code, and gave the same numbers."""
    said, never = [], []
    r = schema.run.c
    for row in sorted({row.number: row for row in rows}.values(), key=lambda row: row.number):
        mine = results.get(row.number)
        if mine is None:
            continue
        same = select(r.number).where(r.query == row.query, r.number != row.number, r.state == "finished")
        with record.database.reading() as connection:
            others = list(connection.execute(same.order_by(r.number)).scalars())
        if not others:
            never.append(row.number)
        for other in others:
            said.append(_compared(record, row.number, other, mine))
    if never:
        said.append(f"{_runs(never)[:1].upper()}{_runs(never)[1:]} {'was' if len(never) == 1 else 'were'} not run a second time in this record.")  # fmt: skip
    return said


def _compared(record: Record, number: int, other: int, mine: Result) -> str:
    from microtome.lab.equality import compared

    try:
        found = compared(mine, record.result(other))
    except MicrotomeError as error:
        return f"Run {other} asked the same as run {number}, and cannot be read: {error.what}."
    return f"Run {other} asked the same as run {number}: {found.said}."


def _runs(numbers: Sequence[int]) -> str:
    return f"run {numbers[0]}" if len(numbers) == 1 else "runs " + ", ".join(map(str, numbers))
