"""Gradients of a metric at what every reader sees, layer by layer, on recorded runs.

The forward is the model's own, from the recorded base on: columns before the first difference are never run again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from microtome.errors import ModelError
from microtome.graph.nodes import ATTENTION_KINDS
from microtome.graph.patched import Recorded
from microtome.graph.reading import POINT, Reading
from microtome.graph.rules import RuleWrites, frozen_unembed, rule_writes
from microtome.graph.runs import taken
from microtome.replay.bench import Bench, columns_of, logits_of
from microtome.replay.call import Segment, call_layer
from microtome.trace import seam
from microtome.trace.grad import rooted
from microtome.trace.session import Read, Whole

Pulled = dict[tuple[int, str], Tensor]
"""(layer, kind) -> gradient at what each reader sees. Shapes: [row, pos, reader, d_model]."""


@dataclass
class Start:
    """Where a gradient pass begins. layer: the first one run; hidden [row, pos, d_model]: its stream; write: an edit there."""

    layer: int
    hidden: Tensor
    write: Whole | None = None


@dataclass
class Pass:
    """One forward and backward. Shapes: values [prompt]; pulled: see `Pulled`."""

    values: Tensor
    pulled: Pulled


def gradient_pass(bench: Bench, recorded: Recorded, start: Start, *, rules: bool = False) -> Pass:
    """The first metric, and its gradient at what every reader of the layers from `start` on sees.

    rules: MLPs and norms by the rules of `rules.py` instead of their derivatives.

    Raises
    ------
    ModelError: gradients that are not finite.
    """
    ground = recorded.ground
    binding = bench.binding
    with rooted(binding), seam.implementation(binding.hf, ground.base.attention):
        hidden = start.hidden.detach().requires_grad_()
        reads: dict[int, dict[str, Read]] = {}
        streams: dict[int, Tensor] = {}
        for layer in range(start.layer, len(binding.slots)):
            streams[layer] = hidden
            reads[layer] = _reads(ground.reading, layer)
            changes = rule_writes(ground.reading, layer) if rules else RuleWrites()
            if start.write is not None and layer == start.layer:
                changes.append(start.write)
            rows = torch.arange(hidden.shape[0], device=hidden.device)
            segment = Segment(ground.start, ground.base.width, rows, rows, hidden, ground.base.width)
            own = [*changes.reads, *reads[layer].values()]
            hidden = call_layer(ground.base, layer, [segment], list(changes), len(rows), own)[0]
        values = _metric(bench, recorded, hidden, rules)
        wanted = [
            read.value for found in reads.values() for name, read in found.items() if name != "resid_mid"
        ]
        grads = torch.autograd.grad(values.sum(), [*wanted, hidden], allow_unused=True)  # type: ignore[arg-type]
    named: Iterator[Tensor | None] = iter(grads)
    pulled: Pulled = {}
    shape = (hidden.shape[0], hidden.shape[1])
    for layer, found in reads.items():
        middle = found.pop("resid_mid", None)
        for kind in found:
            grad = next(named)
            if grad is None:
                continue
            stream = streams[layer] if kind != "mlp" or middle is None else taken(middle, shape)
            pulled[layer, kind] = _pulled(ground.reading, layer, kind, stream.detach(), grad, rules)
    last = next(named)
    assert last is not None
    pulled[len(binding.slots), "logits"] = last[:, :, None]
    _finite(pulled)
    return Pass(values.detach(), pulled)


def _reads(reading: Reading, layer: int) -> dict[str, Read]:
    """Live reads of a layer's readers by kind, and the stream in its middle."""
    out = {kind: Read(POINT[kind], layer, live=True) for kind in ATTENTION_KINDS}
    if reading.binding.slots[layer].mlp_kind != "none":
        if reading.binding.lacking("resid_mid", layer) is None:
            out["resid_mid"] = Read("resid_mid", layer)
        out["mlp"] = Read(POINT["mlp"], layer, live=True)
    return out


def _metric(bench: Bench, recorded: Recorded, final: Tensor, rules: bool) -> Tensor:
    """The first metric per prompt of the group. Shapes: final [row, pos, d_model] -> [prompt]."""
    group = recorded.group
    at = (group.scored.to(final.device) - recorded.ground.start)[..., None].expand(-1, -1, final.shape[-1])
    hidden = final.gather(1, at)
    columns = columns_of(bench)
    logits = frozen_unembed(bench.binding, hidden, columns) if rules else logits_of(bench, hidden)
    return bench.metrics[0](logits, bench.scoring.select(group.prompts), columns, recorded.logits)


def _pulled(reading: Reading, layer: int, kind: str, stream: Tensor, grad: Tensor, rules: bool) -> Tensor:
    """A gradient at queries, keys, values or the normed stream, pulled back to what each reader sees.

    Shapes: stream [row, pos, d_model]; grad [row, pos, reader, d_head] or [row, pos, d_model] -> [row, pos, reader, d_model].
    """
    rows, width = stream.shape[:2]
    x = stream.flatten(0, 1)
    g = grad.reshape(rows * width, -1, grad.shape[-1])
    out = pull_back(reading, layer, kind, x, g, frozen=rules)
    return out.view(rows, width, *out.shape[1:])


def pull_back(
    reading: Reading, layer: int, kind: str, x: Tensor, g: Tensor, *, frozen: bool = False
) -> Tensor:
    """Vector-Jacobian product of `Reading.value` at one stream for every reader.

    frozen: the norm's divisor counts as a constant. Shapes: x [token, d_model]; g [token, reader, d] -> [token, reader, d_model].
    """
    with torch.no_grad():
        if kind != "mlp":
            g = _before_head_norm(reading, layer, kind, x, g)
            g = torch.einsum("trd,rmd->trm", g, reading.weight(layer, kind)[0])
        path = reading.norm_path(layer, kind)
        if path is None:
            return g
        norm = reading.binding.norm(path)
        x = x.to(norm.gain.dtype) if norm.gain.dtype == torch.float64 else x.float()
        centred = x - x.mean(-1, keepdim=True) if norm.centred else x
        scale = norm.scale(x)
        g = g.to(x.dtype) * norm.gain / scale[:, None]
        if not frozen:
            along = torch.einsum("trm,tm->tr", g, centred) / (x.shape[-1] * scale.square())
            g = g - along[..., None] * centred[:, None]
        return g - g.mean(-1, keepdim=True) if norm.centred else g


def _before_head_norm(reading: Reading, layer: int, kind: str, x: Tensor, g: Tensor) -> Tensor:
    """Through the derivative of a query or key norm, where there is one. Shapes: [token, reader, d_head] -> same."""
    slots = reading.binding.slots[layer]
    if kind not in "qk" or not slots.block.qk_norm:
        return g
    weight, bias = reading.weight(layer, kind)
    out = torch.einsum("tm,rmd->trd", reading.normed(layer, kind, x), weight)
    out = out if bias is None else out + bias
    with torch.enable_grad():
        out = out.detach().requires_grad_()
        return torch.autograd.grad(reading.head_normed(layer, kind, out), out, g.to(out))[0]


def _finite(pulled: Pulled) -> None:
    for (layer, kind), value in pulled.items():
        if not bool(torch.isfinite(value).all()):
            raise ModelError(f"the gradient at the {kind} readers of layer {layer} is not finite", why="the model's numbers left the range of its dtype",
                             instead="load it with dtype=torch.float32")  # fmt: skip
