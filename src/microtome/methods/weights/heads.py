"""OV and QK circuits of heads as factored products, and the attention that a head would pay to bare tokens.

Elhage et al. 2021 (A mathematical framework for transformer circuits). Grouped queries keep their groups: a query head
reads the keys and values of its own key/value head.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from microtome.errors import ModelError
from microtome.methods.weights.rotary import Rotation, rotations
from microtome.model.factored import FactoredMatrix

if TYPE_CHECKING:
    from microtome.facade import Model
    from microtome.model.norms import Norm

__all__ = ["FOLDS", "HeadCircuits"]

FOLDS: Mapping[str, str] = {
    "ln1": "the gain of the norm before attention (and its centring) is multiplied into W_Q, W_K and W_V; its scale and bias are left out",
    "post": "the gain of a norm after attention is multiplied into W_O; its scale and bias are left out",
    "final_norm": "the gain of the final norm (and its centring) is multiplied into W_U; its scale and bias are left out",
}
"""Named transforms of weights. They make copies: the model is never changed."""


class HeadCircuits:
    """Circuits of one model's heads. fold: names of `FOLDS`; `transforms` says which were applied.

    "Effective" circuits go from stream to stream or from head to head; "full" ones from token to token, through W_E
    (times the family's embedding scale) and W_U.

    Raises
    ------
    ModelError: an unknown fold, or a model without attention.
    """

    def __init__(self, model: Model, fold: tuple[str, ...] = tuple(FOLDS)) -> None:
        unknown = [name for name in fold if name not in FOLDS]
        if unknown:
            raise ModelError(f"no transform of weights is called {unknown[0]!r}", why=f"known are {', '.join(FOLDS)}",
                             instead="fold=() for raw weights")  # fmt: skip
        self.model, self.fold = model, fold
        self.layers = tuple(i for i, layer in enumerate(model.facts.layers) if layer.kind == "attention" and not model.binding.slots[i].block.latent)  # fmt: skip
        if not self.layers:
            raise ModelError("this model has no heads with weights of their own", why="no layer is plain attention",
                             instead="see `model.facts.layers`")  # fmt: skip
        self._qk = lru_cache(maxsize=None)(self._qk_of)
        self._vo = lru_cache(maxsize=None)(self._vo_of)
        self._places = lru_cache(maxsize=4)(self._places_of)
        self._scale = lru_cache(maxsize=None)(self._measured)

    @property
    def transforms(self) -> dict[str, str]:
        """What was done to the weights, by name, in words."""
        return {name: FOLDS[name] for name in self.fold}

    @cached_property
    def heads(self) -> tuple[tuple[int, int], ...]:
        """Every (layer, query head)."""
        return tuple((i, h) for i in self.layers for h in range(self.model.facts.layers[i].n_heads))

    def group(self, layer: int, head: int) -> int:
        """The key/value head that a query head reads.

        Raises
        ------
        ModelError: no such head.
        """
        facts = self.model.facts.layers
        if not (0 <= layer < len(facts) and layer in self.layers and 0 <= head < facts[layer].n_heads):
            raise ModelError(f"no head L{layer}H{head}", why=f"heads with weights of their own are in layers {self.layers[:8]}",
                             instead="see `model.facts.layers`")  # fmt: skip
        return head // (facts[layer].n_heads // facts[layer].n_kv_heads)

    def W_Q(self, layer: int) -> Tensor:
        """[head, d_model, d_head], float64, folded as asked."""
        return self._qk(layer)[0]

    def W_K(self, layer: int) -> Tensor:
        """[head, d_model, d_head]: each query head's own keys (repeated within a group), float64."""
        return self._qk(layer)[1]

    def W_V(self, layer: int) -> Tensor:
        """[head, d_model, d_value], repeated within a group, float64."""
        return self._vo(layer)[0]

    def W_O(self, layer: int) -> Tensor:
        """[head, d_value, d_model], float64."""
        return self._vo(layer)[1]

    def _qk_of(self, layer: int) -> tuple[Tensor, Tensor]:
        w = self.model.weights
        repeat = self._repeat(layer)
        return self._read(layer, w.W_Q(layer)), self._read(layer, w.W_K(layer)).repeat_interleave(repeat, 0)

    def _vo_of(self, layer: int) -> tuple[Tensor, Tensor]:
        w = self.model.weights
        out = w.W_O(layer).detach().double().cpu()
        if "post" in self.fold and (norm := self._norm(layer, "ln1_post")) is not None:
            out = _written(norm, out)
        return self._read(layer, w.W_V(layer)).repeat_interleave(self._repeat(layer), 0), out

    def _repeat(self, layer: int) -> int:
        facts = self.model.facts.layers[layer]
        return facts.n_heads // facts.n_kv_heads

    def _read(self, layer: int, weight: Tensor) -> Tensor:
        weight = weight.detach().double().cpu()
        norm = self._norm(layer, "ln1") if "ln1" in self.fold else None
        return weight if norm is None else _folded(norm, weight)

    def _norm(self, layer: int, which: str) -> Norm | None:
        path = self.model.binding.slots[layer].at(which)
        return None if path is None else self.model.binding.norm(path)

    @cached_property
    def W_E(self) -> Tensor:
        """[d_vocab, d_model], float64: what a token puts into the stream."""
        binding = self.model.binding
        rows = self.model.weights.W_E.detach().double().cpu()[
            : self.model.facts.d_vocab
        ] * binding.family.embed_scale(binding.config)
        path = binding.stack.get("embed_norm")
        if path is not None and self.model.facts.positions != "learned":
            norm = binding.norm(path)
            rows = norm.linear(rows, norm.scale(rows)) + norm.bias.double().cpu()
        return rows

    @cached_property
    def W_U(self) -> Tensor:
        """[d_model, d_vocab], float64, folded as asked.

        Raises
        ------
        ModelError: something lies between the final norm and the unembedding.
        """
        binding = self.model.binding
        if binding.stack.get("project_out") is not None or self.W_E.shape[1] != self.model.facts.d_model:
            raise ModelError("this model projects the stream before unembedding or after embedding", why="tokens are not read from the stream directly",
                             instead="use effective circuits")  # fmt: skip
        weight = self.model.weights.W_U.detach().double().cpu()
        return _folded(binding.final_norm, weight) if "final_norm" in self.fold else weight

    def ov(self, layer: int, head: int) -> FactoredMatrix:
        """W_V W_O of one head: [d_model, d_model]."""
        self.group(layer, head)
        return FactoredMatrix(self.W_V(layer)[head], self.W_O(layer)[head])

    def full_ov(self, layer: int, head: int) -> FactoredMatrix:
        """W_E W_V W_O W_U: what attending to a token (row) adds to the logit of each (column). [d_vocab, d_vocab]."""
        return self.W_E @ self.ov(layer, head) @ self.W_U

    def qk(self, layer: int, head: int, offset: int | Tensor | None = None) -> FactoredMatrix:
        """W_Q R W_K^T over the scale: stream of the query (row), of the key (column), in nats. [d_model, d_model].

        offset: how many positions back the key is (rotary families turn by it; several: the mean over them). None leaves
        R out, which is the circuit of a family without rotary, and of offset 0.

        Raises
        ------
        ModelError: as `rotation`, when an offset is given.
        """
        self.group(layer, head)
        q, k = self.W_Q(layer)[head], self.W_K(layer)[head]
        if offset is not None:
            q = q @ self.rotation(layer).by(torch.as_tensor(offset).reshape(-1)).mean(0)
        return FactoredMatrix(q * self.scaling(layer), k.mT)

    def full_qk(self, layer: int, head: int, offset: int | Tensor | None = None) -> FactoredMatrix:
        """W_E W_QK W_E^T: query token (row), key token (column). [d_vocab, d_vocab]. Raises as `qk`."""
        return self.W_E @ self.qk(layer, head, offset) @ self.W_E.mT

    def positions_qk(self, layer: int, head: int) -> FactoredMatrix:
        """W_pos W_QK W_pos^T: query position (row), key position (column). [n_ctx, n_ctx].

        Raises
        ------
        SiteError: the family has no learned positions.
        """
        place = self.model.weights.W_pos.detach().double().cpu()
        return place @ self.qk(layer, head) @ place.mT

    @cached_property
    def _rotations(self) -> tuple[Rotation | ModelError, ...]:
        return rotations(self.model)

    def rotation(self, layer: int) -> Rotation:
        """The layer's rotary embedding, as measured.

        Raises
        ------
        ModelError: what the layer does to positions is not a rotation pair by pair.
        """
        found = self._rotations[layer]
        if isinstance(found, ModelError):
            raise found
        return found

    def scaling(self, layer: int) -> float:
        """What products of queries and keys are multiplied by: the module's own number, else as measured on one prompt."""
        path = self.model.binding.slots[layer].at("attn")
        value = getattr(self.model.binding.module(path), "scaling", None) if path else None
        return float(value) if isinstance(value, int | float) else self._scale(layer)

    def _measured(self, layer: int) -> float:
        facts = self.model.facts.layers[layer]
        if {"q", "k", "scores"} & set(facts.lacks):
            return float(facts.d_head**-0.5)
        trace = self.model.run([[0, 1, 2, 3]], [f"L{layer}.{p}" for p in ("q", "k", "scores")], logits=None)
        q, k, scores = (trace[f"L{layer}.{p}"][0].detach().double().cpu() for p in ("q", "k", "scores"))
        products = torch.einsum("phd,phd->hp", q, k.repeat_interleave(self._repeat(layer), 1))
        own = scores.diagonal(dim1=-2, dim2=-1)
        return float((own * products).sum() / products.square().sum().clamp_min(1e-30))

    def bare_scores(self, layer: int, ids: Tensor, order: Tensor | None = None) -> Tensor:
        """Scores of every head if the stream held the tokens' embeddings alone, in nats, before any mask.

        The norms before attention and of queries and keys are applied as they are. In layer 0 this is what the model
        computes. order [pos]: learned positions to use instead of 0, 1, 2 ... (for a null).
        Shapes: ids [prompt, pos] -> [prompt, head, query, key], float64.

        Raises
        ------
        ModelError: as `rotation`.
        """
        rotation = self.rotation(layer)
        stream = self.W_E[ids]
        if stream.shape[-1] != self.model.facts.d_model:
            raise ModelError("this model projects the embedding into the stream", why=f"W_E has {stream.shape[-1]} columns",
                             instead="effective circuits")  # fmt: skip
        if self.model.facts.positions == "learned":
            places = self._places(ids.shape[-1])
            stream = stream + (places if order is None else places[order])
        norm = self._norm(layer, "ln1")
        if norm is not None:
            stream = norm.linear(stream, norm.scale(stream)) + norm.bias.double().cpu()
        q, k = (self._project(layer, stream, which) for which in "qk")
        place = torch.arange(ids.shape[-1])
        turned = [
            torch.einsum("bphd,pde->bphe", x, rotation.by(place, 1)) if rotation.turns else x for x in (q, k)
        ]
        scores = torch.einsum(
            "bqhd,bkhd->bhqk", turned[0], turned[1].repeat_interleave(self._repeat(layer), 2)
        ) * self.scaling(layer)
        path = self.model.binding.slots[layer].at("attn")
        cap = getattr(self.model.binding.module(path or ""), "attn_logit_softcapping", None)
        return scores if not cap else torch.tanh(scores / cap) * cap

    def bare_pattern(self, layer: int, ids: Tensor, order: Tensor | None = None) -> Tensor:
        """The causal softmax of `bare_scores`, within the layer's window. Shapes: [prompt, pos] -> [prompt, head, query, key]."""
        scores = self.bare_scores(layer, ids, order)
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        if (window := self.model.facts.layers[layer].window) is not None:
            hidden |= torch.ones_like(hidden).tril(-window)
        scores = scores.masked_fill(hidden, -torch.inf)
        sinks = getattr(
            self.model.binding.module(self.model.binding.slots[layer].at("attn") or ""), "sinks", None
        )
        if sinks is None:
            return scores.softmax(-1)
        column = sinks.detach().double().cpu()[None, :, None, None].expand(*scores.shape[:-1], 1)
        return torch.cat([scores, column], -1).softmax(-1)[..., :-1]

    def _places_of(self, n: int) -> Tensor:
        """Learned positions as the model adds them, asked of the model. Shapes: [pos, d_model]."""
        trace = self.model.run([[0] * n], "pos_embed", logits=None)
        return trace["pos_embed"][0].detach().double().cpu()

    def _project(self, layer: int, read: Tensor, which: str) -> Tensor:
        w, slots = self.model.weights, self.model.binding.slots[layer]
        weight, bias = (w.W_Q, w.b_Q) if which == "q" else (w.W_K, w.b_K)
        out = torch.einsum("bpm,hmd->bphd", read, weight(layer).detach().double().cpu())
        found = bias(layer)
        if found is not None:
            out = out + found.detach().double().cpu()
        path = slots.at(f"{which}_norm")
        if path is None:
            return out
        norm = self.model.binding.norm(path)
        if slots.block.qk_norm == "flat":
            flat = out.flatten(2)
            return (norm.linear(flat, norm.scale(flat)) + norm.bias.double().cpu()).view_as(out)
        return norm.linear(out, norm.scale(out)) + norm.bias.double().cpu()


def _folded(norm: Norm, weight: Tensor) -> Tensor:
    """A norm's linear part without its scale, in front of weights [..., d, out]."""
    weight = norm.gain.detach().double().cpu()[:, None] * weight
    return weight - weight.mean(-2, keepdim=True) if norm.centred else weight


def _written(norm: Norm, weight: Tensor) -> Tensor:
    """A norm's linear part without its scale, behind weights [..., in, d]."""
    weight = weight - weight.mean(-1, keepdim=True) if norm.centred else weight
    return weight * norm.gain.detach().double().cpu()
