"""How a model turns queries and keys by position, measured on the model itself rather than read from its config.

Families pair coordinates in two ways and stretch frequencies in many. One run that captures queries before and after gives
the pairing and the angle per position; where neither pairing explains what was seen, the layer is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from microtome.errors import ModelError

if TYPE_CHECKING:
    from microtome.facade import Model

__all__ = ["Rotation", "rotations"]

LENGTH = 24
OFF = 1e-3
"""Largest relative distance between what the model turned and what the measured angles turn."""


@dataclass(frozen=True, eq=False)
class Rotation:
    """One layer's rotary embedding.

    Shapes: first, second [pair] (coordinates that turn together), angles [pair] (radians per position), float64.
    factor: what turned coordinates are multiplied by (1 except in yarn and its kin). No pairs: nothing turns.
    """

    d_head: int
    first: Tensor
    second: Tensor
    angles: Tensor
    factor: float = 1.0

    @property
    def turns(self) -> bool:
        """Whether positions turn anything in this layer."""
        return len(self.angles) > 0

    def by(self, offsets: Tensor, times: int = 2) -> Tensor:
        """R such that the score of a key `offset` positions back is (query @ R) . key. Shapes: [offset] -> [offset, d_head, d_head].

        A mean over offsets is the mean of these matrices: scores are linear in R. times: how often the factor counts (2 in a
        score, where the query and the key carry it; 1 for what turns a query to its position).
        """
        turn = offsets.double()[:, None] * self.angles
        scale = self.factor**times
        out = torch.eye(self.d_head, dtype=torch.float64).repeat(len(offsets), 1, 1)
        cos, sin = turn.cos() * scale, turn.sin() * scale
        # rows: turned to position i, (a, b) is (a cos - b sin, a sin + b cos), and R(i) R(j)^T = R(i - j)
        out[:, self.first, self.first], out[:, self.second, self.second] = cos, cos
        out[:, self.first, self.second], out[:, self.second, self.first] = sin, -sin
        return out


def rotations(model: Model) -> tuple[Rotation | ModelError, ...]:
    """Every layer's rotation, or the error that says why scores cannot be computed from its weights.

    One run of one prompt of up to 24 tokens.
    """
    facts = model.facts
    if facts.positions in ("alibi", "unknown"):
        why = (
            "positions are added to the scores"
            if facts.positions == "alibi"
            else "how this family knows positions is not known"
        )
        return tuple(_refused(layer, why) for layer in range(facts.n_layers))
    asked = [
        i for i, layer in enumerate(facts.layers) if layer.kind == "attention" and "q" not in layer.lacks
    ]
    turning = [
        i for i in asked if model.binding.slots[i].block.rotates and "q_pre" not in facts.layers[i].lacks
    ]
    length = min(LENGTH, facts.n_ctx or LENGTH)
    ids = torch.randint(0, facts.d_vocab, (length,), generator=torch.Generator().manual_seed(0)).tolist()
    found: dict[int, Rotation | ModelError] = {}
    if turning:
        trace = model.run([ids], [f"L{i}.{p}" for i in turning for p in ("q_pre", "q")], logits=None)
        found = {i: _measure(i, trace[f"L{i}.q_pre"][0], trace[f"L{i}.q"][0]) for i in turning}
    out: list[Rotation | ModelError] = []
    for i, layer in enumerate(facts.layers):
        if i in found:
            out.append(found[i])
        elif i in asked and not model.binding.slots[i].block.rotates:
            none = torch.zeros(0, dtype=torch.long)
            out.append(Rotation(layer.d_head, none, none, torch.zeros(0, dtype=torch.float64)))
        else:
            why = layer.lacks.get("q_pre") or layer.lacks.get("q") or f"it is a layer of {layer.kind}"
            out.append(_refused(i, why))
    return tuple(out)


def _measure(layer: int, before: Tensor, after: Tensor) -> Rotation | ModelError:
    """Pairing and angles from queries. Shapes: [pos, head, d_head] each."""
    before, after = before.detach().double().cpu(), after.detach().double().cpu()
    d = before.shape[-1]
    size = after.abs().max().clamp_min(1e-30)
    moved = ((after - before).abs().amax((0, 1)) > 1e-6 * size).nonzero()[:, 0]
    if not len(moved):
        none = torch.zeros(0, dtype=torch.long)
        return Rotation(d, none, none, torch.zeros(0, dtype=torch.float64))
    for first, second in _pairings(d, int(moved.max()) + 1):
        a, b = (torch.complex(x[..., first], x[..., second]) for x in (before, after))
        ratio = (b * a.conj()).sum(1) / a.abs().square().sum(1).clamp_min(1e-30)  # [pos, pair]
        factor = float(ratio.abs().median())
        angles = _slopes(ratio)
        rotation = Rotation(d, first, second, angles, factor)
        place = torch.arange(len(before), dtype=torch.float64)[:, None] * angles
        turned = a * torch.polar(torch.full_like(place, factor), place + ratio[0].angle())[:, None]
        still = torch.ones(d, dtype=torch.bool)
        still[first] = still[second] = False
        off = max(
            float((turned - b).abs().max()),
            float((after - before)[..., still].abs().amax() if still.any() else 0),
        )
        if off <= OFF * float(size):
            return rotation
    return _refused(
        layer, "its queries are not turned pair by pair, by an angle in proportion to the position"
    )


def _slopes(ratio: Tensor) -> Tensor:
    """Radians per position: from the first step, refined over growing spans, so that no angle is read modulo a turn."""
    slope = (ratio[1] * ratio[0].conj()).angle()
    span = 2
    while span < len(ratio):
        left = (ratio[span] * ratio[0].conj() * torch.polar(torch.ones_like(slope), -span * slope)).angle()
        slope = slope + left / span
        span *= 2
    return slope


def _pairings(d: int, used: int) -> list[tuple[Tensor, Tensor]]:
    """Halves against each other (Llama, NeoX) and neighbours (GPT-J), over the whole head or its first part."""
    out = []
    for width in dict.fromkeys((used + used % 2, d)):
        half = torch.arange(width // 2)
        out += [(half, half + width // 2), (2 * half, 2 * half + 1)]
    return out


def _refused(layer: int, why: str) -> ModelError:
    return ModelError(f"scores of layer {layer} cannot be computed from weights at a given offset", why=why,
                      instead="OV circuits and composition scores do not need positions")  # fmt: skip
