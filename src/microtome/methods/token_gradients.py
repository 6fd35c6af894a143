"""Gradients of a metric at the token embeddings: times the input (first order), and integrated along a path from a baseline.

Integrated gradients (Sundararajan, Taly & Yan 2017) add up to the metric's change between baseline and input. They do on every
stretch of the path, too, and so say where it is rough: a language model jumps where the path leaves text behind. Stretches are
halved where most is missing, until nothing much is or the limit is reached.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from microtome.facade import Model
from microtome.metrics import Scoring
from microtome.replay.sweep import Bench
from microtome.results.technique import progress
from microtome.trace.edits import Patch

SITE = "tok_embed"
ROWS = 16
NODES = 4
"""Gauss-Legendre nodes in a stretch."""
SPLIT = 4
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ends:
    """Both ends of the path per prompt: embeddings of its tokens and of the baseline, [pos, d_model] each."""

    inputs: tuple[Tensor, ...]
    baselines: tuple[Tensor, ...]


@dataclass(frozen=True)
class Integrated:
    """Attributions per prompt [pos]; change: metric at the input minus at the baseline; gap: of the sum, as a share of the
    change (at least of the mean change over prompts); steps: nodes used, per prompt."""

    values: tuple[Floats, ...]
    change: Floats
    gap: Floats
    steps: tuple[int, ...]


def gradient_x_input(model: Model, bench: Bench, ends: Ends) -> tuple[Floats, ...]:
    """Gradient at the input times (input - baseline), summed over the width: [pos] per prompt, metric units."""
    out = []
    for i in range(len(bench.ids)):
        grads = _at(model, bench, i, [ends.inputs[i]])
        out.append(_dot(grads[0], ends, i))
    return tuple(out)


def integrated(
    model: Model, bench: Bench, ends: Ends, *, steps: int, most: int, tolerance: float
) -> Integrated:
    """Integrated gradients from baseline to input. steps: gradients to begin with; most: at most so many per prompt."""
    n = len(bench.ids)
    edges = np.array([_metric_only(model, bench, i, [ends.baselines[i], ends.inputs[i]]) for i in range(n)])
    change = edges[:, 1] - edges[:, 0]
    scale = np.maximum(np.abs(change), np.abs(change).mean())
    scale[scale == 0] = 1.0
    values: list[Floats] = []
    gaps, used = np.zeros(n), [0] * n
    for i in range(n):
        path = _Path(model, bench, ends, i)
        path.cut([k / -(-steps // NODES) for k in range(-(-steps // NODES) + 1)])
        while path.missing > tolerance * scale[i] and path.used + 2 * NODES <= most:
            path.refine(min(SPLIT, (most - path.used) // (2 * NODES)))
        found = _dot(path.mean_gradient(), ends, i)
        gaps[i], used[i] = abs(float(found.sum()) - change[i]) / scale[i], path.used
        values.append(found)
        progress(i + 1, n, "prompts", "integrating gradients")
    return Integrated(tuple(values), change, gaps, tuple(used))


@dataclass
class _Stretch:
    """Part of a path: its weighted gradient, and what its integral misses of the metric's change there."""

    low: float
    high: float
    gradient: Tensor
    missing: float


class _Path:
    """The straight path of one prompt, in stretches."""

    def __init__(self, model: Model, bench: Bench, ends: Ends, i: int) -> None:
        self.model, self.bench, self.ends, self.i = model, bench, ends, i
        self.step = ends.inputs[i] - ends.baselines[i]
        self.stretches: list[_Stretch] = []
        self.metric: dict[float, float] = {}
        self.used = 0
        self.batch = max(1, ROWS // max(1, bench.scoring.prompt.count(i)))

    @property
    def missing(self) -> float:
        """Sum over stretches of what each misses."""
        return sum(s.missing for s in self.stretches)

    def mean_gradient(self) -> Tensor:
        """The gradient averaged along the path. Shapes: [pos, d_model]."""
        return torch.stack([s.gradient for s in self.stretches]).sum(0)

    def refine(self, k: int) -> None:
        """Halve the k stretches that miss most."""
        self.stretches.sort(key=lambda s: -s.missing)
        worst, self.stretches = self.stretches[:k], self.stretches[k:]
        for s in worst:
            self.cut([s.low, (s.low + s.high) / 2, s.high])

    def cut(self, at: Sequence[float]) -> None:
        """Integrate the stretches between these points of the path (0: the baseline, 1: the input)."""
        new = [t for t in at if t not in self.metric]
        for start in range(0, len(new), self.batch):
            some = new[start : start + self.batch]
            found = _metric_only(self.model, self.bench, self.i, [self._place(t) for t in some])
            self.metric.update(zip(some, found, strict=True))
        nodes, weights = np.polynomial.legendre.leggauss(NODES)
        pairs = list(zip(at, at[1:], strict=False))
        where = [low + (high - low) * (1 + float(x)) / 2 for low, high in pairs for x in nodes]
        grads: list[Tensor] = []
        for start in range(0, len(where), self.batch):
            some = where[start : start + self.batch]
            grads += _at(self.model, self.bench, self.i, [self._place(t) for t in some])
        self.used += len(where)
        for k, (low, high) in enumerate(pairs):
            own = zip(grads[k * NODES : (k + 1) * NODES], weights, strict=True)
            gradient = torch.stack([float(w) / 2 * (high - low) * g for g, w in own]).sum(0)
            there = float((gradient * self.step.double()).sum())
            self.stretches.append(
                _Stretch(low, high, gradient, abs(there - (self.metric[high] - self.metric[low])))
            )

    def _place(self, t: float) -> Tensor:
        return self.ends.baselines[self.i] + t * self.step


def _dot(grad: Tensor, ends: Ends, i: int) -> Floats:
    step = (ends.inputs[i] - ends.baselines[i]).double()
    return np.asarray((grad.double() * step).sum(-1).cpu().numpy(), dtype=np.float64)


def _rows(bench: Bench, i: int, copies: int) -> tuple[Scoring, list[list[int]]]:
    part = bench.scoring.select([i] * copies)
    return part, [[*bench.ids[i], *tail] for tail in part.tails]


def _edits(rows: Sequence[Sequence[int]], part: Scoring, at: Sequence[Tensor], length: int) -> list[list[Patch]]:  # fmt: skip
    """Each row's prompt tokens put where the path is; its answer's own tokens stay."""
    return [[Patch(f"{SITE}@0:{length}", at[place][None])] for _, place in zip(rows, part.prompt, strict=True)]  # fmt: skip


def _read(bench: Bench, part: Scoring, length: int) -> Callable[[Tensor], Tensor]:
    """Logits of whole rows [row, pos, d_vocab] -> the bench's first metric [copy]."""

    def metric(logits: Tensor) -> Tensor:
        steps = torch.arange(part.steps, device=logits.device)
        last = torch.tensor([len(t) for t in part.tails], device=logits.device)
        cols = length - 1 + torch.minimum(steps[None], last[:, None])
        rows = torch.arange(len(part.tails), device=logits.device)[:, None]
        return bench.metrics[0](logits[rows, cols], part)

    return metric


def _at(model: Model, bench: Bench, i: int, at: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of the metric of prompt i at these embeddings of its tokens: [pos, d_model] each."""
    part, rows = _rows(bench, i, len(at))
    length = len(bench.ids[i])
    found = model.grad(rows, _read(bench, part, length), [SITE], _edits(rows, part, at, length))
    grads = found[SITE]
    summed = [torch.zeros_like(at[0], dtype=torch.float64) for _ in at]
    for row, place in enumerate(part.prompt):
        summed[place] += grads[row, :length].double().to(summed[place].device)
    return summed


def _metric_only(model: Model, bench: Bench, i: int, at: Sequence[Tensor]) -> list[float]:
    part, rows = _rows(bench, i, len(at))
    length = len(bench.ids[i])
    trace = model.run(rows, edits=_edits(rows, part, at, length))
    return [float(v) for v in _read(bench, part, length)(trace.logits)]
