"""A run again, from its record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from microtome.errors import LabError
from microtome.lab.schema import run

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

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

    equal: to the bit, tables, controls and verdict included. largest: the largest difference of two numbers of the effects,
    tensors and tables, of the stages too, relative to the largest number of their array or column; None where shapes, labels,
    texts, counts or outcomes of controls differ. verdict: whether both have the same.
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
        row.method,
        kept,
        record.files,
        load_model=load_model,
        result_of=lambda query: _result(record, query, row.number),
    )


def agree(one: Result, two: Result) -> Agreement:
    """Compare two results of one question number by number."""
    return Agreement(one == two, _largest(one, two), str(one.verdict) == str(two.verdict))


def _largest(one: Result, two: Result) -> float | None:
    """The largest relative difference of two results and of their stages; None where they are not laid out alike."""
    if _layout(one) != _layout(two):
        return None
    gaps = [_gap(one.tensors[name], two.tensors[name]) for name in one.tensors]
    gaps += [_of_tables(one.tables[name], two.tables[name]) for name in one.tables]
    gaps += [_largest(a, b) for a, b in zip(one.children, two.children, strict=True)]
    if one.effects is not None and two.effects is not None:
        alike = one.effects.dims == two.effects.dims and one.effects.coords == two.effects.coords
        gaps.append(_gap(one.effects.values, two.effects.values) if alike else None)
    known = [gap for gap in gaps if gap is not None]
    return max(known, default=0.0) if len(known) == len(gaps) else None


def _layout(result: Result) -> tuple[Any, ...]:
    controls = [(c.name, c.passed) for c in result.controls]
    return (
        result.kind,
        set(result.tensors),
        set(result.tables),
        result.effects is None,
        len(result.children),
        controls,
    )


def _of_tables(one: pd.DataFrame, two: pd.DataFrame) -> float | None:
    if list(one.columns) != list(two.columns) or len(one) != len(two):
        return None
    gaps = [_gap(one[name].to_numpy(), two[name].to_numpy()) for name in one.columns]
    known = [gap for gap in gaps if gap is not None]
    return max(known, default=0.0) if len(known) == len(gaps) else None


def _gap(a: np.ndarray, b: np.ndarray) -> float | None:
    """Largest difference of two arrays relative to the first's largest number. What is no float (ids, counts, texts) must be equal."""
    import numpy as np

    if a.shape != b.shape:
        return None
    if a.dtype.kind not in "fc" or b.dtype.kind not in "fc":
        return 0.0 if a.dtype.kind == b.dtype.kind and _alike(a, b) else None
    wide = np.complex128 if "c" in (a.dtype.kind, b.dtype.kind) else np.float64
    x, y = a.astype(wide), b.astype(wide)
    ok = np.isfinite(x)
    if not np.array_equal(ok, np.isfinite(y)) or not np.array_equal(x[~ok], y[~ok], equal_nan=True):
        return None
    x, y = x[ok], y[ok]
    return float(np.abs(x - y).max(initial=0.0) / max(np.abs(x).max(initial=0.0), 1e-30))


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype.kind != "O":
        return bool((a == b).all())
    return all(x is y or x == y or (x != x and y != y) for x, y in zip(a.ravel(), b.ravel(), strict=True))


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
