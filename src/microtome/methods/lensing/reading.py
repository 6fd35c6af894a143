"""What each lens says at each layer of held-out text, against what the model says at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from microtome.methods.lensing.translators import Translators
from microtome.methods.texts import Blocks
from microtome.results.technique import progress

if TYPE_CHECKING:
    from microtome.facade import Model

__all__ = ["METRICS", "Readings", "calibration_error", "read", "reliability"]

METRICS = ("kl", "agreement", "nll")
BATCH = 4
BINS = 10


@dataclass(frozen=True)
class Readings:
    """Shapes: values [metric, layer + end, lens, block] (means over a block's positions); null the same, each lens reading the
    stream of another block against this one's end; confidence, right [layer + end, lens, token]: probability of the likeliest
    token and whether it is the next one; of_block [token]; gap: the largest distance of any lens's logits at the end from the
    model's own.
    """

    lenses: tuple[str, ...]
    values: np.ndarray
    null: np.ndarray
    confidence: np.ndarray
    right: np.ndarray
    of_block: np.ndarray
    gap: float


@torch.no_grad()
def read(
    model: Model, lenses: Mapping[str, Translators], blocks: Blocks, layers: Sequence[int], skip: int
) -> Readings:
    """Decode every lens at every layer and position (the first `skip` and the last left out)."""
    places: list[int | None] = [*layers, None]
    shape = (len(METRICS), len(places), len(lenses), len(blocks))
    values, null = np.zeros(shape), np.zeros(shape)
    confidence: list[list[np.ndarray]] = []
    right: list[list[np.ndarray]] = []
    of_block: list[np.ndarray] = []
    gap = 0.0
    sites = [*(f"L{k}.resid_pre" for k in layers), "final_resid"]
    for start in range(0, len(blocks), BATCH):
        ids = torch.tensor(blocks.ids[start : start + BATCH])
        rows, inner = len(ids), slice(skip, ids.shape[1] - 1)
        trace = model.run(ids.tolist(), sites)
        end = trace.logits[:, inner].float().log_softmax(-1)
        following = ids[:, skip + 1 :].to(end.device)
        best = end.argmax(-1)
        kept: list[list[np.ndarray]] = [[], []]
        for p, place in enumerate(places):
            stream = trace["final_resid" if place is None else f"L{place}.resid_pre"][:, inner]
            seen: list[list[np.ndarray]] = [[], []]
            for n, lens in enumerate(lenses.values()):
                said = torch.stack([lens.logits(model, place, row) for row in stream]).float()
                if place is None:
                    gap = max(gap, float((said.log_softmax(-1) - end).abs().max()))
                said = said.log_softmax(-1)
                values[:, p, n, start : start + rows] = _scores(said, end, best, following)
                other = said.roll(1, 0) if rows > 1 else said.roll(said.shape[1] // 2, 1)
                null[:, p, n, start : start + rows] = _scores(other, end, best, following)
                top = said.max(-1)
                seen[0].append(top.values.exp().flatten().cpu().numpy())
                seen[1].append((top.indices == following).flatten().cpu().numpy())
            kept[0].append(np.stack(seen[0]))
            kept[1].append(np.stack(seen[1]))
        confidence.append([np.stack(kept[0])])
        right.append([np.stack(kept[1])])
        of_block.append(np.repeat(np.arange(start, start + rows), end.shape[1]))
        progress(start + rows, len(blocks), "blocks", "reading with every lens")
    return Readings(
        tuple(lenses), values, null, np.concatenate([c[0] for c in confidence], -1), np.concatenate([r[0] for r in right], -1),
        np.concatenate(of_block), gap,
    )  # fmt: skip


def _scores(said: Tensor, end: Tensor, best: Tensor, following: Tensor) -> np.ndarray:
    """KL from the end to what is said (nats), agreement of the likeliest token, -log p of the next. Shapes: [block, pos, d_vocab] -> [3, block]."""
    divergence = (end.exp() * (end - said)).sum(-1).mean(1)
    agreement = (said.argmax(-1) == best).double().mean(1)
    loss = -said.gather(-1, following[..., None])[..., 0].mean(1)
    return torch.stack([divergence.double(), agreement, loss.double()]).cpu().numpy()


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error: mean over ten equal bins, by their tokens, of |mean confidence - share right|. Shapes: [token]."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    sums = (np.bincount(bins, w, minlength=BINS) for w in (confidence, right.astype(float)))
    first, second = sums
    return float(np.abs(first - second).sum() / len(confidence))


def reliability(confidence: np.ndarray, right: np.ndarray) -> list[dict[str, float]]:
    """Per bin with tokens in it: mean confidence, share right, how many. Shapes: [token]."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [{"predicted": float(confidence[bins == b].mean()), "observed": float(right[bins == b].mean()), "n": int((bins == b).sum())}
            for b in range(BINS) if (bins == b).any()]  # fmt: skip
