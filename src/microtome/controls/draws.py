"""A measured map against the same map measured on null draws, corrected for the number of cells by the maximum.

For a null that is a whole experiment done again (another model with random weights of the same size, another shuffle): the
real one and the draws are exchangeable if the null holds, so the rank of the real one's largest cell is an exact p.

The statistic of a cell is (x - mean of all others) / (sd of all others + softening), the others being the real one and all
draws but the one at hand. Every one of them is treated alike, so the ranks stay exact however few the draws; the softening
(the lower quartile of the cells' sd, as in SAM: Tusher, Tibshirani & Chu 2001) keeps a cell without spread from always winning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from microtome.controls.clusters import FloatArray
from microtome.errors import ControlError

TIE = 1e-9
"""Statistics nearer than this, relative to their size, are equal: a tie counts against the real one."""


@dataclass(frozen=True)
class DrawTest:
    """One-sided test (larger than the draws) of every cell against the largest cell of each draw.

    statistic, p, expected, null_high, null_low: [cell]; NaN outside the family. p holds for the family; expected is the
    mean of the draws, null_low their smallest value, and at level alpha no null cell of the family lies above its null_high.
    peaks: [1 + draw], the largest statistic of the real one and of each draw. smallest_p: what so many draws can reach.
    """

    statistic: FloatArray
    p: FloatArray
    expected: FloatArray
    null_low: FloatArray
    null_high: FloatArray
    peaks: FloatArray
    alpha: float
    n_cells: int

    @property
    def n_draws(self) -> int:
        """Draws of the null."""
        return len(self.peaks) - 1

    @property
    def smallest_p(self) -> float:
        """1 / (draws + 1)."""
        return 1 / len(self.peaks)

    @property
    def min_p(self) -> float:
        """The p of the family."""
        return _rank(self.peaks)

    @property
    def significant(self) -> NDArray[np.bool_]:
        """Cells whose family-wise p is at most alpha, [cell]; False outside the family."""
        return np.asarray(self.p <= self.alpha)


def against_draws(
    real: ArrayLike,
    draws: ArrayLike,
    *,
    alpha: float = 0.05,
    outside: ArrayLike | None = None,
    studentised: bool = True,
    least: float = 0.0,
) -> DrawTest:
    """Test every cell of a map against draws of its null.

    real: [cell]; draws: [draw, cell]; outside: bool [cell], cells that cannot differ and leave the family; studentised: False
    for cells that share a unit and a scale: with many cells and few draws, the smallest sd among them is chance. least: a cell
    counts, in a draw as in the real map, only where it lies this far above the mean of the others: a null of little spread
    would else make a finding of a difference that nobody would look at.

    Raises ControlError for fewer than three draws, values that are not finite, or an empty family.
    """
    values = np.vstack([np.asarray(real, np.float64)[None], np.asarray(draws, np.float64)])
    n, cells = values.shape
    if n < 4:
        raise ControlError(
            f"{n - 1} draws are no null distribution.", why="their spread is not known", instead="draws=19"
        )
    family = np.ones(cells, bool) if outside is None else ~np.asarray(outside, bool)
    if not family.any():
        raise ControlError("No cell can differ.", why="the family of the test is empty")
    if not np.isfinite(values[:, family]).all():
        raise ControlError("A cell or a draw is not finite.", why="it has no rank")
    part = values[:, family]
    plain, scale, mean = _left_out(part, how="soft" if studentised else "plain")
    z = np.where(part - mean > least, plain, np.minimum(plain, 0.0)) if least else plain
    peaks = z.max(axis=1)
    if least:
        peaks = np.maximum(peaks, 0.0)
    hits = (peaks[1:, None] >= z[0] - TIE * np.maximum(1.0, np.abs(z[0]))).sum(0)
    spare = int(np.floor(alpha * n * (1 + 1e-12))) - 1
    ordered = np.sort(peaks[1:])[::-1]
    critical = ordered[max(spare, 0)]  # too few draws for alpha: the whole range of the null
    high = mean[0] + np.maximum(critical * scale[0], least)

    def whole(x: FloatArray) -> FloatArray:
        out = np.full(cells, np.nan)
        out[family] = x
        return out

    return DrawTest(
        statistic=whole(plain[0]),
        p=whole((1 + hits) / n),
        expected=whole(mean[0]),
        null_low=whole(part[1:].min(axis=0)),
        null_high=whole(np.maximum(high, part[1:].min(axis=0))),
        peaks=peaks,
        alpha=alpha,
        n_cells=int(family.sum()),
    )


def stricter(one: DrawTest, other: DrawTest) -> DrawTest:
    """A test that calls a cell where both do, of the same cells against two nulls. Its p is the larger one, so it keeps the level
    wherever one of the two does; peaks are the first one's.
    """
    return replace(
        one,
        statistic=np.minimum(one.statistic, other.statistic),
        p=np.maximum(one.p, other.p),
        null_low=np.minimum(one.null_low, other.null_low),
        null_high=np.maximum(one.null_high, other.null_high),
    )


def combined_p(tests: Sequence[DrawTest]) -> float:
    """One p for several families that share their draws: the largest of their peaks, each family brought to one scale.

    Raises ControlError without a test, or when their draws are not the same number.
    """
    if not tests or len({t.n_draws for t in tests}) != 1:
        raise ControlError(
            "These tests do not share their draws.", why="their peaks cannot be ranked together"
        )
    peaks = np.stack([t.peaks for t in tests], axis=1)
    z, _, _ = _left_out(peaks, how="hard")
    return _rank(z.max(axis=1))


def _left_out(
    values: FloatArray, *, how: Literal["soft", "hard", "plain"]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(statistic, its divisor, mean of the others), each [row, cell]: every row against all other rows."""
    n = len(values)
    centre = np.median(values, axis=0)
    x = values - centre
    total, square = x.sum(0), (x**2).sum(0)
    mean = (total - x) / (n - 1)
    variance = (square - x**2 - (n - 1) * mean**2) / (n - 2)
    # rounding of the two sums leaves this much where the others agree to the bit
    spread = np.sqrt(np.where(variance > 1e-14 * square, variance, 0.0))
    scale = spread + (np.quantile(spread, 0.25, axis=1, keepdims=True) if how == "soft" else 0.0)
    scale = np.ones_like(scale) if how == "plain" else scale
    gap = x - mean
    gap[np.abs(gap) <= 1e-14 * (np.abs(values) + np.abs(centre))] = 0.0
    z = np.divide(gap, scale, out=np.where(gap == 0, 0.0, np.sign(gap) * 1e12), where=scale > 0)
    return z, np.broadcast_to(scale, z.shape), mean + centre


def _rank(peaks: FloatArray) -> float:
    """p of the first among all, ties against it."""
    return float((1 + (peaks[1:] >= peaks[0] - TIE * max(1.0, abs(peaks[0]))).sum()) / len(peaks))
