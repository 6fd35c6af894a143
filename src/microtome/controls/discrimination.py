"""How well scores tell two classes apart, as means over items where that is possible, so that intervals by cluster apply.

The area under the ROC curve is the mean of placements (DeLong, DeLong & Clarke-Pearson 1988); weighted by class they have
the AUROC as their mean and its clustered variance (Obuchowski 1997) as theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from microtome.controls.clusters import FloatArray
from microtome.errors import ControlError


def auroc(scores: ArrayLike, truth: ArrayLike) -> FloatArray:
    """Area under the ROC curve of every column: scores and truth [item, column] or [item] -> [column].

    Either may be one column for all. Ties count half. Raises ControlError for a column without both classes, or scores that
    are not finite.
    """
    values, labels = _columns(scores, truth)
    ranks = stats.rankdata(values, axis=0)
    m = labels.sum(0)
    wins = np.where(labels, ranks, 0.0).sum(0) - m * (m + 1) / 2
    out: FloatArray = wins / (m * (labels.shape[0] - m))
    return out


def auroc_items(scores: ArrayLike, truth: ArrayLike) -> FloatArray:
    """One number per item whose mean is the AUROC: [item] -> [item].

    A positive's is the AUROC plus its placement's deviation, weighted by n / positives (negatives likewise), so that the
    clustered variance of the mean is that of the AUROC; a single one may lie outside [0, 1].
    """
    both = _columns(scores, truth)
    values, labels = both[0][:, 0], both[1][:, 0]
    ranks = stats.rankdata(values)
    place = np.empty(values.size)
    for side in (True, False):
        own: NDArray[np.bool_] = np.equal(labels, side)
        beaten = (ranks[own] - stats.rankdata(values[own])) / (~own).sum()
        place[own] = beaten if side else 1 - beaten
    area = float(place[labels].mean())
    weight = values.size / np.where(labels, labels.sum(), (~labels).sum())
    return np.asarray(area + weight * (place - area), dtype=np.float64)


@dataclass(frozen=True)
class Calibration:
    """Reliability of probabilities. Bins of equal count: predicted, observed [bin] means, n [bin]; ece weights |difference|
    by n (Naeini et al. 2015); brier is the mean squared error, brier_base that of always saying the base rate."""

    predicted: FloatArray
    observed: FloatArray
    n: NDArray[np.int64]
    ece: float
    brier: float
    brier_base: float


def calibration(probability: ArrayLike, truth: ArrayLike, *, bins: int = 10) -> Calibration:
    """How far probabilities [item] are from frequencies. Raises ControlError for values outside [0, 1] or no items."""
    p, y = np.asarray(probability, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if p.ndim != 1 or p.shape != y.shape or not p.size or not ((p >= 0) & (p <= 1)).all():
        raise ControlError(f"Probabilities of shape {p.shape} for labels {y.shape} cannot be calibrated.",
                           why="one number in [0, 1] per item is needed")  # fmt: skip
    parts = [part for part in np.array_split(np.argsort(p, kind="stable"), min(bins, p.size)) if part.size]
    n = np.array([part.size for part in parts], dtype=np.int64)
    said, seen = (np.array([v[part].mean() for part in parts]) for v in (p, y))
    ece = float((np.abs(said - seen) * n).sum() / p.size)
    return Calibration(said, seen, n, ece, float(((p - y) ** 2).mean()), float(((y.mean() - y) ** 2).mean()))


def _columns(scores: ArrayLike, truth: ArrayLike) -> tuple[FloatArray, NDArray[np.bool_]]:
    values, labels = np.asarray(scores, dtype=np.float64), np.asarray(truth, dtype=bool)
    values = values[:, None] if values.ndim == 1 else values
    labels = labels[:, None] if labels.ndim == 1 else labels
    if values.ndim != 2 or values.shape[0] != labels.shape[0]:
        raise ControlError(f"Scores of shape {values.shape} for labels of shape {labels.shape}.")
    if not np.isfinite(values).all():
        raise ControlError("A score is not finite.", why="it has no rank")
    if labels.all(0).any() or not labels.any(0).all():
        raise ControlError(
            "Labels of one class only.", why="an AUROC compares two", instead="labels of both kinds"
        )
    return values, labels
