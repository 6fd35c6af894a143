"""Re-testing selected cells on prompts that had no part in selecting them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from microtome.controls.clusters import Clusters, FloatArray, as_cells, as_clusters
from microtome.controls.intervals import Interval, Labels, mean_interval, mean_test
from microtome.controls.signflip import sign_flip
from microtome.errors import ControlError

MIN_HELD_OUT_TEMPLATES = 8
"""Template clusters that a held-out test needs before it may speak about other templates."""


def holm(p: ArrayLike) -> FloatArray:
    """Holm's step-down adjustment of p values [test] (statsmodels). Raises ControlError outside [0, 1]."""
    from statsmodels.stats.multitest import multipletests

    values = np.asarray(p, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not ((values >= 0) & (values <= 1)).all():
        raise ControlError("Holm's adjustment needs one p between 0 and 1 per test.", why=f"got {values!r}")
    return np.asarray(multipletests(values, method="holm")[1], dtype=np.float64)


@dataclass(frozen=True)
class HeldOut:
    """Selected cells on held-out prompts.

    p, p_holm: [cell]; interval: raw effect, [cell]; same_sign: the effect has the sign it was selected with;
    passed: p_holm <= alpha and same sign. smallest_p: the smallest p_holm this test can reach (0 for t).
    cap: "" or the sentence that limits what these numbers can support.
    """

    p: FloatArray
    p_holm: FloatArray
    interval: Interval
    same_sign: NDArray[np.bool_]
    passed: NDArray[np.bool_]
    alpha: float
    smallest_p: float
    n_clusters: int
    split: str
    test: str
    cap: str


def retest(
    effects: ArrayLike,
    clusters: Labels,
    *,
    selected_on: Sequence[str] | Sequence[int],
    selected_sign: ArrayLike,
    split: Literal["template", "entity"],
    test: Literal["t", "sign-flip"] = "t",
    alpha: float = 0.001,
    level: float = 0.95,
    seed: int | None = None,
) -> HeldOut:
    """Test each selected cell on held-out prompts; Holm over the selected cells.

    effects: held-out effects of the selected cells only, [cell, prompt]; clusters: [prompt], the templates or
    entities of the held-out prompts; selected_on: cluster labels of the prompts used for selection; selected_sign:
    sign of each cell's effect there, [cell]; split: what the two sets of prompts do not share.

    The cluster t test is the default: eight clusters reach p = 2^-7 = .008 by sign-flip at best, never .001.
    `cap` is "" from eight held-out template clusters on, and for an entity split with six or more; otherwise it
    says what the numbers are conditional on. It also says so when the clusters' means are skewed: in simulations with
    12 to 15 clusters and four cells, a p of .001 came in up to .003 of null data sets with normal or heavy-tailed effects,
    in .01 to .016 with exponential ones.

    Raises ControlError when a held-out cluster was also used for selection, or shapes disagree.
    """
    index = as_clusters(clusters)
    flat, shape = as_cells(effects, index.n)
    sign = np.sign(np.asarray(selected_sign, dtype=np.float64))
    if len(shape) != 1 or sign.shape != shape or (sign == 0).any():
        raise ControlError(
            f"Held-out effects [cell..] {shape} and selected signs {sign.shape} do not fit.",
            why="each selected cell has one sign, + or -, from the prompts that selected it",
        )
    shared = sorted({str(label) for label in selected_on} & {str(label) for label in index.labels})
    if shared:
        raise ControlError(
            f"{len(shared)} of {index.n_clusters} held-out clusters were used for selection, e.g. {shared[0]!r}.",
            why="an effect selected on a cluster is large there by selection",
            instead=f"task.split(by={split!r}, ...)",
        )
    p, least = _test(flat, index, test, seed)
    adjusted = holm(p)
    same = np.sign(flat.mean(axis=1)) == sign
    return HeldOut(
        p=p,
        p_holm=adjusted,
        interval=mean_interval(
            flat, index, level=level, of="templates" if split == "template" else "entities"
        ),
        same_sign=same,
        passed=(adjusted <= alpha) & same,
        alpha=alpha,
        smallest_p=min(1.0, least * flat.shape[0]),
        n_clusters=index.n_clusters,
        split=split,
        test=test,
        cap="; ".join(
            filter(None, [_cap(split, index.n_clusters), _skewed(flat, index) if test == "t" else ""])
        ),
    )


def _test(flat: FloatArray, index: Labels, test: str, seed: int | None) -> tuple[FloatArray, float]:
    if test == "t":
        return mean_test(flat, index).p, 0.0
    if test != "sign-flip":
        raise ControlError(f"No held-out test is called {test!r}.", instead="'t' or 'sign-flip'")
    if seed is None:
        raise ControlError("A sign-flip needs a seed.", instead="retest(..., seed=0)")
    # One cell at a time: Holm corrects for their number, the maximum over cells would do so twice.
    tests = [sign_flip(row[None], index, seed=seed) for row in flat]
    return np.array([t.p[0] for t in tests]), tests[0].smallest_p


SKEWED = 1.0
"""Skewness of cluster means from which a t test's small p is said to be doubtful (an exponential has 2), unless chance
gives as much: two standard errors of a normal sample's."""


def _skewed(flat: FloatArray, index: Clusters) -> str:
    from scipy.stats import skew

    if index.n_clusters < 8:
        return ""
    means = index.sums(flat) / index.sizes
    varies = np.ptp(means, axis=1) > 1e-9 * np.abs(means).max(axis=1)
    worst = float(np.abs(skew(means[varies], axis=1, bias=False)).max()) if varies.any() else 0.0
    n = index.n_clusters
    chance = 2 * (6 * n * (n - 1) / ((n - 2) * (n + 1) * (n + 3))) ** 0.5
    return (
        f"effects are skewed ({worst:.1f}): a p of .001 is nearer .01" if worst > max(SKEWED, chance) else ""
    )


def _cap(split: str, n_clusters: int) -> str:
    if split == "entity":
        return "" if n_clusters >= 6 else f"conditional on these {n_clusters} entities: at least 6 are needed"
    if split != "template":
        raise ControlError(f"No split is called {split!r}.", instead="'template' or 'entity'")
    if n_clusters >= MIN_HELD_OUT_TEMPLATES:
        return ""
    return (
        f"conditional on these {n_clusters} templates: a held-out test over templates needs "
        f"{MIN_HELD_OUT_TEMPLATES} or more, or the entity split"
    )
