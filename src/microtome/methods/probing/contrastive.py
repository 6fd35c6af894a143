"""Directions found without labels: principal components, and contrast-consistent search (CCS, Burns et al. 2022).

Neither knows which feature was meant: both find the most prominent one that varies, or that a contrast pair turns round
(Farquhar et al. 2023). And neither knows which end is which.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from microtome.controls.clusters import FloatArray
from microtome.errors import ControlError
from microtome.results import seeds

STEPS, RATE, DECAY = 400, 0.05, 1e-3


@dataclass(frozen=True)
class Ccs:
    """The best of several searches. weights [d] and bias on standardised activations of either side; mean, scale [side, d].

    losses, cosines [restart]: of each search, and its |cosine| with the best one: a stable search has them near 1.
    """

    weights: FloatArray
    bias: float
    mean: FloatArray
    scale: FloatArray
    losses: FloatArray
    cosines: FloatArray

    def scores(self, positive: ArrayLike, negative: ArrayLike) -> FloatArray:
        """P(the positive side is the true one), [pair]; which end is true is not known."""
        sides = [_sigmoid((np.asarray(x, dtype=np.float64) - self.mean[k]) / self.scale[k] @ self.weights + self.bias)
                 for k, x in enumerate((positive, negative))]  # fmt: skip
        return np.asarray((sides[0] + 1 - sides[1]) / 2, dtype=np.float64)


def ccs(positive: ArrayLike, negative: ArrayLike, *, seed: int, restarts: int = 10) -> Ccs:
    """Contrast-consistent search over pairs of activations, [pair, d] each, from several random starts at once.

    Each side is centred and scaled by itself, so that what tells the two wordings apart is gone; then
    (p(+) - (1 - p(-)))^2 + min(p(+), p(-))^2 is made small.

    Raises
    ------
    ControlError: activations that are not finite, or sides of different shapes.
    """
    both = [np.asarray(x, dtype=np.float64) for x in (positive, negative)]
    if both[0].shape != both[1].shape or both[0].ndim != 2 or not all(np.isfinite(x).all() for x in both):
        raise ControlError(f"pairs of shapes {both[0].shape} and {both[1].shape} cannot be contrasted", why="two finite [pair, d] arrays are needed")  # fmt: skip
    mean = np.stack([x.mean(0) for x in both])
    scale = np.stack([np.where(x.std(0) > 1e-9, x.std(0), 1.0) for x in both])
    sides = [torch.from_numpy((x - m) / s) for x, m, s in zip(both, mean, scale, strict=True)]
    generator = torch.Generator().manual_seed(seeds.child(seed, "ccs") % 2**31)
    d = both[0].shape[1]
    weights = torch.randn(d, restarts, generator=generator, dtype=torch.float64)
    weights = (weights / weights.norm(dim=0)).requires_grad_()
    bias = torch.zeros(restarts, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.AdamW([weights, bias], lr=RATE, weight_decay=DECAY)
    with torch.enable_grad():
        for _ in range(STEPS):
            optimiser.zero_grad()
            _loss(sides, weights, bias).sum().backward()
            optimiser.step()
    with torch.no_grad():
        losses = _loss(sides, weights, bias)
        best = int(losses.argmin())
        unit = weights / weights.norm(dim=0)
        cosines = (unit.T @ unit[:, best]).abs().numpy()
    return Ccs(
        weights.detach()[:, best].numpy(), float(bias.detach()[best]), mean, scale, losses.numpy(), cosines
    )


def _loss(sides: list[torch.Tensor], weights: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """[restart]."""
    plus, minus = ((side @ weights + bias).sigmoid() for side in sides)
    consistent = (plus - (1 - minus)) ** 2
    confident = torch.minimum(plus, minus) ** 2
    return (consistent + confident).mean(0)


@dataclass(frozen=True)
class Components:
    """Principal components: axes [component, d], mean [d], share of the variance [component]."""

    axes: FloatArray
    mean: FloatArray
    share: FloatArray

    def scores(self, values: ArrayLike) -> FloatArray:
        """[item, d] -> [item, component]."""
        return np.asarray((np.asarray(values, dtype=np.float64) - self.mean) @ self.axes.T, dtype=np.float64)


def components(values: ArrayLike, n: int) -> Components:
    """The first n principal components of activations [item, d] (scikit-learn's PCA)."""
    from sklearn.decomposition import PCA

    rows = np.asarray(values, dtype=np.float64)
    found = PCA(min(n, *rows.shape), svd_solver="full").fit(rows)
    return Components(found.components_, found.mean_, found.explained_variance_ratio_)


def _sigmoid(x: FloatArray) -> FloatArray:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -60, 60))), dtype=np.float64)
