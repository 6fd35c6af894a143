"""Probes with a closed form, for one label column or a thousand: one factorisation per site, one matrix product.

mass_mean: the difference of the class means (Marks & Tegmark 2023). whitened: the same through the inverse covariance, which
is linear discriminant analysis; the covariance is the total one with Ledoit & Wolf's shrinkage, which needs no labels and
gives the direction of the within-class one (the two differ by a multiple of the difference's own outer product, Sherman &
Morrison). ridge: ridge regression on standardised activations; up to scaling and shrinkage the same as whitened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg

from microtome.controls.clusters import FloatArray
from microtome.errors import ControlError


@dataclass(frozen=True)
class Factored:
    """Training activations of one site, centred, with what solving for any labels needs.

    rows [item, d] centred; mean, scale [d]; white, penalised: Cholesky factors of the shrunken covariance and of the
    standardised covariance plus the ridge penalty (None where that kind is not asked for).
    """

    rows: FloatArray
    mean: FloatArray
    scale: FloatArray
    white: tuple[FloatArray, bool] | None
    penalised: tuple[FloatArray, bool] | None

    @property
    def width(self) -> int:
        """d."""
        return int(self.mean.size)


@dataclass(frozen=True)
class Linear:
    """Linear probes for some label columns: weights [d, column] in the site's unit, offset [column]; positive is class 1."""

    weights: FloatArray
    offset: FloatArray

    def scores(self, values: ArrayLike) -> FloatArray:
        """[item, d] -> [item, column].

        Raises
        ------
        ControlError: values of another width.
        """
        rows = np.asarray(values, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.weights.shape[0]:
            raise ControlError(f"a probe of width {self.weights.shape[0]} cannot read values of shape {rows.shape}",
                               why="it was fitted at a site of another width", instead="values of the site that it was fitted at")  # fmt: skip
        out: FloatArray = rows @ self.weights + self.offset
        return out


def factored(values: ArrayLike, kinds: Sequence[str], *, ridge: float) -> Factored:
    """Factorise the training activations of a site, [item, d].

    Raises
    ------
    ControlError: values that are not finite or not [item, d], or all alike.
    """
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 2 or len(rows) < 2 or not np.isfinite(rows).all():
        raise ControlError(
            f"activations of shape {rows.shape} cannot be fitted",
            why="finite [item, d] with two items or more is needed",
        )
    mean = rows.mean(0)
    rows = rows - mean
    spread = rows.std(0)
    scale = np.where(spread > 1e-12 * max(float(spread.max()), 1e-300), spread, 1.0)
    covariance = rows.T @ rows / len(rows)
    white = penalised = None
    if "whitened" in kinds:
        white = _factor(_shrunk(rows, covariance))
    if "ridge" in kinds:
        standard = covariance / np.outer(scale, scale)
        standard[np.diag_indices_from(standard)] += ridge * float(np.trace(standard)) / len(scale) + 1e-9
        penalised = _factor(standard)
    return Factored(rows, mean, scale, white, penalised)


def fit(site: Factored, labels: ArrayLike, kinds: Sequence[str]) -> dict[str, Linear]:
    """Closed-form probes for label columns [item, column] (or [item]), each of which has both classes.

    The offset puts 0 halfway between the class means of the scores.
    """
    y = np.asarray(labels, dtype=np.float64)
    y = y[:, None] if y.ndim == 1 else y
    positive = y.sum(0)
    share = y / positive - (1 - y) / (len(y) - positive)
    delta = site.rows.T @ share
    middle = delta * (
        0.5 - positive / len(y)
    )  # the rows are centred, so each class mean is a multiple of the other
    found: dict[str, Linear] = {}
    for kind in kinds:
        if kind == "mass_mean":
            weights = delta
        elif kind == "whitened" and site.white is not None:
            weights = linalg.cho_solve(site.white, delta, check_finite=False)
        elif kind == "ridge" and site.penalised is not None:
            weights = (
                linalg.cho_solve(site.penalised, delta / site.scale[:, None], check_finite=False)
                / site.scale[:, None]
            )
        else:
            continue
        offset = -(weights * (middle + site.mean[:, None])).sum(0)
        found[kind] = Linear(weights, offset)
    return found


def _factor(matrix: FloatArray) -> tuple[FloatArray, bool]:
    factor, lower = linalg.cho_factor(matrix, lower=True, check_finite=False)
    return np.asarray(factor, dtype=np.float64), bool(lower)


def _shrunk(rows: FloatArray, covariance: FloatArray) -> FloatArray:
    from sklearn.covariance import ledoit_wolf_shrinkage

    share = max(float(ledoit_wolf_shrinkage(rows, assume_centered=True)), 1e-6)
    out: FloatArray = (1 - share) * covariance
    out[np.diag_indices_from(out)] += share * float(np.trace(covariance)) / len(covariance) + 1e-12
    return out


def columns(found: Mapping[str, Linear], index: int) -> dict[str, Linear]:
    """One label column's probes."""
    return {k: Linear(v.weights[:, index : index + 1], v.offset[index : index + 1]) for k, v in found.items()}


BoolArray = NDArray[np.bool_]
