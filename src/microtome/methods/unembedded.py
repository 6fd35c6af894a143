"""What a direction that is written to the stream says in the vocabulary: the final norm's linear part and W_U.

Left out: the final norm's division (one positive factor for all tokens of a position, so the order stays), its bias and that of
the unembedding, a softcap, and whatever later layers make of the direction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from microtome.controls.directions import isotropic

if TYPE_CHECKING:
    from microtome.facade import Model

__all__ = ["vocabulary"]

LEFT_OUT = "the final norm's division, biases, a softcap, and what later layers make of it"
_AT_ONCE = 64
NULLS = 64


@torch.no_grad()
def vocabulary(model: Model, writes: Tensor, k: int, seed: int) -> tuple[list[dict[str, Any]], str]:
    """The k tokens that each direction raises and lowers most. Shapes: writes [unit, d_model].

    Returns (rows of unit, side, rank, token id, value and null, why there are none). `null`: the 95th percentile of the
    largest such number (smallest, of the bottom) of random directions of the same length.
    """
    if model.binding.stack.get("project_out") is not None:
        return [], "this model projects its stream before the unembedding"
    matrix = model.weights.W_U.detach()
    norm = model.binding.final_norm
    random = torch.from_numpy(isotropic(writes.shape[1], np.ones(NULLS), seed=seed, name="vocabulary"))
    extreme = [float(side.amax(1).quantile(0.95)) for side in _both(_through(matrix, norm, random.float()))]
    rows: list[dict[str, Any]] = []
    k = min(k, matrix.shape[1])
    for start in range(0, len(writes), _AT_ONCE):
        part = writes[start : start + _AT_ONCE]
        length = part.norm(dim=1).tolist()
        for side, logits, null in zip(("top", "bottom"), _both(_through(matrix, norm, part)), extreme, strict=True):  # fmt: skip
            best = logits.topk(k, 1)
            sign = 1 if side == "top" else -1
            for unit, (values, ids) in enumerate(
                zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ):
                rows += [{"unit": start + unit, "side": side, "rank": r, "token": t, "value": sign * v, "null": sign * null * length[unit]}
                         for r, (v, t) in enumerate(zip(values, ids, strict=True))]  # fmt: skip
    return rows, ""


def _through(matrix: Tensor, norm: Any, vectors: Tensor) -> Tensor:
    moved = vectors.to(norm.gain)
    return (norm.linear(moved, torch.ones_like(moved[..., :1])).to(matrix) @ matrix).float().cpu()


def _both(logits: Tensor) -> tuple[Tensor, Tensor]:
    return logits, -logits
