"""Random changes of a model's weights, as large as a real one, tensor by tensor: the null of a difference of two models.

Which change is a fair comparison depends on how the real one was made: rounding is not Gaussian, and a low rank acts on fewer tokens
than a full one, whatever was learned. `fitting` chooses by the weights alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from microtome.results import seeds

Noise = Literal["gaussian", "spectrum", "rounding"]
KINDS: tuple[Noise, ...] = ("gaussian", "spectrum", "rounding")
WORDS: dict[Noise, str] = {
    "gaussian": "Gaussian noise of the same size",
    "spectrum": "random changes with the same singular values",
    "rounding": "other roundings of the same coarseness",
}
"""What the null is, in a sentence."""
BLOCK, SMALL = 32, 8
"""Neighbouring weights that share a step in the roundings in use, or a part of those that do."""
FEWER, TOUCHED = 0.97, 0.8
"""Rounded: so many fewer different values per block, and so many of the weights that are not 0 changed."""
SAME = 1e-5
JITTER = 0.15
"""Steps of other roundings differ from the real one's by up to this share."""
KEPT = 1e-6


def noise_like(delta: Tensor, seed: int, name: str) -> Tensor:
    """Gaussian noise with the norm of `delta`, float64 on its device. Named by tensor: no other draw changes it."""
    norm = torch.linalg.vector_norm(delta.double())
    drawn = torch.randn(delta.shape, generator=_random(seed, name)).to(delta.device, torch.float64)
    length = torch.linalg.vector_norm(drawn)
    return drawn * (norm / length) if float(length) else drawn


@dataclass
class RandomChange:
    """Draws of a random change of the tensors in `changed` (name -> the real difference).

    "gaussian": every entry normal. "spectrum": the real singular values between random orthonormal vectors, so that a low rank
    stays one. "rounding": the old weights rounded to other steps, in each block about as coarse as the real error there. What is no
    matrix is moved by Gaussian noise. Each tensor is moved as far as it really was.
    """

    old: Mapping[str, Tensor]
    changed: Mapping[str, Tensor]
    kind: Noise
    _values: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _axes: dict[str, int] = field(default_factory=dict, repr=False)

    def draw(self, name: str, seed: int) -> Tensor:
        """One tensor's change, float64, with the shape and norm of the real one."""
        delta = self.changed[name]
        if delta.dim() != 2 or self.kind == "gaussian":
            return noise_like(delta, seed, name)
        made = self._spectrum(name, seed) if self.kind == "spectrum" else self._rounding(name, seed)
        length = torch.linalg.vector_norm(made)
        norm = torch.linalg.vector_norm(delta.double())
        return made * (norm / length) if float(length) else noise_like(delta, seed, name)

    def _spectrum(self, name: str, seed: int) -> Tensor:
        delta, generator = self.changed[name].double(), _random(seed, name)
        if name not in self._values:
            values = torch.linalg.svdvals(delta)
            self._values[name] = values[values > KEPT * values.max()]
        values = self._values[name]
        left, right = (
            torch.linalg.qr(torch.randn(n, len(values), generator=generator, dtype=torch.float64))[0].to(
                delta
            )
            for n in delta.shape
        )
        return (left * values) @ right.T

    def _rounding(self, name: str, seed: int) -> Tensor:
        old, delta = self.old[name], self.changed[name]
        if name not in self._axes:
            self._axes[name] = 0 if _gridded(old, delta) == 0 else 1
        if self._axes[name] == 1:
            return _other_rounding(delta.double(), old.double(), _random(seed, name))
        return _other_rounding(delta.double().T, old.double().T, _random(seed, name)).T


def fitting(old: Mapping[str, Tensor], changed: Mapping[str, Tensor], ranks: tuple[float, float]) -> Noise:
    """The kind of change that this one is: "rounding" if every changed matrix lies on a coarse grid on which the old one does not,
    "spectrum" if it has at most half the rank that it could have (ranks: both, summed over matrices), else "gaussian".
    """
    matrices = [name for name, delta in changed.items() if delta.dim() == 2]
    if matrices and all(_gridded(old[n], changed[n]) is not None for n in matrices):
        return "rounding"
    rank, full = ranks
    return "spectrum" if matrices and rank <= full / 2 else "gaussian"


def _random(seed: int, name: str) -> torch.Generator:
    return torch.Generator().manual_seed(seeds.child(seed, f"noise/{name}"))


def _gridded(old: Tensor, delta: Tensor) -> int | None:
    """The axis along which new weights take fewer values per block than old ones; None if they do not, or if many never moved."""
    here = old != 0
    if not bool(here.any()) or float((delta[here] != 0).double().mean()) < TOUCHED:
        return None
    new = old.double() + delta.double()
    shares = {
        axis: min(
            _values_per_block(new, axis, n) / _values_per_block(old.double(), axis, n) for n in (BLOCK, SMALL)
        )
        for axis in (1, 0)
    }
    best = min(shares, key=lambda axis: shares[axis])
    return best if shares[best] < FEWER else None


def _values_per_block(weights: Tensor, axis: int, block: int) -> float:
    """Mean number of different values in blocks along an axis, up to what storing them rounds."""
    rows = weights if axis == 1 else weights.T
    wide = rows.shape[1] // block * block or rows.shape[1]
    blocks = rows[:, :wide].reshape(-1, min(block, wide)).sort(dim=1).values
    apart = blocks.diff(dim=1) > SAME * blocks.abs().amax(1, keepdim=True)
    return float(apart.sum(1).double().mean()) + 1


def _other_rounding(error: Tensor, w: Tensor, generator: torch.Generator) -> Tensor:
    """Errors of rounding to steps that are random, near those that leave errors of the real size in each block of a row."""
    out = torch.zeros_like(w)
    for start in range(0, w.shape[1], BLOCK):
        part = w[:, start : start + BLOCK]
        # an error spread evenly over a step has a variance of step^2 / 12
        step = (12 * error[:, start : start + BLOCK].pow(2).mean(1, keepdim=True)).sqrt()
        drawn = torch.rand(len(part), 1, generator=generator, dtype=torch.float64).to(step)
        step = step * (1 + JITTER * (2 * drawn - 1))
        level = torch.where(step > 0, part / step, torch.zeros_like(part)).round()
        out[:, start : start + BLOCK] = torch.where(step > 0, level * step - part, torch.zeros_like(part))
    return out
