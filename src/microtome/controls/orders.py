"""Is an order of removal better than random orders? Own and random are exchangeable where it is not."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from microtome.errors import ControlError
from microtome.results import seeds

EXACT = 10_000
TIE = 1e-10


@dataclass(frozen=True)
class OrderTest:
    """p (one-sided: own is smaller), what it can reach, own mean, and the 95 % band of means of random orders."""

    p: float
    smallest_p: float
    own: float
    low: float
    high: float


def permute_own(own: ArrayLike, others: ArrayLike, *, seed: int, name: str, draws: int = 10_000) -> OrderTest:
    """Exchange an order with the random ones, within each prompt by itself.

    own: [prompt], others: [prompt, order]: the same statistic (an area) of the order under test and of random ones. Under the
    null each of a prompt's 1 + orders values is as likely to be the own one. Exact where the arrangements are at most 10,000.

    Raises ControlError for shapes that do not fit, no orders, or values that are not finite.
    """
    first, rest = np.asarray(own, np.float64), np.asarray(others, np.float64)
    if first.ndim != 1 or rest.ndim != 2 or len(first) != len(rest) or not rest.size:
        raise ControlError(f"Areas of shape {first.shape} and {rest.shape}.", why="one own value and some random ones per prompt")  # fmt: skip
    every = np.concatenate([first[:, None], rest], axis=1)
    if not np.isfinite(every).all():
        raise ControlError("An area is not finite.", why="a curve has values at every step")
    n, width = every.shape
    observed = float(first.mean())
    tie = TIE * max(1.0, float(np.abs(every).max()))
    ways = float(width) ** n
    if ways <= EXACT:
        means = every[0]
        for row in every[1:]:
            means = (means[:, None] + row).ravel()
        null, extra = means / n, 0
    else:
        pick = seeds.rng(seed, f"controls.permute_own/{name}").integers(width, size=(draws, n))
        null, extra = every[np.arange(n), pick].mean(axis=1), 1
    p = (int((null <= observed + tie).sum()) + extra) / (len(null) + extra)
    least = 1 / ways if extra == 0 else max(1 / ways, 1 / (draws + 1))
    random = seeds.rng(seed, f"controls.permute_own/{name}/band").integers(rest.shape[1], size=(2000, n))
    low, high = np.quantile(rest[np.arange(n), random].mean(axis=1), (0.025, 0.975))
    if math.isclose(p, least):
        p = least
    return OrderTest(p, least, observed, float(low), float(high))
