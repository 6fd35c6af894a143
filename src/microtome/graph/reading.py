"""What readers make of a stream of their own: its norm and their projection, by the model's modules and weights.

In an untouched model all heads of a layer read one stream. To let each read another, the norm module is called on every
reader's stream, and the projection is the reader's own part of the family's matrix. `check` holds the result against what
the model itself computed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from microtome.errors import ModelError
from microtome.model.binding import Binding
from microtome.model.family import PARALLEL, POST, SANDWICH
from microtome.model.weights import Weights

POINT = {"q": "q_pre", "k": "k_pre", "v": "v", "mlp": "ln2_out", "logits": "final_resid"}
"""Where a reader's value is put: before rotary, so that the family turns it itself."""


class Reading:
    """Values of readers from the streams that they read."""

    def __init__(self, binding: Binding) -> None:
        self.binding = binding
        self._weights = Weights(binding)

    def norm_path(self, layer: int, kind: str) -> str | None:
        """The norm that a reader sees the stream through; None where it reads the stream itself."""
        s = self.binding.slots[layer]
        if kind != "mlp":
            return s.at("ln1")
        if s.style == POST:
            return None
        return (s.at("ln2") or s.at("ln1")) if s.style == PARALLEL else s.at("ln2")

    def normed(self, layer: int, kind: str, x: Tensor) -> Tensor:
        """A stream through the norm module. Shapes: [..., d_model] -> same."""
        path = self.norm_path(layer, kind)
        if path is None:
            return x
        out: Tensor = self.binding.module(path)(x)
        return out

    def value(self, layer: int, kind: str, x: Tensor) -> Tensor:
        """What the readers of one kind in a layer make of their streams, as the point `POINT[kind]` has it.

        Shapes: x [token, reader, d_model] -> [token, reader, d_head]; for an MLP [token, 1, d_model].
        """
        x = self.normed(layer, kind, x)
        return x if kind == "mlp" else self.projected(layer, kind, x)

    def by_reader(self, layer: int, kind: str, x: Tensor) -> Tensor:
        """As `value`, from streams with the readers first. Shapes: [reader, token, d_model] -> [token, reader, d]."""
        x = self.normed(layer, kind, x)
        if kind == "mlp":
            return x.transpose(0, 1)
        weight, bias = self.weight(layer, kind)
        out = torch.bmm(x, weight).transpose(0, 1)
        return self.head_normed(layer, kind, out if bias is None else out + bias)

    def mostly(self, layer: int, kind: str, shared: Tensor, x: Tensor, own: list[int]) -> Tensor:
        """As `by_reader`, where all readers but some read one stream.

        Shapes: shared [token, d_model], x [own reader, token, d_model] -> [token, reader, d].
        """
        if kind == "mlp":
            return self.normed(layer, kind, x[0] if own else shared)[:, None]
        out = self.raw(layer, kind, shared)
        if own:
            weight, bias = self.weight(layer, kind)
            mine = torch.bmm(self.normed(layer, kind, x), weight[own]).transpose(0, 1)
            out[:, own] = mine if bias is None else mine + bias[own]
        return self.head_normed(layer, kind, out)

    def raw(self, layer: int, kind: str, x: Tensor) -> Tensor:
        """What all readers of a kind make of one stream, before any query or key norm of their own.

        Shapes: x [token, d_model] -> [token, reader, d_head].
        """
        weight, bias = self.weight(layer, kind)
        flat = weight.transpose(0, 1).reshape(weight.shape[1], -1)
        out = (self.normed(layer, kind, x) @ flat).view(len(x), weight.shape[0], -1)
        return out if bias is None else out + bias

    def projected(self, layer: int, kind: str, x: Tensor) -> Tensor:
        """Queries, keys or values before rotary. Shapes: [token, reader, d_model] -> [token, reader, d_head]."""
        weight, bias = self.weight(layer, kind)
        out = torch.einsum("trm,rmd->trd", x, weight)
        if bias is not None:
            out = out + bias
        return self.head_normed(layer, kind, out)

    def weight(self, layer: int, kind: str) -> tuple[Tensor, Tensor | None]:
        """Matrix and bias of each reader. Shapes: [reader, d_model, d_head], [reader, d_head]."""
        w = self._weights
        matrix, bias = {"q": (w.W_Q, w.b_Q), "k": (w.W_K, w.b_K), "v": (w.W_V, w.b_V)}[kind]
        return matrix(layer), bias(layer)

    def joint(self, layer: int, kind: str) -> bool:
        """True where one norm over all heads makes a head's value depend on what the other heads read."""
        return kind in "qk" and self.binding.slots[layer].block.qk_norm == "flat"

    def head_normed(self, layer: int, kind: str, out: Tensor) -> Tensor:
        """Through the query or key norm where there is one. Shapes: [token, reader, d_head] -> same."""
        s = self.binding.slots[layer]
        path = s.at(f"{kind}_norm") if kind in "qk" and s.block.qk_norm else None
        if path is None:
            return out
        module = self.binding.module(path)
        match s.block.qk_norm:
            case "flat":
                flat: Tensor = module(out.flatten(1))
                return flat.view(out.shape)
            case "bshd":
                return module(out[None])[0]
            case _:
                return module(out.transpose(0, 1)[None])[0].transpose(0, 1)

    def writes_of_heads(self, layer: int, z: Tensor, scale: Tensor | None) -> Tensor:
        """What each head adds to the stream. Shapes: z [..., head, d_value], scale [..., 1] -> [..., head, d_model].

        After a post-norm: each head's share of its output, at the divisor of this run.
        """
        s = self.binding.slots[layer]
        out = torch.einsum("...hv,hvm->...hm", z, self._weights.W_O(layer))
        if scale is not None:
            out = self.binding.norm(s.at("ln1_post") or "").linear(out, scale[..., None, :]).to(out.dtype)
        return out * s.block.attn_scale if s.block.attn_scale != 1.0 else out

    def post_norm(self, layer: int) -> bool:
        """True where heads write through a norm."""
        return self.binding.slots[layer].style in (SANDWICH, POST)

    def check(self, layer: int, kind: str, stream: Tensor, own: Tensor) -> None:
        """Hold what this file computes from one stream against what the model computed from it.

        Shapes: stream [token, d_model]; own [token, reader, d_head], or [token, d_model] of an MLP.

        Raises
        ------
        ModelError: they differ by more than rounding.
        """
        readers = 1 if kind == "mlp" else own.shape[1]
        found = self.value(layer, kind, stream[:, None].expand(-1, readers, -1)).reshape(own.shape)
        error = float((found - own).abs().max().nan_to_num(nan=float("inf")))
        size = float(own.abs().max())
        allowed = {torch.float64: 1e-5, torch.float32: 1e-4}.get(own.dtype, 3e-2)
        if not error <= allowed * max(size, 1e-6):
            raise ModelError(f"the graph does not reproduce {POINT[kind]} of layer {layer}", why=f"off by {error:.1e} of {size:.1e}",
                             instead="edges are refused for this model; activation_patching works")  # fmt: skip
