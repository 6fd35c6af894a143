"""The exact ROC of a ranking: every threshold, from (0, 0) to (1, 1), ties taken together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from microtome.errors import ControlError

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Roc:
    """A receiver operating characteristic.

    Shapes: thresholds [point] (falling; the first is infinite, where nothing is flagged), false, true [point] (rates of flags
    among negatives and among positives). area: under the curve, ties as straight lines (Mann-Whitney); positives,
    negatives: how many of each.
    """

    thresholds: FloatArray
    false: FloatArray
    true: FloatArray
    area: float
    positives: int
    negatives: int


def roc(scores: ArrayLike, truth: ArrayLike) -> Roc:
    """The ROC of flagging what scores at least a threshold, at every threshold that changes anything.

    Shapes: scores, truth [item]; larger scores are flagged first, items that tie are flagged together, -inf never before
    the last point. Published circuit benchmarks (MIB) take ten sizes and no (0, 0), which makes another number.

    Raises
    ------
    ControlError: shapes that differ, a NaN, or truth that has only one class.
    """
    values = np.asarray(scores, dtype=np.float64).reshape(-1)
    true = np.asarray(truth).reshape(-1)
    if values.shape != true.shape:
        raise ControlError(f"{values.size} scores and {true.size} truths.", why="each item has one of each")
    if np.isnan(values).any():
        raise ControlError("A score is NaN.", why="it has no place in a ranking", instead="-inf for what was never chosen")  # fmt: skip
    true = true.astype(bool)
    positives, negatives = int(true.sum()), int((~true).sum())
    if not positives or not negatives:
        raise ControlError(
            f"{positives} positives and {negatives} negatives.", why="a rate of none does not exist"
        )
    order = np.argsort(-values, kind="stable")
    ranked = values[order]
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    hits = np.cumsum(true[order])[ends]
    x = np.concatenate([[0.0], (ends + 1 - hits) / negatives])
    y = np.concatenate([[0.0], hits / positives])
    area = float(((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2).sum())
    return Roc(np.concatenate([[np.inf], ranked[ends]]), x, y, area, positives, negatives)
