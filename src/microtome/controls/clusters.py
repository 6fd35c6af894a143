"""Prompts nested in clusters: the bookkeeping that every statistic in this package shares.

Prompts from one template (or about one entity) resemble each other, so the template, not the prompt, is the
unit of replication. Everything here is bookkeeping; the statistics are in the other modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from microtome.errors import ControlError

FloatArray = NDArray[np.float64]

MIN_CLUSTERS = 6
"""Fewer clusters than this cannot stand for a population of clusters: intervals become conditional."""


@dataclass(frozen=True)
class Clusters:
    """Which cluster each prompt belongs to.

    codes: int64 [prompt], 0 .. n_clusters - 1 in order of first appearance; labels: [cluster];
    sizes: int64 [cluster], prompts per cluster.
    """

    codes: NDArray[np.int64]
    labels: tuple[str | int, ...]
    sizes: NDArray[np.int64]

    @property
    def n(self) -> int:
        """Number of prompts."""
        return int(self.codes.size)

    @property
    def n_clusters(self) -> int:
        """Number of clusters."""
        return len(self.labels)

    @property
    def indicator(self) -> FloatArray:
        """Membership as a matrix [prompt, cluster] of 0 and 1."""
        return np.eye(self.n_clusters)[self.codes]

    def sums(self, effects: FloatArray) -> FloatArray:
        """Sum of effects [cell, prompt] within each cluster -> [cell, cluster]."""
        return effects @ self.indicator


def as_clusters(labels: Clusters | Sequence[str] | Sequence[int] | NDArray[np.generic]) -> Clusters:
    """Cluster labels, one per prompt, as `Clusters` (returned unchanged if they already are).

    Raises ControlError when there are no labels, or a label is missing (None, NaN or empty).
    """
    if isinstance(labels, Clusters):
        return labels
    plain: list[str | int] = labels.tolist() if isinstance(labels, np.ndarray) else list(labels)
    if not plain:
        raise ControlError(
            "No cluster labels were given.", why="every statistic here needs at least one prompt"
        )
    missing = [i for i, label in enumerate(plain) if label is None or label == "" or label != label]
    if missing:
        raise ControlError(
            f"Prompt {missing[0]} has no cluster label ({plain[missing[0]]!r}).",
            why="a prompt of unknown cluster cannot be counted as independent of the others",
            instead="label every prompt with its template or entity; a prompt of its own is a label of its own",
        )
    order: dict[str | int, int] = {}
    codes = np.array([order.setdefault(label, len(order)) for label in plain], dtype=np.int64)
    return Clusters(codes, tuple(order), np.bincount(codes).astype(np.int64))


def as_cells(effects: ArrayLike, n_prompts: int) -> tuple[FloatArray, tuple[int, ...]]:
    """Effects [cell..., prompt] as float64 [cell, prompt], and the shape [cell...] to restore.

    Raises ControlError when the last axis is not the prompts or a value is not finite.
    """
    array = np.asarray(effects, dtype=np.float64)
    if array.ndim == 0 or array.shape[-1] != n_prompts:
        raise ControlError(
            f"Effects of shape {array.shape} do not end in {n_prompts} prompts.",
            why="the last axis is the prompt, and there is one cluster label per prompt",
        )
    finite = np.isfinite(array)
    if not finite.all():
        where = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise ControlError(
            f"The effect at index {where} is {array[where]}.",
            why="a mean over prompts does not exist when one of them is missing",
            instead="leave the cell out, or find which activation became NaN",
        )
    return array.reshape(-1, n_prompts), array.shape[:-1]


def check_level(level: float) -> float:
    """A confidence level strictly between 0 and 1, else ControlError (95 is the usual slip)."""
    if not 0.0 < level < 1.0:
        raise ControlError(f"A level of {level} is not between 0 and 1.", instead="write 0.95, not 95")
    return float(level)
