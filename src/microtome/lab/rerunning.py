"""A run again, from its record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from microtome.errors import LabError
from microtome.lab.schema import run

if TYPE_CHECKING:
    from microtome.facade import Model
    from microtome.lab.reading import Record
    from microtome.results import Result

__all__ = ["Agreement", "again", "agree"]

TOLERANCE = 1e-4
"""Largest difference of two numbers, relative to the largest of their array, that counts as the same on another machine or
other versions: float32 sums in another order, on a model of thirty layers. On the same machine and versions it is 0."""


@dataclass(frozen=True)
class Agreement:
    """How two results of one question agree.

    equal: to the bit, tables, controls and verdict included. largest: the largest difference of two numbers of the effects
    and tensors, relative to the largest number of their array; None where shapes or labels differ. verdict: whether both have the same.
    """  # fmt: skip

    equal: bool
    largest: float | None
    verdict: bool

    @property
    def within(self) -> bool:
        """Whether they agree within TOLERANCE."""
        return self.equal or (self.largest is not None and self.largest <= TOLERANCE and self.verdict)


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
        row.method, kept, record.files, load_model=load_model, result_of=lambda query: _result(record, query)
    )


def agree(one: Result, two: Result) -> Agreement:
    """Compare two results of one question number by number."""
    import numpy as np

    same = one == two
    pairs = [(one.tensors.get(name), two.tensors.get(name)) for name in {*one.tensors, *two.tensors}]
    if one.effects is not None or two.effects is not None:
        pairs.append(
            (
                None if one.effects is None else one.effects.values,
                None if two.effects is None else two.effects.values,
            )
        )
    largest: float | None = 0.0
    for a, b in pairs:
        if a is None or b is None or a.shape != b.shape:
            largest = None
            break
        if a.size == 0 or a.dtype.kind not in "fiu":
            continue
        x, y = a.astype(np.float64), b.astype(np.float64)
        if not np.array_equal(np.isfinite(x), np.isfinite(y)):
            largest = None
            break
        ok = np.isfinite(x)
        gap = np.abs(x - y)[ok].max(initial=0.0) / max(np.abs(x)[ok].max(initial=0.0), 1e-30)
        largest = max(largest or 0.0, float(gap))
    return Agreement(same, largest, str(one.verdict) == str(two.verdict))


def _result(record: Record, query: str) -> Result:
    wanted = (
        select(run.c.number)
        .where(run.c.query == query, run.c.result.is_not(None))
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
