"""A factor's effect within matched sets: levels exchanged inside whole clusters of sets.

Under the null the levels of a factor are interchangeable within a matched set (everything else of the prompt is the same). The
test permutes them within each cluster, all its sets alike, so that sets that share an entity count once. The statistic is the
sum over levels of the squared mean of centred values; with two levels this is the sign-flip test of the paired difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from microtome.controls.clusters import FloatArray, as_clusters
from microtome.controls.intervals import Labels
from microtome.controls.signflip import TIE
from microtome.errors import ControlError
from microtome.results import seeds

CHUNK = 4096


@dataclass(frozen=True)
class FactorTest:
    """p of one factor, and what its design can reach.

    limit: the statistic's critical value at alpha as a difference between two levels, in the unit of the values (with more
    than two levels no difference beyond it is in the null).
    """

    statistic: float
    p: float
    smallest_p: float
    limit: float
    n_sets: int
    n_clusters: int
    exact: bool


def permute_levels(
    values: ArrayLike,
    clusters: Labels,
    *,
    seed: int,
    name: str = "factor",
    alpha: float = 0.001,
    draws: int = 10_000,
) -> FactorTest:
    """Permute the levels of a factor within matched sets.

    values: [set, level]; clusters: [set]. Exact where the distinct arrangements are at most `draws`, else that many random
    ones with p = (1 + hits) / (1 + draws).

    Raises ControlError for values that are not finite, fewer than two levels, or no sets.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] < 2 or not table.size or not np.isfinite(table).all():
        raise ControlError(f"Values of shape {table.shape} for matched sets of levels.", why="each set has one finite value per level, at least two",
                           instead="leave sets out that lack a level")  # fmt: skip
    index = as_clusters(clusters)
    if index.n != len(table):
        raise ControlError(f"{index.n} cluster labels for {len(table)} sets.", why="each set has one")
    centred = table - table.mean(axis=1, keepdims=True)
    sums = index.sums(centred.T).T / len(table)  # [cluster, level], adding up to the means
    n_levels, groups = table.shape[1], index.n_clusters
    ways = math.factorial(n_levels)
    # one cluster may stay as it is: renaming all levels alike changes nothing in the statistic
    distinct = float(ways) ** (groups - 1)
    exact = distinct <= draws
    orders = np.array(list(permutations(range(n_levels))), dtype=np.int64)
    observed = float((sums.sum(axis=0) ** 2).sum())
    null = _exact(sums, orders) if exact else _random(sums, orders, draws, seeds.rng(seed, f"controls.permute_levels/{name}"))  # fmt: skip
    extra = 0 if exact else 1
    hits = int((null >= observed * TIE).sum())
    p = min(1.0, (hits + extra) / (len(null) + extra))
    least = 1 / distinct if exact else max(1 / distinct, 1 / (draws + 1))
    allowed = max(math.floor(alpha * (len(null) + extra) * (1 + 1e-12)) - extra, 0)
    critical = float(np.sort(null)[-1 - min(allowed, len(null) - 1)])
    return FactorTest(observed, p, least, math.sqrt(2 * critical), len(table), groups, exact)


def _exact(sums: FloatArray, orders: NDArray[np.int64]) -> FloatArray:
    first, rest = sums[:1], sums[1:]
    options = [row[orders] for row in rest]  # per cluster [way, level]
    if not options:
        return np.array([float((first.sum(axis=0) ** 2).sum())])
    out = np.empty(len(orders) ** len(options))
    for k, chosen in enumerate(product(range(len(orders)), repeat=len(options))):
        total = first[0] + sum(option[c] for option, c in zip(options, chosen, strict=True))
        out[k] = (total**2).sum()
    return out


def _random(
    sums: FloatArray, orders: NDArray[np.int64], draws: int, generator: np.random.Generator
) -> FloatArray:
    parts = []
    for start in range(0, draws, CHUNK):
        n = min(CHUNK, draws - start)
        which = generator.integers(len(orders), size=(n, len(sums)))
        moved = np.take_along_axis(np.broadcast_to(sums, (n, *sums.shape)), orders[which], axis=2)
        parts.append((moved.sum(axis=1) ** 2).sum(axis=1))
    return np.concatenate(parts)
