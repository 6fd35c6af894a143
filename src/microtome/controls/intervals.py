"""Intervals of a mean over prompts that are nested in clusters, and of a proportion.

The estimate is always the mean over prompts (the number that a result shows), so the interval must be of that
number too. The alternative, a t interval of the cluster means, is of another number when clusters differ in
size, and is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from microtome.controls.clusters import (
    MIN_CLUSTERS,
    Clusters,
    FloatArray,
    as_cells,
    as_clusters,
    check_level,
)
from microtome.controls.resample import bootstrap_t
from microtome.errors import ControlError
from microtome.results import seeds

Labels = Clusters | Sequence[str] | Sequence[int] | NDArray[np.generic]


@dataclass(frozen=True)
class Interval:
    """Confidence limits, with what they are limits of.

    low, high, estimate: float64 [cell...] (0-dimensional for one cell), in the unit of the input; NaN where no
    interval exists (one prompt). level: two-sided coverage. n: prompts. n_clusters: clusters among them.
    conditional: the clusters are taken as fixed, so the limits say nothing about other clusters. of: what a
    cluster is, for the label.
    """

    low: FloatArray
    high: FloatArray
    level: float
    method: str
    n: int
    n_clusters: int
    conditional: bool
    estimate: FloatArray
    of: str = "templates"

    @property
    def label(self) -> str:
        """What to print beside the limits."""
        condition = f", conditional on these {self.of}" if self.conditional else ""
        return f"{self.level:.10g} interval ({self.method}){condition}; n={self.n} in {self.n_clusters} {self.of}"

    def excludes(self, value: float = 0.0) -> NDArray[np.bool_]:
        """Whether `value` lies outside, [cell...]; False where no interval exists."""
        return np.asarray((self.low > value) | (self.high < value))

    def at(self, *index: int) -> Interval:
        """The interval of one cell."""
        return replace(self, low=self.low[index], high=self.high[index], estimate=self.estimate[index])


@dataclass(frozen=True)
class MeanDesign:
    """How the variance of a mean over prompts is estimated for one grouping of prompts.

    The variance of a mean is the sum of squares of `contributions`, and the covariance of two means is the sum
    of their products, which is what a ratio needs. Unconditional (>= 6 clusters): cluster jackknife, CR3 of Bell
    and McCaffrey (2002; CV3 of MacKinnon, Nielsen & Webb 2023). Conditional: the stratified variance, with
    clusters as strata; strata of one prompt are collapsed into one (Cochran 1977, 5A.12), which can only widen.
    """

    clusters: Clusters
    conditional: bool
    strata: NDArray[np.int64]

    @classmethod
    def of(cls, clusters: Clusters) -> MeanDesign:
        """The design for these clusters: conditional when there are fewer than six."""
        conditional = clusters.n_clusters < MIN_CLUSTERS
        return cls(clusters, conditional, _collapse(clusters) if conditional else clusters.codes)

    @property
    def method(self) -> str:
        """Name of the variance estimate, for labels."""
        if self.clusters.n < 2:
            return "none: one prompt"
        if not self.conditional:
            return "cluster t, CR3"
        collapsed = bool((self.clusters.sizes == 1).any()) and self.clusters.n_clusters > 1
        return "stratified t, single prompts collapsed" if collapsed else "stratified t"

    def contributions(self, effects: FloatArray) -> FloatArray:
        """Terms whose sum of squares is the variance of the mean: [cell, prompt] -> [cell, term]."""
        n = self.clusters.n
        if not self.conditional:
            g, share = self.clusters.n_clusters, self.clusters.sizes / n
            residual = self.clusters.sums(effects - effects.mean(axis=1, keepdims=True))
            return np.sqrt((g - 1) / g) * residual / (1 - share) / n
        sizes = np.bincount(self.strata)
        member = np.eye(sizes.size)[self.strata]
        centred = effects - (effects @ member / sizes)[:, self.strata]
        inflate = np.sqrt(sizes / np.maximum(sizes - 1, 1))
        return centred * inflate[self.strata] / n

    def degrees(self, contributions: FloatArray) -> FloatArray:
        """Degrees of freedom [cell]: Bell-McCaffrey for clusters, Welch-Satterthwaite for strata."""
        if not self.conditional:
            return np.full(contributions.shape[0], _bell_mccaffrey(self.clusters.sizes))
        sizes = np.bincount(self.strata)
        part = contributions**2 @ np.eye(sizes.size)[self.strata]
        total, spread = part.sum(axis=1) ** 2, (part**2 / np.maximum(sizes - 1, 1)).sum(axis=1)
        homogeneous = float(max(self.clusters.n - sizes.size, 1))
        return np.divide(total, spread, out=np.full(total.shape, homogeneous), where=spread > 0)


def _collapse(clusters: Clusters) -> NDArray[np.int64]:
    """Strata [prompt] in which no stratum has one prompt, unless there is only one prompt."""
    single = clusters.sizes == 1
    target = np.arange(clusters.n_clusters)
    if single.any() and clusters.n_clusters > 1:
        alone = np.flatnonzero(single)
        if alone.size == 1:  # one lonely prompt joins the smallest of the others
            others = np.flatnonzero(~single)
            target[alone] = others[np.argmin(clusters.sizes[others])]
        else:
            target[alone] = alone[0]
    return np.unique(target[clusters.codes], return_inverse=True)[1].astype(np.int64)


def _bell_mccaffrey(sizes: NDArray[np.int64]) -> float:
    """Satterthwaite degrees of freedom of the CR3 variance of a mean, prompts independent as working model.

    G - 1 when clusters are equal in size; near 1 when one cluster holds nearly everything.
    """
    n, weight = float(sizes.sum()), 1.0 / (1.0 - sizes / sizes.sum())
    gram = np.outer(weight, weight) * (np.diag(sizes) - np.outer(sizes, sizes) / n)
    return float(np.trace(gram) ** 2 / np.sum(gram**2))


def mean_interval(
    effects: ArrayLike, clusters: Labels, *, level: float = 0.95, of: str = "templates"
) -> Interval:
    """Cluster-robust t interval of the mean over prompts, for every cell at once.

    effects: [cell..., prompt], any unit; clusters: [prompt]. Returns limits [cell...].

    From six clusters on: CR3 standard error with Bell-McCaffrey degrees of freedom. Why this one: with equal
    clusters CR1, CR2, CR3 and the t of cluster means coincide. With unequal ones, in simulations of 95 % intervals over
    cluster sizes from (1 x 14, 2) to (1 x 7, 20) and intra-cluster correlations of 0, .5 and 1, the usual CR1 with G - 1
    degrees covered as little as 44 %, CR2 with Bell-McCaffrey degrees 93 %, CR3 with them never below 94.5 % - at the
    price of being too wide when one cluster holds most prompts, which is the right direction.

    Under six clusters the limits are over prompts within these clusters (stratified, Welch-Satterthwaite), and
    `conditional` is True. One prompt has no interval: NaN, and the method says so.

    Raises ControlError for effects that are not finite, shapes that disagree, or a level outside (0, 1).
    """
    index = as_clusters(clusters)
    flat, shape = as_cells(effects, index.n)
    design = MeanDesign.of(index)
    estimate = flat.mean(axis=1)
    if index.n < 2:
        half = np.full(estimate.shape, np.nan)
    else:
        terms = design.contributions(flat)
        quantile = stats.t.ppf(0.5 + check_level(level) / 2, design.degrees(terms))
        half = quantile * np.sqrt((terms**2).sum(axis=1))
    return Interval(
        low=(estimate - half).reshape(shape),
        high=(estimate + half).reshape(shape),
        level=check_level(level),
        method=design.method,
        n=index.n,
        n_clusters=index.n_clusters,
        conditional=design.conditional,
        estimate=estimate.reshape(shape),
        of=of,
    )


def bootstrap_interval(
    effects: ArrayLike,
    clusters: Labels,
    *,
    seed: int,
    level: float = 0.95,
    draws: int = 4000,
    of: str = "templates",
) -> Interval:
    """Bootstrap-t interval of the mean over prompts: whole clusters resampled, every cell on the same draws.

    effects: [cell..., prompt]; clusters: [prompt]. For skewed effects, where the t interval misses more on one
    side (Efron & Tibshirani 1993, chapter 12; Cameron, Gelbach & Miller 2008). Limits are infinite when too many
    resamples have no spread. Raises ControlError under six clusters (resampling five units says nothing that the
    stratified interval does not) and when the draws are too few for the level.
    """
    index = as_clusters(clusters)
    flat, shape = as_cells(effects, index.n)
    if index.n_clusters < MIN_CLUSTERS:
        raise ControlError(
            f"A bootstrap over {index.n_clusters} clusters was asked for.",
            why=f"under {MIN_CLUSTERS} clusters there are too few different resamples",
            instead="mean_interval(), whose limits are then conditional on these clusters",
        )
    low, high, estimate = bootstrap_t(
        index.sums(flat),
        index.sizes.astype(np.float64),
        level=check_level(level),
        draws=draws,
        rng=seeds.rng(seed, "controls.bootstrap_interval"),
    )
    return Interval(
        low=low.reshape(shape),
        high=high.reshape(shape),
        level=level,
        method=f"bootstrap-t over {of}, {draws} draws",
        n=index.n,
        n_clusters=index.n_clusters,
        conditional=False,
        estimate=estimate.reshape(shape),
        of=of,
    )


@dataclass(frozen=True)
class MeanTest:
    """Two-sided test that the mean over prompts is 0: t, degrees, p, each [cell...]; p at least 0."""

    t: FloatArray
    degrees: FloatArray
    p: FloatArray
    conditional: bool


def mean_test(effects: ArrayLike, clusters: Labels) -> MeanTest:
    """Cluster t test of mean 0, the dual of `mean_interval`; effects [cell..., prompt], clusters [prompt].

    Raises ControlError with one prompt, or where a nonzero effect does not vary between clusters (to 1e-7 of
    itself): such prompts are copies of one another, and their number is no evidence.
    """
    index = as_clusters(clusters)
    flat, shape = as_cells(effects, index.n)
    if index.n < 2:
        raise ControlError(
            "One prompt cannot be tested.", why="there is no spread to compare its effect with"
        )
    design = MeanDesign.of(index)
    terms, mean = design.contributions(flat), flat.mean(axis=1)
    error = np.sqrt((terms**2).sum(axis=1))
    copies = (mean != 0) & (error <= 1e-7 * np.abs(mean))
    if copies.any():
        cell = int(np.flatnonzero(copies)[0])
        raise ControlError(
            f"Cell {cell} has the same effect ({mean[cell]:.4g}) in every cluster.",
            why="prompts without any spread are copies of one prompt, not independent evidence",
            instead="give prompts that differ",
        )
    t = np.divide(mean, error, out=np.zeros_like(mean), where=error > 0)
    degrees = design.degrees(terms)
    p = 2 * stats.t.sf(np.abs(t), degrees)
    return MeanTest(t.reshape(shape), degrees.reshape(shape), p.reshape(shape), design.conditional)


def proportion_interval(
    hits: ArrayLike, clusters: Labels | None = None, *, level: float = 0.95, of: str = "templates"
) -> Interval:
    """Clopper-Pearson (exact) interval of a proportion, such as "right on how many prompts".

    hits: bool [prompt]. Exact rather than Wilson because this interval decides whether a model does a task at
    all, so its coverage must never fall below the level. Without clusters the prompts count as independent. With
    clusters the number of prompts is divided by the design effect (Korn & Graubard 1998), which never raises it;
    when all prompts agree the design effect is unknown, and the number of clusters is used, the worst case.
    Raises ControlError when hits are not 0/1 or empty.
    """
    from statsmodels.stats.proportion import proportion_confint

    values = np.asarray(hits, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isin(values, (0.0, 1.0)).all():
        raise ControlError(
            "A proportion needs one 0 or 1 per prompt.", why=f"got an array of shape {values.shape}"
        )
    n, rate = values.size, float(values.mean())
    index = as_clusters(np.arange(n) if clusters is None else clusters)
    as_cells(values, index.n)
    effective = float(n) if clusters is None else _effective_n(values, index)
    low, high = proportion_confint(rate * effective, effective, alpha=1 - check_level(level), method="beta")
    return Interval(
        low=np.asarray(low, dtype=np.float64),
        high=np.asarray(high, dtype=np.float64),
        level=level,
        method="Clopper-Pearson" + ("" if clusters is None else f", effective n {effective:.3g}"),
        n=n,
        n_clusters=index.n_clusters,
        conditional=clusters is not None and index.n_clusters < MIN_CLUSTERS,
        estimate=np.asarray(rate),
        of="prompts" if clusters is None else of,
    )


def _effective_n(values: FloatArray, index: Clusters) -> float:
    """Prompts that would carry the same information if they were independent (Korn & Graubard)."""
    rate, n = float(values.mean()), values.size
    if rate in (0.0, 1.0):
        return float(index.n_clusters)
    design = MeanDesign.of(index)
    terms = design.contributions(values[None])
    variance = float((terms**2).sum())
    degrees = float(design.degrees(terms)[0])
    if variance == 0.0:  # every cluster has the same rate: less spread than chance gives
        return float(n)
    effective = rate * (1 - rate) / variance
    effective *= float((stats.t.ppf(0.975, n - 1) / stats.t.ppf(0.975, degrees)) ** 2)
    return float(np.clip(effective, 1.0, n))
