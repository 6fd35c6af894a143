"""Many group-wise shuffles of labels at once, as columns: what a probe can do when its labels mean nothing.

Groups with one label exchange it whole with other such groups, groups with several labels permute theirs within.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from microtome.controls.clusters import Clusters, as_clusters
from microtome.controls.intervals import Labels
from microtome.errors import ControlError
from microtome.results import seeds

BoolArray = NDArray[np.bool_]
_TRIES = 50


@dataclass(frozen=True)
class Shuffles:
    """Shuffled labels [item, draw], and the smallest p that so many draws of so many arrangements can reach.

    Drawn with `differ` there may be fewer columns than were asked for: as many as there are arrangements. With `scored`, arrangements are counted there: a probe that knows nothing orders few groups rightly by chance.
    """

    labels: BoolArray
    smallest_p: float


def shuffled_columns(
    labels: ArrayLike,
    groups: Labels,
    *,
    draws: int,
    seed: int,
    parts: Sequence[ArrayLike] = (),
    scored: ArrayLike | None = None,
    differ: bool = False,
    name: str = "shuffles",
) -> Shuffles:
    """`draws` group-wise shuffles of two-valued labels [item].

    parts: sets of items that must each keep both classes (a split's parts: without both a probe cannot be fitted or
    scored); other shuffles are drawn again. The labels as they are meet this too, so a permutation test stays exact.
    scored: the items on which a statistic is computed (None: all), for `smallest_p`.
    differ: no arrangement comes twice, nor the labels as they are: for nulls among which the real one is ranked. Then its rank has
    the chance that p = (1 + as large) / (1 + draws) says, however few arrangements there are; drawn with replacement, twelve items of
    two classes in six groups would give p <= .05 in 7 %. Fewer columns than `draws` come where there are fewer arrangements.

    Raises ControlError when every label is the same, when nothing can be exchanged, or when no shuffle fits the parts.
    """
    truth, index = np.asarray(labels, dtype=bool), as_clusters(groups)
    if truth.shape != (index.n,):
        raise ControlError(f"{truth.shape} labels for {index.n} grouped items.")
    ways = _log_ways(truth, index)
    if truth.all() or not truth.any() or ways <= 0:
        raise ControlError("No shuffle differs from the labels.", why="one class only, or groups that leave nothing to exchange",
                           instead="labels of both kinds, in several groups")  # fmt: skip
    rng = seeds.rng(seed, f"controls.{name}")
    kept = np.empty((truth.size, 0), dtype=bool)
    for _ in range(_TRIES):
        columns = _draw(truth, index, draws, rng)
        good = np.ones(draws, dtype=bool)
        for part in parts:
            rows = columns[np.asarray(part, dtype=np.int64)]
            good &= rows.any(0) & ~rows.all(0)
        if differ:
            good &= (columns != truth[:, None]).any(0)
        kept = np.concatenate([kept, columns[:, good]], 1)
        kept = _distinct(kept) if differ else kept
        if kept.shape[1] >= draws or (differ and kept.shape[1] >= round(math.exp(min(ways, 30.0))) - 1):
            break
    if kept.shape[1] < (1 if differ else draws):
        raise ControlError("Almost no shuffle leaves both classes in every part.", why="too few groups carry a label each",
                           instead="more groups, or fewer parts")  # fmt: skip
    if scored is not None:
        at = np.asarray(scored, dtype=np.int64)
        ways = min(ways, _log_ways(truth[at], as_clusters(index.codes[at])))
    kept = kept[:, :draws]
    return Shuffles(kept, max(math.exp(-min(ways, 700.0)), 1 / (kept.shape[1] + 1)))


def _distinct(columns: BoolArray) -> BoolArray:
    """Each column once, in order of first appearance."""
    return columns[:, np.sort(np.unique(columns, axis=1, return_index=True)[1])]


def _draw(truth: BoolArray, index: Clusters, draws: int, rng: np.random.Generator) -> BoolArray:
    """[item, draw]: whole labels among pure groups, single ones within mixed groups."""
    hits = np.bincount(index.codes, truth, minlength=index.n_clusters)
    pure = (hits == 0) | (hits == index.sizes)
    out = np.empty((index.n, draws), dtype=bool)
    whole = np.flatnonzero(pure)
    if whole.size:
        own = np.zeros((index.n_clusters, draws), dtype=bool)
        own[whole] = rng.permuted(np.tile((hits[whole] > 0)[:, None], (1, draws)), axis=0)
        out[pure[index.codes]] = own[index.codes[pure[index.codes]]]
    inside = np.flatnonzero(~pure[index.codes])
    if inside.size:
        inside = inside[np.argsort(index.codes[inside], kind="stable")]
        order = np.argsort(index.codes[inside][:, None] + rng.random((inside.size, draws)), axis=0)
        out[inside] = truth[inside][order]
    return out


def _log_ways(truth: BoolArray, index: Clusters) -> float:
    """log of the number of distinct arrangements."""
    hits = np.bincount(index.codes, truth, minlength=index.n_clusters).astype(int)
    pure = (hits == 0) | (hits == index.sizes)
    total = _log_choose(int(pure.sum()), int((hits[pure] > 0).sum()))
    return total + sum(_log_choose(int(n), int(k)) for n, k in zip(index.sizes, hits, strict=True))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) if 0 < k < n else 0.0
