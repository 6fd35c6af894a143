"""Marks of one reading against the truth, and their rates over models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from microtome.controls.intervals import mean_interval, proportion_interval
from microtome.errors import ControlError

if TYPE_CHECKING:
    from microtome.zoo.calibrate.adapters import Reading
    from microtome.zoo.calibrate.truths import Truth

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
ROUNDING = 1e-5
"""Of the largest effect: how far rounding moves an effect that is 0."""


@dataclass(frozen=True)
class Mark:
    """One reading of one specimen, marked.

    true, null, undecided: parts that the reading is about. hits, alarms: flagged true and flagged null ones. auroc: of the
    scores, true against null (None where there are none of either). covered, intervals: null parts whose interval has 0 in
    it (up to rounding), of those that have one.
    """

    true: int
    null: int
    undecided: int
    hits: int
    alarms: int
    auroc: float | None
    covered: int = 0
    intervals: int = 0

    def rates(self) -> dict[str, float]:
        """recall, false discoveries, false alarms, auroc; NaN where there is nothing to count."""
        nan, flagged = float("nan"), self.hits + self.alarms
        return {
            "recall": self.hits / self.true if self.true else nan,
            "false discoveries": self.alarms / flagged if flagged else nan,
            "false alarms": self.alarms / self.null if self.null else nan,
            "auroc": nan if self.auroc is None else self.auroc,
        }

    def data(self) -> dict[str, Any]:
        """As JSON-able data."""
        return asdict(self)


def mark(reading: Reading, truth: Truth) -> Mark:
    """Count a reading against the truth. A part that the truth does not know is an error of the adapter.

    Raises
    ------
    ControlError: a part of which the truth says nothing, or one part twice.
    """
    names = list(reading.names)
    known = truth.true | truth.null | truth.undecided
    if strange := [n for n in names if n not in known] or sorted({n for n in names if names.count(n) > 1}):
        raise ControlError(f"a reading about {strange[0]!r}", why="each part is marked once against the specimen's truth",
                           instead="names as in its mechanism")  # fmt: skip
    true = np.array([n in truth.true for n in names], dtype=bool)
    null = np.array([n in truth.null for n in names], dtype=bool)
    flags = reading.flags
    inside: Bools = np.zeros(len(names), dtype=bool)
    has = inside
    if reading.low is not None and reading.high is not None:
        has = null & np.isfinite(reading.low) & np.isfinite(reading.high)
        near = ROUNDING * float(np.abs(reading.scores).max(initial=0.0))
        inside = has & (reading.low <= near) & (reading.high >= -near)
    return Mark(
        true=int(true.sum()),
        null=int(null.sum()),
        undecided=int((~true & ~null).sum()),
        hits=int((flags & true).sum()),
        alarms=int((flags & null).sum()),
        auroc=auroc(reading.scores[true], reading.scores[null]),
        covered=int(inside.sum()),
        intervals=int(has.sum()),
    )


def auroc(true: Floats, null: Floats) -> float | None:
    """The chance that a true part scores above a null one, ties counting one half, exactly (Mann-Whitney).

    Shapes: true [part], null [part]. None where one of them is empty.
    """
    if not len(true) or not len(null):
        return None
    order = np.sort(null)
    below, upto = np.searchsorted(order, true, "left"), np.searchsorted(order, true, "right")
    return float((below + upto).sum() / (2 * len(true) * len(null)))


def rate(values: Sequence[float], clusters: Sequence[str]) -> dict[str, Any]:
    """Mean over models and its 0.95 interval; NaN values are models in which there was nothing to count.

    clusters: which models are variants of one (one program with other decoys). Where every model gives 0 or 1, the exact
    binomial interval (Clopper-Pearson, of as many models as the clusters are worth), else the cluster t interval, kept in
    [0, 1]. n: models; "clusters": different ones among them. Without an interval (one model) low and high are None.
    """
    x = np.asarray(values, dtype=np.float64)
    use = np.isfinite(x)
    labels = [c for c, u in zip(clusters, use, strict=True) if u]
    x = x[use]
    if not len(x):
        return {"value": None, "low": None, "high": None, "n": 0, "clusters": 0}
    counts = {"n": len(x), "clusters": len(set(labels))}
    if np.isin(x, (0.0, 1.0)).all():
        interval = proportion_interval(x, labels, of="programs")
    else:
        interval = mean_interval(x, labels, of="programs")
    low, high = float(interval.low), float(interval.high)
    limits = (None, None) if np.isnan(low) else (max(low, 0.0), min(high, 1.0))
    return {"value": float(x.mean()), "low": limits[0], "high": limits[1], **counts}
