"""Two samples of named outcomes: how far apart their distributions are, with an interval and a permutation null."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from microtome.errors import ControlError
from microtome.results import seeds

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
SMOOTHING = 0.5
"""Added to every count before KL (Jeffreys)."""


@dataclass(frozen=True)
class Shift:
    """The second sample against the first.

    tv: total variation, half the summed |differences| of shares, 0 to 1. kl: KL(second || first) of smoothed shares, nats. low,
    high: 95 % bootstrap percentiles of tv over samples (tv of samples is biased upwards: compare with the null, not with 0).
    null_high: the 95th percentile of tv with samples shuffled between the two. p: of tv, by that shuffling; smallest_p: what these
    numbers of samples can reach.
    """

    tv: float
    kl: float
    low: float
    high: float
    null_high: float
    p: float
    smallest_p: float


def counts(outcomes: Sequence[str], names: Sequence[str]) -> Ints:
    """How often each name is among the outcomes. Raises ControlError for an outcome without a name."""
    if strange := set(outcomes) - set(names):
        raise ControlError(f"The outcome {sorted(strange)[0]!r} has no name.", why=f"names: {', '.join(names)}")  # fmt: skip
    return np.array([sum(o == n for o in outcomes) for n in names], dtype=np.int64)


def total_variation(first: ArrayLike, second: ArrayLike) -> Floats:
    """Of counts [..., name] each."""
    a, b = (np.asarray(x, np.float64) for x in (first, second))
    return np.asarray(0.5 * np.abs(a / a.sum(-1, keepdims=True) - b / b.sum(-1, keepdims=True)).sum(-1))


def divergence(first: ArrayLike, second: ArrayLike) -> float:
    """KL(second || first) of counts [name], smoothed, in nats."""
    a, b = (np.asarray(x, np.float64) + SMOOTHING for x in (first, second))
    p, q = b / b.sum(), a / a.sum()
    return float((p * np.log(p / q)).sum())


def shuffled_p(first: Ints, second: Ints, rng: np.random.Generator, draws: int) -> tuple[float, Floats]:
    """p of the total variation of two samples (counts [name]) and that of `draws` shufflings of them, [draw]."""
    pooled = first + second
    shuffled = rng.multivariate_hypergeometric(pooled, int(first.sum()), size=draws)
    null = total_variation(shuffled, pooled - shuffled)
    hits = int((null >= float(total_variation(first, second)) - 1e-12).sum())
    return (1 + hits) / (1 + draws), null


def compare(first: ArrayLike, second: ArrayLike, *, seed: int, name: str, draws: int = 9_999) -> Shift:
    """Compare two samples given as counts [name].

    Raises ControlError for counts that are negative, empty, or of different length.
    """
    a, b = (np.asarray(x, np.int64) for x in (first, second))
    if a.ndim != 1 or a.shape != b.shape or (a < 0).any() or (b < 0).any() or not a.sum() or not b.sum():
        raise ControlError(f"Counts {a.tolist()} and {b.tolist()}.", why="two samples of the same outcomes, neither empty")  # fmt: skip
    tv = float(total_variation(a, b))
    rng = seeds.rng(seed, f"controls.compare/{name}")
    p, null = shuffled_p(a, b, rng, draws)
    n = int(a.sum())
    least = max(1 / (1 + draws), min(1.0, 2 / math.comb(int((a + b).sum()), n)))
    again = total_variation(
        rng.multinomial(n, a / n, size=2000), rng.multinomial(int(b.sum()), b / b.sum(), size=2000)
    )
    low, high = np.quantile(again, (0.025, 0.975))
    return Shift(tv, divergence(a, b), float(min(low, tv)), float(max(high, tv)), float(np.quantile(null, 0.95)), max(p, least), least)  # fmt: skip
