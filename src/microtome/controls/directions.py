"""Null directions: what a patch or a direction of this size does when it carries no information.

Three nulls, from the strictest to the loosest: the same estimator on shuffled labels; noise with the covariance of
natural differences at the site; isotropic noise. Isotropic noise alone is a weak null: activations occupy few
directions, and a vector outside them may do nothing for that reason only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from microtome.controls.clusters import Clusters, FloatArray, as_clusters
from microtome.controls.intervals import Labels
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


def shuffle_labels(labels: ArrayLike, groups: Labels, *, rng: np.random.Generator) -> NDArray[np.generic]:
    """Labels [item] permuted so that groups stay what they are.

    Groups with one label exchange it whole with other such groups; groups with several labels permute theirs
    within. Raises ControlError when no permutation differs from the labels: then there is no null.
    """
    values, index = np.asarray(labels), as_clusters(groups)
    if values.shape != (index.n,):
        raise ControlError(f"{values.shape} labels for {index.n} grouped items.")
    pure = _pure(values, index)
    first = np.array([np.argmax(index.codes == code) for code in range(index.n_clusters)])
    if pure.all() and np.unique(values[first]).size < 2:
        raise ControlError(
            "Every item has the same label.",
            why="shuffling it changes nothing, so there is no null",
            instead="labels of both kinds",
        )
    shuffled = values.copy()
    whole = np.flatnonzero(pure)
    for code, source in zip(whole, rng.permutation(whole), strict=True):
        shuffled[index.codes == code] = values[first[source]]
    for code in np.flatnonzero(~pure):
        inside = np.flatnonzero(index.codes == code)
        shuffled[inside] = values[rng.permutation(inside)]
    return shuffled


def shuffled_directions(
    estimator: Callable[[FloatArray, NDArray[np.generic]], ArrayLike],
    data: ArrayLike,
    labels: ArrayLike,
    groups: Labels,
    *,
    norm: float,
    draws: int,
    seed: int,
) -> FloatArray:
    """The same estimator on group-wise shuffled labels, at the norm of the real direction: [draw, d].

    estimator: (data [item, d], labels [item]) -> direction [d]. A shuffle that returns the labels as they were is
    drawn again (with few groups it would happen often, and would put the real direction among its own nulls).
    Raises ControlError when 1000 shuffles in a row do so, or as `shuffle_labels` and `norm_matched`.
    """
    rows, values, index = np.asarray(data, dtype=np.float64), np.asarray(labels), as_clusters(groups)
    rng = seeds.rng(seed, "controls.shuffled_directions")
    found: list[ArrayLike] = []
    idle = 0
    while len(found) < draws:
        shuffled = shuffle_labels(values, index, rng=rng)
        if (shuffled == values).all():
            idle += 1
            if idle == 1000:
                raise ControlError(
                    "No shuffle differs from the labels.", why="the groups leave nothing to exchange"
                )
            continue
        idle = 0
        found.append(estimator(rows, shuffled))
    return norm_matched(np.array(found, dtype=np.float64).reshape(draws, -1), norm)


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
