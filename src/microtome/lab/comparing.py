"""Two runs beside each other: what was asked differently, and how the same effects differ, prompt by prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from microtome.errors import LabError
from microtome.results.frozen import dumps

if TYPE_CHECKING:
    import numpy as np

    from microtome.lab.reading import Record, RunRow
    from microtome.results import Labelled, Result

__all__ = ["Changed", "Comparison", "Difference", "compare", "parameters"]

ALPHA = 0.001


@dataclass(frozen=True)
class Difference:
    """One entry of the question (or of what decides numbers) that is not the same in both."""

    name: str
    first: Any
    second: Any


@dataclass(frozen=True)
class Changed:
    """One cell and metric in both runs.

    first, second: mean effects over the paired prompts. low, high: 95 % interval of the mean difference (second - first)
    over prompts. p: of a sign-flip of whole prompts, corrected for every cell of the family; NaN where nothing can be tested.
    null: half width of the band that the difference of a cell without one stays in. flipped: whether the effect changed its sign.
    """  # fmt: skip

    cell: Mapping[str, Any]
    first: float
    second: float
    low: float
    high: float
    p: float
    null: float
    flipped: bool

    @property
    def difference(self) -> float:
        """second - first."""
        return self.second - self.first


@dataclass(frozen=True)
class Comparison:
    """Two runs compared.

    asked: what differs in the question, the code, the numerics. cells: those in both, differences at ALPHA first, and of
    these and of the rest the changes of sign before the others, each by size. only_first, only_second: how many cells the other lacks. paired: prompts that both have, 0 where the two asked
    about different prompts (then there are no cells). same: whether every paired number is equal to the bit. why: a sentence
    on what could not be compared.
    """  # fmt: skip

    first: int
    second: int
    asked: tuple[Difference, ...]
    cells: tuple[Changed, ...]
    only_first: int
    only_second: int
    paired: int
    same: bool
    smallest_p: float
    why: str


def compare(record: Record, first: int | str, second: int | str, *, seed: int = 0) -> Comparison:
    """Compare two runs of one record.

    Raises LabError: a run without a result, or a run compared with itself.
    """
    a, b = record.run(first), record.run(second)
    if a.number == b.number:
        raise LabError(
            f"run {a.number} compared with itself", why="nothing can differ", instead="name another run"
        )
    one, two = record.result(a.number), record.result(b.number)
    asked = parameters(a, b)
    empty = Comparison(a.number, b.number, asked, (), 0, 0, 0, False, math.nan, "")
    why = _apart(a, b, one, two)
    if why or one.effects is None or two.effects is None:
        inner = "; the runs that they called may have them (microtome lab show)" if one.children else ""
        return _with(
            empty,
            why=why or f"there are no effects per prompt to pair{inner}",
            same=not why and _equal(one, two),
        )
    return _paired(empty, one.effects, two.effects, seed)


def parameters(a: RunRow, b: RunRow) -> tuple[Difference, ...]:
    """What differs between two runs, in one flat list; what is the same is left out."""
    mine, theirs = _flat(a), _flat(b)
    names = [*mine, *(name for name in theirs if name not in mine)]
    missing = "(not there)"
    found = ((n, mine.get(n, missing), theirs.get(n, missing)) for n in names)
    # as JSON: True is not 1 there, and NaN is NaN
    return tuple(Difference(n, x, y) for n, x, y in found if dumps(x) != dumps(y))


def _flat(row: RunRow) -> dict[str, Any]:
    asked = row.question
    flat: dict[str, Any] = {
        "method": row.method, "version": row.version, "model": f"{row.model_name} {row.model[:12]}".strip(),
        "task": f"{row.family} {row.task[:12]}".strip() if row.task else "", "data": row.data[:12], "seed": row.seed,
    }  # fmt: skip
    flat |= {f"numerics.{k}": v for k, v in asked.get("numerics", {}).items()}
    flat |= {f"parameter {k}" if k in flat else k: v for k, v in asked.get("parameters", {}).items()}
    return {**flat, "code": row.code[:12]}


def _apart(a: RunRow, b: RunRow, one: Result, two: Result) -> str:
    if one.kind != two.kind:
        return f"a {one.kind} and a {two.kind} have no cell in common"
    if (a.task, a.data) != (b.task, b.data):
        return "the prompts are not the same, so no prompt has a partner; means are in both reports"
    if one.effects is not None and two.effects is not None and one.effects.dims != two.effects.dims:
        return f"the effects are laid out differently: {one.effects.dims} and {two.effects.dims}"
    return ""


def _equal(one: Result, two: Result) -> bool:
    """Whether all numbers are equal, whatever was asked."""
    from microtome.lab.equality import compared

    return compared(one, two).largest == 0


def _with(base: Comparison, **values: Any) -> Comparison:
    from dataclasses import replace

    return replace(base, **values)


def _paired(base: Comparison, one: Labelled, two: Labelled, seed: int) -> Comparison:
    import numpy as np

    dims = one.dims
    theirs = {d: set(two.coords[d]) for d in dims}
    both = {d: [x for x in one.coords[d] if x in theirs[d]] for d in dims}
    if not all(both.values()):
        gap = next(d for d in dims if not both[d])
        return _with(base, why=f"they have no {gap} in common")
    a, b = one.sel(**both).values, two.sel(**both).values
    prompts = len(both["prompt"])
    cells = [d for d in dims if d != "prompt"]
    x, y = (np.moveaxis(v, dims.index("prompt"), -1).reshape(-1, prompts).astype(np.float64) for v in (a, b))
    total = [math.prod(len(s.coords[d]) for d in cells) for s in (one, two)]
    labels = [dict(zip(cells, [both[d][i] for d, i in zip(cells, at, strict=True)], strict=True))
              for at in np.ndindex(*[len(both[d]) for d in cells])]  # fmt: skip
    kept = np.asarray(np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1))
    same = bool(np.array_equal(a, b, equal_nan=True))
    changed, smallest = _cells(x[kept], y[kept], [c for c, k in zip(labels, kept, strict=True) if k], seed)
    lost = int((~kept).sum())
    why = f"{lost} cells are not measured on every prompt, and left out" if lost else ""
    return _with(base, cells=changed, only_first=total[0] - len(labels), only_second=total[1] - len(labels), paired=prompts,
                 same=same and total[0] == total[1] == len(labels), smallest_p=smallest, why=why)  # fmt: skip


def _cells(
    x: np.ndarray, y: np.ndarray, labels: list[dict[str, Any]], seed: int
) -> tuple[tuple[Changed, ...], float]:
    import numpy as np

    from microtome.controls.intervals import mean_interval
    from microtome.controls.signflip import sign_flip

    delta = y - x
    n = delta.shape[1] if delta.ndim == 2 else 0
    still = np.all(delta == 0, axis=1)
    p, band = np.full(len(labels), math.nan), np.full(len(labels), math.nan)
    low, high = np.zeros(len(labels)), np.zeros(len(labels))
    smallest = math.nan
    if n > 1 and not still.all():
        test = sign_flip(delta, range(n), seed=seed, alpha=ALPHA, structurally_zero=still)
        between = mean_interval(delta, range(n), of="prompts")
        p, band, low, high, smallest = test.p, test.null_high, between.low, between.high, test.smallest_p
    first, second = x.mean(axis=1), y.mean(axis=1)
    rows = [
        Changed(cell, float(first[i]), float(second[i]), float(low[i]), float(high[i]), float(p[i]), float(band[i]),
                bool(np.sign(first[i]) * np.sign(second[i]) < 0))
        for i, cell in enumerate(labels)
    ]  # fmt: skip
    rows.sort(key=lambda row: (not row.p <= ALPHA, not row.flipped, -abs(row.difference)))
    return tuple(rows), smallest
