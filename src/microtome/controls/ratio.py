"""The normalised effect: a ratio of two means over the same prompts, with an interval of the ratio itself."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from microtome.controls.clusters import FloatArray, as_cells, as_clusters, check_level
from microtome.controls.intervals import Interval, Labels, MeanDesign, mean_interval
from microtome.controls.resample import bootstrap_t
from microtome.errors import ControlError
from microtome.results import seeds


def normalised_effect(
    effects: ArrayLike,
    total: ArrayLike,
    clusters: Labels,
    *,
    level: float = 0.95,
    method: Literal["fieller", "bootstrap-t"] = "fieller",
    seed: int | None = None,
    draws: int = 4000,
    of: str = "templates",
) -> Interval:
    """mean(patched - base) / mean(donor - base), with limits that let both means vary together.

    effects: patched - base [cell..., prompt]; total: donor - base [prompt], shared by every cell; same metric and
    prompts. Returns the ratio (`estimate`) and its limits [cell...], dimensionless.

    "fieller" (Fieller 1954) inverts the cluster t test of mean(effects - ratio * total) = 0: exact under
    normality, no draws, bounded exactly when the denominator's interval excludes 0. "bootstrap-t" resamples whole
    clusters jointly in numerator and denominator (needs `seed` and six clusters); prefer it for skewed effects.
    Never the ratio of each prompt, whose mean is not the ratio of the means and may not exist.

    Raises ControlError when the interval of mean(total) contains 0, or there is none (one prompt).
    """
    index = as_clusters(clusters)
    flat, shape = as_cells(effects, index.n)
    bottom, extra = as_cells(total, index.n)
    if extra:
        raise ControlError(
            f"The total effect has shape {(*extra, index.n)}.", why="one denominator [prompt] is shared"
        )
    _refuse_zero(mean_interval(total, index, level=level, of=of))
    if method == "fieller":
        low, high, name = *_fieller(flat, bottom, MeanDesign.of(index), check_level(level)), "Fieller"
    elif method == "bootstrap-t":
        low, high = _resampled(flat, bottom, index, level, seed, draws)
        name = f"bootstrap-t of the ratio, {draws} draws"
    else:
        raise ControlError(
            f"No interval of a ratio is called {method!r}.", instead="'fieller' or 'bootstrap-t'"
        )
    return Interval(
        low=low.reshape(shape),
        high=high.reshape(shape),
        level=level,
        method=f"{name}, {MeanDesign.of(index).method}" if method == "fieller" else name,
        n=index.n,
        n_clusters=index.n_clusters,
        conditional=MeanDesign.of(index).conditional,
        estimate=(flat.mean(axis=1) / bottom.mean()).reshape(shape),
        of=of,
    )


def _refuse_zero(denominator: Interval) -> None:
    if bool(denominator.excludes(0.0)):
        return
    low, high = float(denominator.low), float(denominator.high)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ControlError(
            f"The effect cannot be normalised: n = {denominator.n} in {denominator.n_clusters} cluster{'s' * (denominator.n_clusters > 1)} gives its total no interval.",
            why="without one, nothing says that the denominator is not 0",
            instead="show the raw effect, or use more pairs",
        )
    raise ControlError(
        f"The effect cannot be normalised: the total effect's interval, {low:.4g} to {high:.4g}, contains 0.",
        why="dividing by a number that may be 0 gives a ratio that may be anything",
        instead="show the raw effect, use more pairs, or use a counterfactual that changes the answer",
    )


def _fieller(
    top: FloatArray, bottom: FloatArray, design: MeanDesign, level: float
) -> tuple[FloatArray, FloatArray]:
    """Roots in r of mean(top - r bottom)^2 = t^2 var(top - r bottom), per cell."""
    a, b = design.contributions(top), design.contributions(bottom)
    degrees = np.minimum(design.degrees(a), design.degrees(b))
    t2 = stats.t.ppf(0.5 + level / 2, degrees) ** 2
    x, y = top.mean(axis=1), float(bottom.mean())
    square = y**2 - t2 * float((b**2).sum())
    cross = x * y - t2 * (a @ b[0])
    rest = x**2 - t2 * (a**2).sum(axis=1)
    root = np.sqrt(np.maximum(cross**2 - square * rest, 0.0))
    bounded = square > 0  # false only where a cell's own degrees are fewer than the denominator's
    divisor = np.where(bounded, square, 1.0)
    low = np.where(bounded, (cross - root) / divisor, -np.inf)
    high = np.where(bounded, (cross + root) / divisor, np.inf)
    return low, high


def _resampled(
    top: FloatArray, bottom: FloatArray, index: Labels, level: float, seed: int | None, draws: int
) -> tuple[FloatArray, FloatArray]:
    clusters = as_clusters(index)
    if seed is None:
        raise ControlError("A bootstrap needs a seed.", instead="normalised_effect(..., seed=0)")
    if MeanDesign.of(clusters).conditional:
        raise ControlError(
            f"A bootstrap over {clusters.n_clusters} clusters was asked for.",
            why="there are too few different resamples",
            instead="method='fieller', whose limits are then conditional on these clusters",
        )
    rng = seeds.rng(seed, "controls.normalised_effect")
    low, high, _ = bootstrap_t(
        clusters.sums(top), clusters.sums(bottom)[0], level=check_level(level), draws=draws, rng=rng
    )
    return low, high
