"""Probes that are fitted by steps: logistic regression (scikit-learn) and the attention-pooled probe (torch)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from microtome.controls.clusters import FloatArray
from microtome.methods.probing.closed import Linear
from microtome.results import seeds

ITERATIONS, TOLERANCE = 100, 1e-8
STEPS, RATE, DECAY = 150, 0.02, 1e-2


class Standardised:
    """Rows made ready for any number of logistic probes: one column of labels after the other.

    values [item, d], scaled to mean 0 and variance 1 on these rows. Where rows are fewer than d, probes are fitted in their
    span: the penalty keeps the weights there, so they are the same.
    """

    def __init__(self, values: ArrayLike) -> None:
        from sklearn.preprocessing import StandardScaler

        self.scaler = StandardScaler()
        rows = self.scaler.fit_transform(np.asarray(values, dtype=np.float64))
        self.basis = _span(rows) if len(rows) < rows.shape[1] else None
        self.rows = rows if self.basis is None else rows @ self.basis

    def logistic(self, labels: ArrayLike, *, C: float) -> Linear:
        """L2-regularised logistic regression by Newton's method, at most 100 steps (scikit-learn warns where these are not enough); weights in raw units.

        labels [item] with both classes.
        """
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=C, solver="newton-cholesky", tol=TOLERANCE, max_iter=ITERATIONS)
        model.fit(self.rows, np.asarray(labels, dtype=bool))
        found = model.coef_[0] if self.basis is None else self.basis @ model.coef_[0]
        weights = found / self.scaler.scale_
        offset = float(model.intercept_[0] - weights @ self.scaler.mean_)
        return Linear(weights[:, None], np.array([offset]))


def logistic(values: ArrayLike, labels: ArrayLike, *, C: float) -> Linear:
    """One logistic probe: see `Standardised`. values [item, d], labels [item] with both classes."""
    return Standardised(values).logistic(labels, C=C)


def _span(rows: FloatArray) -> FloatArray:
    """An orthonormal basis of the span of the rows, [d, rank]; of one direction where all are equal."""
    _, sizes, directions = np.linalg.svd(rows, full_matrices=False)
    kept = sizes > sizes[0] * max(rows.shape) * np.finfo(np.float64).eps
    kept[0] = True
    return np.asarray(directions[kept].T)


@dataclass(frozen=True)
class Attention:
    """One learned query and one reading direction: softmax(q . h) over a text's own tokens, then w . pooled + b.

    query, weights [d] act on (h - mean) / scale.
    """

    query: torch.Tensor
    weights: torch.Tensor
    bias: float
    mean: torch.Tensor
    scale: torch.Tensor

    def scores(self, values: ArrayLike, mask: NDArray[np.bool_]) -> FloatArray:
        """[item, pos, d], own tokens [item, pos] -> [item]."""
        rows = (torch.as_tensor(np.asarray(values)) - self.mean) / self.scale
        with torch.no_grad():
            out = _pooled(rows, torch.as_tensor(mask), self.query, self.weights) + self.bias
        return out.double().numpy()


def attention(values: ArrayLike, mask: NDArray[np.bool_], labels: ArrayLike, *, seed: int) -> Attention:
    """Fit an attention-pooled probe by Adam on all rows at once. values [item, pos, d] float32, mask [item, pos]."""
    rows, own = torch.as_tensor(np.asarray(values, dtype=np.float32)), torch.as_tensor(mask)
    flat = rows[own]
    mean, scale = flat.mean(0), flat.std(0).clamp_min(1e-6)
    rows = (rows - mean) / scale
    target = torch.as_tensor(np.asarray(labels, dtype=np.float32))
    generator = torch.Generator().manual_seed(seeds.child(seed, "attention probe") % 2**31)
    d = rows.shape[-1]
    query, weights = (torch.randn(d, generator=generator) * d**-0.5 * s for s in (0.1, 0.1))
    bias = torch.zeros(1)
    free = [p.requires_grad_() for p in (query, weights, bias)]
    optimiser = torch.optim.AdamW(free, lr=RATE, weight_decay=DECAY)
    with torch.enable_grad():
        for _ in range(STEPS):
            optimiser.zero_grad()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                _pooled(rows, own, query, weights) + bias, target
            )
            loss.backward()
            optimiser.step()
    return Attention(query.detach(), weights.detach(), float(bias.detach()), mean, scale)


def _pooled(
    rows: torch.Tensor, own: torch.Tensor, query: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """The mask goes in before the softmax: a pad must not take weight from a token. Shapes: [item, pos, d] -> [item]."""
    scores, values = (rows @ torch.stack([query, weights], -1)).unbind(
        -1
    )  # both at once: reading `rows` is what takes time
    look = (scores * rows.shape[-1] ** -0.5).masked_fill(~own, float("-inf")).softmax(-1)
    return (look * values).sum(-1)
