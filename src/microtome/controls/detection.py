"""How well a score tells some tokens from others: the area under the ROC with an interval that knows of documents.

Tokens of one document are alike, so they are no independent evidence; the variance is that of sums over documents of what each
token adds to the area (Obuchowski, Biometrics 53, 1997; DeLong et al. 1988 without clusters).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from microtome.controls.clusters import Clusters, as_clusters, check_level
from microtome.errors import ControlError

__all__ = ["Area", "area", "areas"]


@dataclass(frozen=True)
class Area:
    """P(a positive scores above a negative), ties half. low, high: limits, NaN with fewer than two clusters.

    n: tokens; positives among them; clusters: documents.
    """

    value: float
    low: float
    high: float
    n: int
    positives: int
    clusters: int


def areas(scores: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """The area of each column. Shapes: scores [item] or [item, column], truth [item, column] -> [column].

    Raises
    ------
    ControlError: shapes that do not match, a score that is not finite, or a column with one class only.
    """
    true = np.asarray(truth, bool)
    values = np.asarray(scores, np.float64)
    if (
        true.ndim != 2
        or values.shape[0] != true.shape[0]
        or (values.ndim == 2 and values.shape != true.shape)
    ):
        raise ControlError(f"scores {values.shape} and truth {true.shape}", why="each item has a score and a truth in every column")  # fmt: skip
    if not np.isfinite(values).all():
        raise ControlError("a score is not finite", why="it has no place in a ranking")
    positives = true.sum(0)
    if ((positives == 0) | (positives == len(true))).any():
        raise ControlError("a column has one class only", why="there is nothing to tell apart", instead="another threshold, or more items")  # fmt: skip
    rank = stats.rankdata(values, axis=0)
    rank = rank[:, None] if rank.ndim == 1 else rank
    above = (rank * true).sum(0) - positives * (positives + 1) / 2
    return np.asarray(above / (positives * (len(true) - positives)), np.float64)


def area(scores: ArrayLike, truth: ArrayLike, clusters: Clusters | Sequence[int] | NDArray[np.generic], *, level: float = 0.95) -> Area:  # fmt: skip
    """The area with its interval. Shapes: scores, truth, clusters [item] (or made by `as_clusters`, once for many).

    Raises
    ------
    ControlError: as `areas`.
    """
    values, true = np.asarray(scores, np.float64), np.asarray(truth, bool)
    value = float(areas(values, true[:, None])[0])
    index = clusters if isinstance(clusters, Clusters) else as_clusters(np.asarray(clusters))
    n_true, n_false = int(true.sum()), int((~true).sum())
    # the share of negatives below each positive, and of positives above each negative
    low_side, high_side = np.sort(values[~true]), np.sort(values[true])
    part = np.empty(len(values))
    part[true] = _midrank(low_side, values[true]) / n_false - value
    part[~true] = 1 - _midrank(high_side, values[~true]) / n_true - value
    part /= np.where(true, n_true, n_false)
    sums = np.bincount(index.codes, part, index.n_clusters)
    g = index.n_clusters
    if g < 2:
        return Area(value, float("nan"), float("nan"), len(values), n_true, g)
    error = float(np.sqrt(g / (g - 1) * (sums**2).sum()))
    reach = float(stats.t.ppf(1 - (1 - check_level(level)) / 2, g - 1)) * error
    return Area(value, max(0.0, value - reach), min(1.0, value + reach), len(values), n_true, g)


def _midrank(ordered: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many of `ordered` lie below each of `at`, ties counted half."""
    below, upto = np.searchsorted(ordered, at, "left"), np.searchsorted(ordered, at, "right")
    return np.asarray((below + upto) / 2, np.float64)
