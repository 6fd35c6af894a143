"""Gradients at what readers see, summed over the passes of a path before they are pulled back through the projections.

A reader's gradient at its stream is W g * gain / scale, less its part along the stream (the derivative of the norm's
divisor). The first is linear in g / scale, so that it is summed in the width of a head and multiplied once; only the second
is summed in the width of the stream. It is `pull_back` of every pass, added up, at a fraction of the memory traffic.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from microtome.graph.gradients import Pulled, before_head_norm
from microtome.graph.reading import Reading


@dataclass
class Sum:
    """Gradients of several passes, weighted and added up.

    Shapes: narrow (layer, kind) -> [token, reader, d_head] ([token, 1, d_model] of an MLP or the unembedding); along (layer,
    kind) -> [token, reader, d_model].
    """

    reading: Reading
    narrow: Pulled = field(default_factory=dict)
    along: Pulled = field(default_factory=dict)

    @torch.no_grad()
    def add(self, layer: int, kind: str, stream: Tensor, grad: Tensor, weight: float) -> None:
        """One pass at one kind of readers. Shapes: stream [token, d_model]; grad [token, reader, d]."""
        key = (layer, kind)
        if kind in "qkv":
            grad = before_head_norm(self.reading, layer, kind, stream, grad)
        path = None if kind == "logits" else self.reading.norm_path(layer, kind)
        if path is None:
            _accumulate(self.narrow, key, grad * weight)
            return
        norm = self.reading.binding.norm(path)
        x = stream.to(norm.gain.dtype) if norm.gain.dtype == torch.float64 else stream.float()
        centred = x - x.mean(-1, keepdim=True) if norm.centred else x
        scale = norm.scale(x)  # [token, 1]
        grad = grad.to(x.dtype) * (weight / scale)[:, None]
        _accumulate(self.narrow, key, grad)
        gained = centred * norm.gain
        if kind == "mlp":
            onto = gained[:, None]
        else:
            matrix = self.reading.weight(layer, kind)[0].to(x.dtype)
            flat = matrix.transpose(0, 1).reshape(matrix.shape[1], -1)
            onto = (gained @ flat).view(len(x), matrix.shape[0], -1)
        along = (grad * onto).sum(-1) / (x.shape[-1] * scale.square())
        if key in self.along:
            self.along[key].addcmul_(along[..., None], centred[:, None])
        else:
            self.along[key] = along[..., None] * centred[:, None]

    @torch.no_grad()
    def pulled(self, shape: tuple[int, int]) -> Pulled:
        """At what each reader sees. Shapes: shape (row, pos) -> [row, pos, reader, d_model]."""
        out: Pulled = {}
        for (layer, kind), g in self.narrow.items():
            if kind in "qkv":
                g = torch.einsum("trd,rmd->trm", g, self.reading.weight(layer, kind)[0].to(g.dtype))
            path = None if kind == "logits" else self.reading.norm_path(layer, kind)
            if path is not None:
                norm = self.reading.binding.norm(path)
                g = (g * norm.gain).sub_(self.along[layer, kind])
                g = g - g.mean(-1, keepdim=True) if norm.centred else g
            out[layer, kind] = g.view(*shape, *g.shape[1:])
        return out


def _accumulate(to: Pulled, key: tuple[int, str], value: Tensor) -> None:
    if key in to:
        to[key].add_(value)
    else:
        to[key] = value
