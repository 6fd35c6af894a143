"""Rules in place of derivatives where a derivative misleads (RelP: Jafari et al. 2025, after layer-wise relevance propagation).

A norm's divisor counts as a constant; an activation function passes back what its value says, act(x) = x * (act(x) / x), the
quotient constant; a gated product gives half to each of its factors. Attention keeps its derivative. The forward is
unchanged: only what flows back is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from microtome.graph.reading import Reading
from microtome.model.binding import Binding
from microtome.trace.session import Read, Whole, whole

_SCALES = ("ln1_scale", "ln2_scale", "ln1_post_scale", "ln2_post_scale", "q_scale", "k_scale")


class RuleWrites(list[Whole]):
    """Writes that change what flows back in one layer, with the reads that they need."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[Read] = []


def rule_writes(reading: Reading, layer: int) -> RuleWrites:
    """The rules of one layer. Parts that it lacks (an MLP of experts) keep their derivative."""
    binding = reading.binding
    out = RuleWrites()
    for point in _SCALES:
        if binding.lacking(point, layer) is None:
            out.append(whole(point, layer, torch.detach))
    if binding.lacking("neurons", layer) is None and binding.lacking("mlp_pre", layer) is None:
        pre = Read("mlp_pre", layer, live=True)
        gate = Read("mlp_gate", layer, live=True) if binding.lacking("mlp_gate", layer) is None else None
        out.reads += [pre] if gate is None else [pre, gate]
        out.append(whole("neurons", layer, lambda old: _neurons(old, pre, gate)))
    return out


def _neurons(old: Tensor, pre: Read, gate: Read | None) -> Tensor:
    """The same neurons, with the rules as their derivative. Shapes: [row, pos, neuron] -> same."""
    assert pre.value is not None
    x = pre.value.view(old.shape)
    if gate is None:
        passed = x * _quotient(old, x)
    else:
        assert gate.value is not None
        g = gate.value.view(old.shape)
        act = _quotient(old, x)
        passed = 0.5 * (act * x + g * _quotient(act, g) * x.detach())
    return old.detach() + passed - passed.detach()


def _quotient(value: Tensor, by: Tensor) -> Tensor:
    """value / by as a constant; 0 where both vanish."""
    value, by = value.detach(), by.detach()
    return torch.where(by == 0, torch.zeros_like(by), value / torch.where(by == 0, torch.ones_like(by), by))


def frozen_unembed(binding: Binding, resid: Tensor, columns: Tensor | None) -> Tensor:
    """`Binding.unembed` with the final norm's divisor as a constant. Shapes: [..., d_model] -> [..., column]."""
    path = binding.stack.get("final_norm")
    if path is None:
        return binding.readout(resid, columns)
    out = binding.module(path)(resid)
    scale = binding.final_norm.scale(resid)
    return binding.readout(
        out + (out - binding.final_norm.bias.to(out)) * (scale / scale.detach() - 1).to(out), columns
    )
