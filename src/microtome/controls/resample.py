"""Bootstrap-t of a ratio of sums over clusters; a mean is the ratio of a cluster's sum to its size."""

from __future__ import annotations

import numpy as np

from microtome.controls.clusters import FloatArray
from microtome.errors import ControlError

BUDGET_BYTES = 64 * 2**20
"""Largest temporary array that resampling makes."""


def check_draws(draws: int, level: float) -> None:
    """Raise ControlError unless ten draws or more lie beyond each limit."""
    needed = int(np.ceil(20 / (1 - level)))
    if draws < needed:
        raise ControlError(
            f"{draws} draws are too few for a {level:.10g} interval.",
            why="fewer than ten resamples would lie beyond each limit",
            instead=f"draws={needed} or more",
        )


def bootstrap_t(
    numerator: FloatArray, denominator: FloatArray, *, level: float, draws: int, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Bootstrap-t limits of sum(numerator) / sum(denominator), resampling clusters jointly.

    numerator: [cell, cluster]; denominator: [cluster], its sum nonzero. The standard error is the linearised one,
    recomputed in every resample. Returns low, high, estimate: each [cell]. Memory stays under BUDGET_BYTES per
    temporary. Raises ControlError when the draws are too few for the level.
    """
    check_draws(draws, level)
    groups = denominator.size
    weights = rng.multinomial(groups, np.full(groups, 1 / groups), size=draws).astype(np.float64)
    estimate = numerator.sum(axis=1) / denominator.sum()
    # Residuals first: squares of small deviations would cancel badly against a large mean.
    residual = numerator - estimate[:, None] * denominator
    scale = groups / (groups - 1)
    error = np.sqrt(scale * (residual**2).sum(axis=1)) / abs(denominator.sum())
    total = weights @ denominator
    squared = weights @ denominator**2
    low, high = np.empty_like(estimate), np.empty_like(estimate)
    tail = (1 - level) / 2
    first, last = int(np.floor(tail * (draws - 1))), int(np.ceil((1 - tail) * (draws - 1)))
    chunk = max(1, BUDGET_BYTES // (8 * draws))
    for start in range(0, estimate.size, chunk):
        part = residual[start : start + chunk]
        shift = part @ weights.T / total
        square = part**2 @ weights.T - 2 * shift * ((part * denominator) @ weights.T) + shift**2 * squared
        # A resample of one cluster only has no spread; rounding must not give it a tiny one.
        scatter = np.where(square > 1e-12 * (part**2).sum(axis=1, keepdims=True), square, 0.0)
        spread = np.sqrt(scale * scatter) / np.abs(total)
        flat = np.where(shift == 0, 0.0, np.copysign(np.inf, shift))
        t = np.divide(shift, spread, out=flat, where=spread > 0)
        t.partition((first, last), axis=1)
        width = error[start : start + chunk]
        lower, upper = t[:, last], t[:, first]
        low[start : start + chunk] = estimate[start : start + chunk] - _times(lower, width)
        high[start : start + chunk] = estimate[start : start + chunk] - _times(upper, width)
    return low, high, estimate


def _times(quantile: FloatArray, width: FloatArray) -> FloatArray:
    """Product in which a cell without spread (width 0) has limits at its estimate, also at infinite quantiles."""
    return np.multiply(quantile, width, out=np.zeros_like(width), where=width > 0)
