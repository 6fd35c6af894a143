"""A run again, from its record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from microtome.errors import LabError
from microtome.lab.schema import run

if TYPE_CHECKING:
    from microtome.facade import Model
    from microtome.lab.reading import Record
    from microtome.results import Result

__all__ = ["again"]


def again(
    record: Record, which: int | str, *, load_model: Callable[[Mapping[str, Any]], Model] | None = None
) -> Result:
    """Call a recorded technique with its recorded arguments. Inside a study the call is recorded as any other.

    Raises LabError: a look, arguments that were not kept, a model or data that are not what they were, and what the technique
    raises.
    """
    from microtome.lab.arguments import run_again

    row = record.run(which)
    if row.method == "look" or row.arguments is None:
        raise LabError(
            f"run {row.number} cannot be run again",
            why=row.not_again or f"a {row.method} is no technique, or its arguments were not kept",
            instead="do it again by hand",
        )
    if row.not_again:
        raise LabError(
            f"run {row.number} cannot be run again from its record",
            why="; ".join(row.not_again.splitlines()),
            instead="call the technique anew with what is missing",
        )
    kept = record.files.get(row.arguments).decode("utf-8")
    return run_again(
        row.method,
        kept,
        record.files,
        load_model=load_model,
        result_of=lambda query: _result(record, query, row.number),
    )


def _result(record: Record, query: str, before: int) -> Result:
    """The result that an argument was: of its query, and recorded before the run that used it."""
    wanted = (
        select(run.c.number)
        .where(run.c.query == query, run.c.result.is_not(None), run.c.number < before)
        .order_by(run.c.number.desc())
    )
    with record.database.reading() as connection:
        number = connection.execute(wanted.limit(1)).scalar()
    if number is None:
        raise LabError(
            f"the result of the query {query} is not in the record",
            why="an argument of this call was the result of an earlier one",
            instead="run that one again first",
        )
    return record.result(int(number))
