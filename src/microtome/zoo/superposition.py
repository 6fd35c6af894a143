"""Toy models of superposition (Elhage et al. 2022, arXiv 2209.10652): x' = ReLU(W^T W x + b), with what is known of them exactly.

Features are 0 with probability 1 - p, else uniform on [0, 1], each by itself; the loss is the importance-weighted squared
error, in expectation. With two features in one dimension that expectation is a sum of integrals of piecewise polynomials,
so that Gauss-Legendre nodes on the pieces give it exactly, and its minimum can be searched for without any sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from microtome.errors import ModelError
from microtome.results.seeds import child, rng

__all__ = [
    "CROSSING", "GEOMETRIES", "Geometry", "Minimum", "Toys", "antipodal_loss", "dimensionality", "expected_loss", "geometry",
    "ignore_loss", "minimum", "train",
]  # fmt: skip

Array = np.ndarray[Any, np.dtype[np.float64]]
Geometry = Literal["digon", "triangle", "tetrahedron", "pentagon", "square_antiprism"]

CROSSING = 4 / 7
"""Where ignoring one of two equally important features and sharing a dimension cost the same, without biases on the shared one."""
GEOMETRIES: dict[str, float] = {
    "digon": 1 / 2, "triangle": 2 / 3, "tetrahedron": 3 / 4, "pentagon": 2 / 5, "square_antiprism": 3 / 8,
}  # fmt: skip
"""Dimensionality of every feature in each arrangement (the published values; `geometry` makes the vectors)."""

_LEGENDRE = np.polynomial.legendre.leggauss(4)  # exact up to degree 7; the pieces have degree 3 at most
_X: Array = np.asarray((_LEGENDRE[0] + 1) / 2, dtype=np.float64)
_WEIGHT: Array = np.asarray(_LEGENDRE[1] / 2, dtype=np.float64)
_STARTS = 24


# ---- two features, one dimension: exact ----------------------------------------------------------------------------


def ignore_loss(p: float, r: float) -> float:
    """Loss of W = (1, 0) with the best bias, p / 2: r (p / 3 - p^2 / 4), the variance of the feature that is ignored."""
    _probability(p, r)
    return r * (p / 3 - p**2 / 4)


def antipodal_loss(p: float, r: float) -> float:
    """Loss of W = (1, -1) without bias: (1 + r) p^2 / 6, since each loses the smaller of two features that are both there."""
    _probability(p, r)
    return (1 + r) * p**2 / 6


def expected_loss(weights: Sequence[float], bias: Sequence[float], p: float, r: float) -> float:
    """The exact expected loss of two features (importance 1 and r) in one dimension. weights [2], bias [2].

    Raises
    ------
    ModelError: p outside 0..1, a negative r, or other shapes.
    """
    _probability(p, r)
    theta = np.array([*weights, *bias], dtype=np.float64)
    if theta.shape != (4,):
        raise ModelError(
            f"two features in one dimension have 4 parameters, not {theta.size}",
            instead="give two weights and two biases",
        )
    return _loss_and_gradient(theta, p, r)[0]


@dataclass(frozen=True)
class Minimum:
    """The lowest loss that a search over all weights and biases found. weights [2]; bias [2]; starts: local searches made."""

    loss: float
    weights: tuple[float, float]
    bias: tuple[float, float]
    starts: int

    @property
    def superposed(self) -> bool:
        """Whether both features are kept, with opposite signs."""
        return self.weights[0] * self.weights[1] < -0.01


def minimum(p: float, r: float, *, seed: int, starts: int = _STARTS) -> Minimum:
    """Search from many starts (L-BFGS on the exact loss and gradient, float64) for the best two features in one dimension.

    Raises
    ------
    ModelError: p outside 0..1, a negative r, or fewer than one start.
    """
    from scipy.optimize import minimize

    _probability(p, r)
    if starts < 1:
        raise ModelError(f"{starts} starts find nothing", instead="give starts >= 1")
    random = rng(seed, "superposition/starts")
    known = [[1, 0, 0, p / 2], [0, 1, p / 2, 0], [1, -1, 0, 0], [0.7, 0.7, 0, 0], [0, 0, p / 2, p / 2]]
    drawn = [[*random.normal(size=2), *random.uniform(-0.5, 0.5, 2)] for _ in range(starts)]
    options = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 2000}
    found = [
        minimize(_loss_and_gradient, np.array(s, dtype=float), (p, r), "L-BFGS-B", True, options=options)
        for s in (*known, *drawn)
    ]
    best = min(found, key=lambda f: float(f.fun))
    a, b, c, d = (float(v) for v in best.x)
    return Minimum(float(best.fun), (a, b), (c, d), len(found))


def _probability(p: float, r: float) -> None:
    if not 0 <= p <= 1 or r < 0:
        raise ModelError(
            f"features cannot be there with probability {p} and importance {r}",
            instead="give 0 <= p <= 1 and r >= 0",
        )


def _loss_and_gradient(theta: Array, p: float, r: float) -> tuple[float, Array]:
    w, b = theta[:2], theta[2:]
    loss, gradient = 0.0, np.zeros(4)
    for i, importance in ((0, 1.0), (1, r)):
        own, other = w[i] * w[i], w[i] * w[1 - i]
        value, slope = _output(own, other, b[i], p)
        loss += importance * value
        gradient[i] += importance * (2 * w[i] * slope[0] + w[1 - i] * slope[1])
        gradient[1 - i] += importance * w[i] * slope[1]
        gradient[2 + i] += importance * slope[2]
    return loss, gradient


def _output(own: float, other: float, bias: float, p: float) -> tuple[float, Array]:
    """E (x - ReLU(own x + other y + bias))^2 and its derivatives by own, other, bias: neither, either or both are there."""
    zero, one = np.zeros(1), np.ones(1)
    inside = _pieces(-bias / own) if own else (_X, _WEIGHT)
    across = _pieces(-bias / other) if other else (_X, _WEIGHT)
    x, y, weight = _square(own, other, bias)
    rows = (
        (zero, zero, one, (1 - p) ** 2),
        (inside[0], np.zeros_like(inside[0]), inside[1], p * (1 - p)),
        (np.zeros_like(across[0]), across[0], across[1], p * (1 - p)),
        (x, y, weight, p * p),
    )
    a, c = (np.concatenate([row[k] for row in rows]) for k in (0, 1))
    mass = np.concatenate([row[2] * row[3] for row in rows])
    pre = own * a + other * c + bias
    error = a - np.maximum(pre, 0)
    pull = -2 * mass * error * (pre > 0)
    return float(mass @ error**2), np.array([pull @ a, pull @ c, pull.sum()])


def _pieces(*breaks: float) -> tuple[Array, Array]:
    """Nodes and weights on [0, 1], cut at the breaks that lie in it."""
    ends = np.unique(np.clip([0.0, 1.0, *(b for b in breaks if np.isfinite(b))], 0, 1))
    size = np.diff(ends)[:, None]
    return (ends[:-1, None] + size * _X).ravel(), (size * _WEIGHT).ravel()


def _square(own: float, other: float, bias: float) -> tuple[Array, Array, Array]:
    """Nodes (x, y) and weights on the unit square, cut along own x + other y + bias = 0."""
    y, outer = _pieces(*((-bias / other, -(own + bias) / other) if other else ()))
    with np.errstate(over="ignore"):
        cut = np.clip(-(bias + other * y) / own, 0, 1) if own else np.zeros_like(y)
    low, high = cut[:, None] * _X, cut[:, None] + (1 - cut[:, None]) * _X
    x = np.concatenate([low, high], 1)
    inner = np.concatenate([cut[:, None] * _WEIGHT, (1 - cut[:, None]) * _WEIGHT], 1)
    return x.ravel(), np.repeat(y, x.shape[1]), (outer[:, None] * inner).ravel()


# ---- any number of features ----------------------------------------------------------------------------------------


def dimensionality(weights: Array) -> Array:
    """D_i = |W_i|^2 / sum_j (W_i / |W_i| . W_j)^2: the share of a dimension that each feature has (0 for one that is not kept).

    Shapes: weights [..., m, n], a column per feature -> [..., n].
    """
    w = np.asarray(weights, dtype=np.float64)
    length = (w**2).sum(-2)
    overlap = (np.einsum("...mi,...mj->...ij", w, w) ** 2).sum(-1)
    return np.divide(length**2, overlap, out=np.zeros_like(length), where=overlap > 0)


def geometry(name: Geometry) -> Array:
    """Unit vectors of a named arrangement, a column per feature. [m, n].

    Raises
    ------
    ModelError: no such arrangement.
    """
    if name in ("triangle", "pentagon"):
        n = 3 if name == "triangle" else 5
        around = 2 * np.pi / n * np.arange(n)
        return np.stack([np.cos(around), np.sin(around)])
    if name == "digon":
        return np.array([[1.0, -1.0]])
    if name == "tetrahedron":
        corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=np.float64)
        return corners.T / 3**0.5
    if name == "square_antiprism":
        turn = np.pi / 4 * np.arange(8)
        up = np.array([1.0, -1.0] * 4) / 3**0.5  # a tight frame: equal weight on all three axes
        return np.stack([(2 / 3) ** 0.5 * np.cos(turn), (2 / 3) ** 0.5 * np.sin(turn), up])
    raise ModelError(f"there is no arrangement {name!r}", instead=f"one of {', '.join(GEOMETRIES)}")


@dataclass(frozen=True)
class Toys:
    """Trained toy models, one per setting: the best of several starts.

    Shapes: weights [setting, m, n], a column per feature; bias [setting, n]; probability [setting]; importance
    [setting, n]; loss [setting], on fresh samples; curve [step / 100, setting], the loss while training.
    """

    weights: Array
    bias: Array
    probability: Array
    importance: Array
    loss: Array
    curve: Array
    seed: int


def train(
    probability: Sequence[float],
    importance: Sequence[Sequence[float]],
    *,
    m: int,
    seed: int,
    starts: int = 6,
    steps: int = 3000,
    batch: int = 512,
) -> Toys:
    """Train toy models by Adam on sampled features, all settings and starts at once, and keep each setting's best start.

    Parameters
    ----------
    probability: of a feature being there, one per setting. importance: [setting, n]. m: dimensions.

    Raises
    ------
    ModelError: settings that do not fit together, or a loss that is not finite.
    """
    import torch

    p, r = np.asarray(probability, dtype=np.float64), np.asarray(importance, dtype=np.float64)
    if p.ndim != 1 or r.shape[:1] != p.shape or r.ndim != 2 or min(m, starts, steps, batch) < 1:
        raise ModelError(
            f"{p.shape} probabilities and {r.shape} importances are no settings",
            instead="give one probability and one importance per feature for each setting, and counts >= 1",
        )
    _probability(float(p.min()), float(r.min()))
    _probability(float(p.max()), float(r.max()))
    generator = torch.Generator().manual_seed(child(seed, "superposition/train"))
    shape = (len(p), starts, m, r.shape[1])
    # spread over scales: which minimum a start falls into depends on it
    scale = torch.linspace(0.3, 1.0, starts, dtype=torch.float64)[:, None, None]
    w = (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()
    b = torch.zeros(len(p), starts, r.shape[1], dtype=torch.float64, requires_grad=True)
    chance, weight = torch.from_numpy(p)[:, None, None], torch.from_numpy(r)[:, None, None]
    optimiser = torch.optim.Adam([w, b], lr=0.02)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)

    def losses(n: int) -> torch.Tensor:
        size = (len(p), n, r.shape[1])
        x = torch.rand(size, generator=generator, dtype=torch.float64)
        x = (x * (torch.rand(size, generator=generator, dtype=torch.float64) < chance))[:, None]
        out = torch.relu(x @ w.transpose(-1, -2) @ w + b[:, :, None])
        return (weight * (x - out) ** 2).sum(-1).mean(-1)

    curve = []
    for step in range(steps):
        optimiser.zero_grad()
        loss = losses(batch)
        if step % 100 == 0:
            curve.append(loss.detach().min(1).values.numpy())
        loss.sum().backward()
        optimiser.step()
        plan.step()
    with torch.no_grad():
        final = losses(20_000)
    if not bool(torch.isfinite(final).all()):
        raise ModelError(
            "a toy model's loss is not finite",
            why="training diverged",
            instead="give importances of ordinary size",
        )
    best = final.argmin(1)
    rows = torch.arange(len(p))
    kept = (w.detach()[rows, best].numpy(), b.detach()[rows, best].numpy())
    return Toys(*kept, p, r, final[rows, best].numpy(), np.stack(curve), seed)
