"""Two results of one question: equal to the bit, or how far apart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from microtome.results import Result

__all__ = ["TOLERANCE", "Equality", "compared"]

TOLERANCE = 1e-4
"""Largest difference of two numbers, relative to the largest of their array, that counts as the same on another machine or
other versions: float32 sums in another order, on a model of thirty layers. On the same machine and versions it is 0."""


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
    """Compare the numbers, the words, the outcomes of the controls and the verdicts of two results, their children's too.

    How long something took (columns called seconds) is no result.
    """
    shape = _shape(first, second)
    if shape:
        return Equality(False, False, math.inf, shape, shape)
    largest, where, same = 0.0, "", True
    for name, a, b in _arrays(first, second):
        equal, apart = _apart(a, b)
        same = same and equal
        if apart > largest:
            largest, where = apart, name
    for name, x, y in _words(first, second):
        apart = _far(x, y)
        same = same and apart == 0.0
        if apart > largest:
            largest, where = apart, name
    judged = _judged(first, second)
    if judged:
        return Equality(False, False, largest, where, judged)
    if same:
        return Equality(True, True, 0.0, "", "every number is equal to the bit")
    if largest == math.inf:
        return Equality(False, False, largest, where, f"{where} says something else")
    size = f"by {largest:.2g} of its largest number (the tolerance is {tolerance:g})"
    if largest > tolerance:
        return Equality(False, False, largest, where, f"{where} differs {size}")
    return Equality(False, True, largest, where, f"{where or 'a type'} differs most, {size}; verdict and controls agree")  # fmt: skip


def _shape(a: Result, b: Result, at: str = "") -> str:
    """What is laid out differently; "" where all numbers have a partner."""
    if a.kind != b.kind or (a.effects is None) != (b.effects is None):
        return f"{at}one is a {a.kind}, the other a {b.kind}"
    if a.effects is not None and b.effects is not None and _labels(a.effects) != _labels(b.effects):
        return f"{at}the effects have other labels"
    for name, mine, theirs in (("tensors", set(a.tensors), set(b.tensors)), ("tables", set(a.tables), set(b.tables))):  # fmt: skip
        if mine != theirs:
            return f"{at}the {name} are not the same: {', '.join(sorted(mine ^ theirs))}"
    for key, tensor in a.tensors.items():
        if tensor.shape != b.tensors[key].shape:
            return f"{at}the tensor {key} has another shape"
    for key, table in a.tables.items():
        other = b.tables[key]
        if list(table.columns) != list(other.columns) or len(table) != len(other):
            return f"{at}the table {key} has other rows or columns"
    if len(a.children) != len(b.children):
        return f"{at}one has {len(a.children)} stages, the other {len(b.children)}"
    found = (_shape(c, d, f"{at}{c.kind}: ") for c, d in zip(a.children, b.children, strict=True))
    return next(filter(None, found), "")


def _labels(effects: Any) -> Any:
    return effects.dims, dict(effects.coords)


def _arrays(a: Result, b: Result, at: str = "") -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    if a.effects is not None and b.effects is not None:
        yield f"{at}effects", a.effects.values, b.effects.values
    for name, tensor in a.tensors.items():
        yield f"{at}tensor {name}", tensor, b.tensors[name]
    for name, table in a.tables.items():
        other = b.tables[name]
        for column in table.columns:
            if _numeric(table[column]) and _numeric(other[column]) and column != "seconds":
                yield f"{at}{name}.{column}", table[column].to_numpy(), other[column].to_numpy()
    for i, (c, d) in enumerate(zip(a.children, b.children, strict=True)):
        yield from _arrays(c, d, f"{at}{c.kind} {i + 1}: ")


def _words(a: Result, b: Result, at: str = "") -> Iterator[tuple[str, Any, Any]]:
    """What is no array: columns of text and lists, and the raw examples."""
    for name, table in a.tables.items():
        other = b.tables[name]
        for column in table.columns:
            if not (_numeric(table[column]) and _numeric(other[column])) and column != "seconds":
                yield f"{at}{name}.{column}", table[column].tolist(), other[column].tolist()
    yield f"{at}raw examples", a.raw_examples, b.raw_examples
    for i, (c, d) in enumerate(zip(a.children, b.children, strict=True)):
        yield from _words(c, d, f"{at}{c.kind} {i + 1}: ")


def _numeric(column: Any) -> bool:
    return column.dtype.kind in "fiub"


def _far(a: Any, b: Any) -> float:
    """How far two JSON-like values are apart: 0 equal, infinity for other words or another layout, else of their numbers."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = set(a) | set(b)
        return max((_far(a.get(k), b.get(k)) for k in keys if k != "seconds"), default=0.0)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return max(map(_far, a, b), default=0.0) if len(a) == len(b) else math.inf
    if isinstance(a, float) and isinstance(b, float):
        if a == b or (a != a and b != b):
            return 0.0
        apart = abs(a - b) / max(abs(a), abs(b), 1.0)  # a probability near 0 is not judged by itself
        return apart if math.isfinite(apart) else math.inf
    same = a == b or type(a).__name__ == type(b).__name__ == "NAType"
    return 0.0 if same else math.inf


def _apart(a: Any, b: Any) -> tuple[bool, float]:
    """(equal to the bit, largest difference relative to the largest number)."""
    import numpy as np

    if a.dtype.kind == b.dtype.kind and np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
        return a.dtype == b.dtype, 0.0
    if (
        a.dtype.kind != "f" or b.dtype.kind != "f"
    ):  # counts and ids are equal or not: a neighbour in a vocabulary is another word
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
