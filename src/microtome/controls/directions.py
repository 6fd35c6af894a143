"""Null directions: what a patch or a direction of this size does when it carries no information.

Three nulls, which rule out different things (docs/decisions/0018): the same estimator on shuffled labels, that labels do not
matter; noise with the covariance of natural differences at the site, that any natural vector of this length would do; isotropic
noise. Isotropic noise alone is a weak null: activations occupy few directions, and a vector outside them may do nothing for that
reason only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from microtome.controls.clusters import Clusters, FloatArray, as_clusters
from microtome.controls.intervals import Labels
from microtome.controls.shuffles import shuffled_columns
from microtome.errors import ControlError
from microtome.results import seeds


def noise_donor(differences: ArrayLike, norms: ArrayLike, *, seed: int, name: str = "noise") -> FloatArray:
    """Random vectors with the covariance of natural differences at a site and the norms of the real patch.

    differences: [difference, d], activations of pairs of natural prompts subtracted, at one site; norms: [...], the
    norm of the real patch (donor - base) per row to make. Returns [..., d] to add to the base activation.

    A Gaussian mixture of the centred differences has exactly their sample covariance, so no d x d matrix is
    formed; the vectors lie in the span of the centred differences, at most n - 1 dimensions. `name` seeds the draw:
    name it by site so that no other site's draw changes.

    Raises ControlError with fewer than two differences, values that are not finite, or differences all alike.
    """
    rows = np.asarray(differences, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[0] < 2 or not np.isfinite(rows).all():
        raise ControlError(
            f"Natural differences of shape {rows.shape} give no covariance.",
            why="at least two finite difference vectors [difference, d] are needed",
        )
    centred = rows - rows.mean(axis=0)
    if np.abs(centred).max() <= 1e-12 * np.abs(rows).max():
        raise ControlError(
            "All natural differences are the same vector.", why="they have no covariance to draw from"
        )
    size = _norms(norms)
    mixture = seeds.rng(seed, f"controls.noise_donor/{name}").standard_normal((*size.shape, rows.shape[0]))
    return norm_matched(mixture @ centred, size)


def isotropic(d: int, norms: ArrayLike, *, seed: int, name: str = "isotropic") -> FloatArray:
    """Uniformly random directions of given norms: norms [...] -> [..., d]. Raises ControlError unless d >= 1."""
    if d < 1:
        raise ControlError(f"A direction in {d} dimensions was asked for.")
    size = _norms(norms)
    draw = seeds.rng(seed, f"controls.isotropic/{name}").standard_normal((*size.shape, d))
    return norm_matched(draw, size)


def norm_matched(directions: ArrayLike, norms: ArrayLike) -> FloatArray:
    """Directions [..., d] rescaled to norms [...] (or one for all). Raises ControlError for a zero direction."""
    array = np.asarray(directions, dtype=np.float64)
    size = _norms(norms)
    own = np.linalg.norm(array, axis=-1)
    if (own == 0).any():
        raise ControlError("A direction of norm 0 cannot be rescaled.", why="it points nowhere")
    return array * (size / own)[..., None]


def shuffled_directions(
    estimator: Callable[[FloatArray, NDArray[np.generic]], ArrayLike],
    data: ArrayLike,
    labels: ArrayLike,
    groups: Labels,
    *,
    norm: float | None,
    draws: int,
    seed: int,
) -> FloatArray:
    """The same estimator on group-wise shuffled labels of two values: [draw, d].

    estimator: (data [item, d], labels [item]) -> direction [d]. norm: of the rows returned; None leaves each at its own, which is
    the exact permutation test of the direction (docs/decisions/0018). No arrangement comes twice, nor the real one, so fewer rows than
    `draws` come where there are fewer arrangements: the smallest p is 1 / (1 + rows).

    Raises ControlError for labels of more than two values, or as `shuffles.shuffled_columns` and `norm_matched`.
    """
    rows, values = np.asarray(data, dtype=np.float64), np.asarray(labels)
    kinds = np.unique(values)
    if kinds.size > 2:
        raise ControlError(
            f"Labels of {kinds.size} values.", why="a direction points from one class to the other"
        )
    columns = shuffled_columns(
        values == kinds[-1], groups, draws=draws, seed=seed, differ=True, name="shuffled_directions"
    ).labels
    found = np.array([estimator(rows, kinds[c.astype(np.int64)]) for c in columns.T], dtype=np.float64)
    return found if norm is None else norm_matched(found, norm)


def unexplained(data: ArrayLike, labels: ArrayLike, groups: Labels) -> FloatArray:
    """What neither groups nor labels explain of each item: differences whose covariance `noise_donor` draws from. [item, d].

    Shuffles keep what a group of several labels has in common, so its own mean is taken out; items of groups with one label lose
    the mean of all such; then each class loses its mean. The labels' own axis must not be in the covariance of a null: where it is
    the largest, noise would be the direction itself.
    """
    rows, values, index = np.array(data, dtype=np.float64), np.asarray(labels), as_clusters(groups)
    pure = _pure(values, index)
    cell = np.where(pure[index.codes], -1, index.codes)
    for key in (cell, values):
        for k in np.unique(key):
            rows[key == k] -= rows[key == k].mean(axis=0)
    return rows


def likeness(nulls: ArrayLike, direction: ArrayLike) -> float:
    """Median |cosine| of null directions [draw, d] with the real one [d]; null directions of length 0 do not count."""
    rows, real = np.asarray(nulls, dtype=np.float64), np.asarray(direction, dtype=np.float64)
    size = np.linalg.norm(rows, axis=1) * np.linalg.norm(real)
    keep = size > 0
    return float(np.median(np.abs(rows[keep] @ real) / size[keep])) if keep.any() else 0.0


def _pure(values: NDArray[np.generic], index: Clusters) -> NDArray[np.bool_]:
    """Which groups [group] have one label only."""
    return np.array(
        [(values[index.codes == c] == values[index.codes == c][0]).all() for c in range(index.n_clusters)]
    )


def _norms(norms: ArrayLike) -> FloatArray:
    size = np.asarray(norms, dtype=np.float64)
    if not np.isfinite(size).all() or (size < 0).any():
        raise ControlError(
            "A norm is negative or not finite.", why="a donor has the length of the patch it stands for"
        )
    return size
