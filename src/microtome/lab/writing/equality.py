"""Two results of one question: equal to the bit, or how far apart."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from microtome.results import Result

__all__ = ["TOLERANCE", "Equality", "compared"]

TOLERANCE = 1e-3
"""Of the largest number of the same array: what other kernels, threads and library versions change in float32 sums."""


@dataclass(frozen=True)
class Equality:
    """same: every number is equal to the bit. within: the largest difference is within the tolerance, and verdict and controls
    agree. largest: difference relative to the largest number of its array; where: of which. said: in a sentence without its end.
    """  # fmt: skip

    same: bool
    within: bool
    largest: float
    where: str
    said: str


def compared(first: Result, second: Result, tolerance: float = TOLERANCE) -> Equality:
    """Compare the numbers, the outcomes of the controls and the verdicts of two results, their children's too."""
    shape = _shape(first, second)
    if shape:
        return Equality(False, False, math.inf, shape, shape)
    largest, where, same = 0.0, "", True
    for name, a, b in _arrays(first, second):
        equal, apart = _apart(a, b)
        same = same and equal
        if apart > largest:
            largest, where = apart, name
    if same and first == second:
        return Equality(True, True, 0.0, "", "every number is equal to the bit")
    judged = _judged(first, second)
    if judged:
        return Equality(False, False, largest, where, judged)
    if largest > tolerance:
        return Equality(False, False, largest, where, f"{where} differs by {largest:.2g} of its largest number (the tolerance is {tolerance:g})")  # fmt: skip
    text = f"{where} differs most, by {largest:.2g} of its largest number" if where else "all numbers are equal, and words of its tables or examples differ"  # fmt: skip
    return Equality(False, True, largest, where, f"{text} (the tolerance is {tolerance:g}); verdict and controls agree")  # fmt: skip


def _shape(a: Result, b: Result, at: str = "") -> str:
    """What is laid out differently; "" where all numbers have a partner."""
    if a.kind != b.kind or (a.effects is None) != (b.effects is None):
        return f"{at}one is a {a.kind}, the other a {b.kind}"
    if a.effects is not None and b.effects is not None:
        if (a.effects.dims, dict(a.effects.coords)) != (b.effects.dims, dict(b.effects.coords)):
            return f"{at}the effects have other labels"
    for name, x, y in (("tensors", a.tensors, b.tensors), ("tables", a.tables, b.tables)):
        if set(x) != set(y):
            return f"{at}the {name} are not the same: {', '.join(sorted(set(x) ^ set(y)))}"
    for key in a.tensors:
        if a.tensors[key].shape != b.tensors[key].shape:
            return f"{at}the tensor {key} has another shape"
    for key in a.tables:
        x, y = a.tables[key], b.tables[key]
        if list(x.columns) != list(y.columns) or len(x) != len(y):
            return f"{at}the table {key} has other rows or columns"
    if len(a.children) != len(b.children):
        return f"{at}one has {len(a.children)} stages, the other {len(b.children)}"
    found = (_shape(x, y, f"{at}{x.kind}: ") for x, y in zip(a.children, b.children, strict=True))
    return next(filter(None, found), "")


def _arrays(a: Result, b: Result, at: str = "") -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    if a.effects is not None and b.effects is not None:
        yield f"{at}effects", a.effects.values, b.effects.values
    for name in a.tensors:
        yield f"{at}tensor {name}", a.tensors[name], b.tensors[name]
    for name in a.tables:
        x, y = a.tables[name], b.tables[name]
        for column in x.columns:
            # how long something took is no result
            if x[column].dtype.kind in "fiub" and y[column].dtype.kind in "fiub" and column != "seconds":
                yield f"{at}{name}.{column}", x[column].to_numpy(), y[column].to_numpy()
    for i, (x, y) in enumerate(zip(a.children, b.children, strict=True)):
        yield from _arrays(x, y, f"{at}{x.kind} {i + 1}: ")


def _apart(a: Any, b: Any) -> tuple[bool, float]:
    """(equal to the bit, largest difference relative to the largest number)."""
    import numpy as np

    if np.array_equal(a, b, equal_nan=a.dtype.kind == "f" and b.dtype.kind == "f"):
        return a.dtype == b.dtype, 0.0
    if a.dtype.kind not in "fiub" or b.dtype.kind not in "fiub":
        return False, math.inf
    x, y = a.astype(np.float64), b.astype(np.float64)
    odd = ~(np.isfinite(x) & np.isfinite(y))
    if not np.array_equal(x[odd], y[odd], equal_nan=True):
        return False, math.inf
    scale = max(float(np.max(np.abs(x[~odd]), initial=0.0)), float(np.max(np.abs(y[~odd]), initial=0.0)))
    return False, float(np.max(np.abs(x[~odd] - y[~odd]), initial=0.0)) / (scale or 1.0)


def _judged(a: Result, b: Result) -> str:
    if a.verdict.word != b.verdict.word:
        return f"the verdict is {a.verdict.word} in one and {b.verdict.word} in the other"
    mine, theirs = {c.name: c.outcome for c in a.controls}, {c.name: c.outcome for c in b.controls}
    other = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    if other:
        return f"the control {other[0]} {mine.get(other[0], 'is not there')} in one and {theirs.get(other[0], 'is not there')} in the other"  # fmt: skip
    return next(filter(None, (_judged(x, y) for x, y in zip(a.children, b.children, strict=True))), "")
