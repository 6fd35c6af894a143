"""Gradients of a metric at the token embeddings: times the input (first order), and integrated along a path from a baseline.

Integrated gradients (Sundararajan, Taly & Yan 2017) add up to the metric's change between baseline and input; the path is
integrated by Gauss-Legendre nodes, doubled until they do or the limit is reached.
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
        grads, _ = _at(model, bench, i, [ends.inputs[i]])
        out.append(_dot(grads[0], ends, i))
    return tuple(out)


def integrated(
    model: Model, bench: Bench, ends: Ends, *, steps: int, most: int, tolerance: float
) -> Integrated:
    """Integrated gradients from baseline to input; nodes are doubled for prompts whose sum misses by more than tolerance."""
    n = len(bench.ids)
    edges = np.array([_metric_only(model, bench, i, [ends.baselines[i], ends.inputs[i]]) for i in range(n)])
    change = edges[:, 1] - edges[:, 0]
    scale = np.maximum(np.abs(change), np.abs(change).mean())
    scale[scale == 0] = 1.0
    values: list[Floats] = []
    gaps, used = np.zeros(n), [0] * n
    for i in range(n):
        nodes = steps
        while True:
            mean = _mean_gradient(model, bench, ends, i, nodes)
            found = _dot(mean, ends, i)
            gaps[i], used[i] = abs(float(found.sum()) - change[i]) / scale[i], nodes
            if gaps[i] <= tolerance or nodes * 2 > most:
                break
            nodes *= 2
        values.append(found)
        progress(i + 1, n, "prompts", "integrating gradients")
    return Integrated(tuple(values), change, gaps, tuple(used))


def _mean_gradient(model: Model, bench: Bench, ends: Ends, i: int, nodes: int) -> Tensor:
    places, weights = np.polynomial.legendre.leggauss(nodes)
    total = torch.zeros_like(ends.inputs[i], dtype=torch.float64)
    low, step = ends.baselines[i], ends.inputs[i] - ends.baselines[i]
    per = max(1, ROWS // max(1, bench.scoring.prompt.count(i)))
    for start in range(0, nodes, per):
        at = [low + (1 + float(t)) / 2 * step for t in places[start : start + per]]
        grads, _ = _at(model, bench, i, at)
        for grad, weight in zip(grads, weights[start : start + per], strict=True):
            total += float(weight) / 2 * grad.double()
    return total


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


def _at(model: Model, bench: Bench, i: int, at: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Gradients of the metric of prompt i at these embeddings of its tokens: [pos, d_model] each."""
    part, rows = _rows(bench, i, len(at))
    length = len(bench.ids[i])
    found = model.grad(rows, _read(bench, part, length), [SITE], _edits(rows, part, at, length))
    grads = found[SITE]
    summed = [torch.zeros_like(at[0], dtype=torch.float64) for _ in at]
    for row, place in enumerate(part.prompt):
        summed[place] += grads[row, :length].double().to(summed[place].device)
    return summed, found.logits


def _metric_only(model: Model, bench: Bench, i: int, at: Sequence[Tensor]) -> list[float]:
    part, rows = _rows(bench, i, len(at))
    length = len(bench.ids[i])
    trace = model.run(rows, edits=_edits(rows, part, at, length))
    return [float(v) for v in _read(bench, part, length)(trace.logits)]
