"""Weights in the field's standard orientation, as views of the model's own parameters where possible.

Every matrix multiplies from the right: x @ W_Q[head]. Key/value groups are kept: W_K has one matrix per key/value
head, never copies per query head. Nothing is folded, centred or scaled.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from microtome.errors import SiteError
from microtome.model.binding import Binding
from microtome.model.slots import Slots, transposed


class Weights:
    """Weights by their standard names; layers are arguments: `weights.W_Q(5)`."""

    def __init__(self, binding: Binding) -> None:
        self._b = binding

    def _param(self, path: str, name: str) -> Tensor | None:
        return getattr(self._b.module(path), name, None)

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """Token embedding as stored (an embedding scale is `facts`' business, not folded in)."""
        return self._weight("embed")

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        """Learned positions.

        Raises
        ------
        SiteError: the family has none.
        """
        return self._weight("pos")

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """Unembedding: logits = final_norm_out @ W_U (+ b_U), before any scale or softcap."""
        return self._weight("head").T

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"] | None:
        """Bias of the unembedding, or None."""
        return self._param(self._b.stack_path("head"), "bias")

    def _weight(self, part: str) -> Tensor:
        weight = self._param(self._b.stack_path(part), "weight")
        assert weight is not None
        return weight

    def W_Q(self, layer: int) -> Float[Tensor, "head d_model d_head"]:
        """Query weights per head."""
        return self._heads_in(layer, "q")

    def W_K(self, layer: int) -> Float[Tensor, "kv_head d_model d_head"]:
        """Key weights per key/value head."""
        return self._heads_in(layer, "k")

    def W_V(self, layer: int) -> Float[Tensor, "kv_head d_model d_head"]:
        """Value weights per key/value head."""
        return self._heads_in(layer, "v")

    def b_Q(self, layer: int) -> Float[Tensor, "head d_head"] | None:
        """Query bias per head, or None."""
        return self._heads_bias(layer, "q")

    def b_K(self, layer: int) -> Float[Tensor, "kv_head d_head"] | None:
        """Key bias per key/value head, or None."""
        return self._heads_bias(layer, "k")

    def b_V(self, layer: int) -> Float[Tensor, "kv_head d_head"] | None:
        """Value bias per key/value head, or None."""
        return self._heads_bias(layer, "v")

    def W_O(self, layer: int) -> Float[Tensor, "head d_value d_model"]:
        """Output weights per head: head_out = z @ W_O[head]."""
        s, path = self._attention(layer, "o")
        return self._right(path).view(s.n_heads, s.d_value, -1)

    def b_O(self, layer: int) -> Float[Tensor, " d_model"] | None:
        """Bias of the attention output, or None."""
        return self._param(self._attention(layer, "o")[1], "bias")

    def W_in(self, layer: int) -> Float[Tensor, "d_model d_mlp"]:
        """What `mlp_pre` multiplies by (the linear branch of a gated MLP)."""
        return self._mlp(layer, "up")

    def W_gate(self, layer: int) -> Float[Tensor, "d_model d_mlp"]:
        """What `mlp_gate` multiplies by."""
        return self._mlp(layer, "gate")

    def W_out(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """mlp_raw = neurons @ W_out (+ b_out)."""
        return self._right(self._mlp_path(layer, "out"))

    def b_in(self, layer: int) -> Float[Tensor, " d_mlp"] | None:
        """Bias of `mlp_pre`, or None."""
        return self._mlp_bias(layer, "up")

    def b_gate(self, layer: int) -> Float[Tensor, " d_mlp"] | None:
        """Bias of `mlp_gate`, or None."""
        return self._mlp_bias(layer, "gate")

    def b_out(self, layer: int) -> Float[Tensor, " d_model"] | None:
        """Bias of the MLP output, or None."""
        return self._param(self._mlp_path(layer, "out"), "bias")

    def norm_gain(self, layer: int | None, which: str = "ln1") -> Float[Tensor, " d"]:
        """Effective gain of a norm ("ln1", "ln2", "ln1_post", "ln2_post"; layer None: the final norm)."""
        return self._norm(layer, which).gain

    def norm_bias(self, layer: int | None, which: str = "ln1") -> Float[Tensor, " d"]:
        """Bias of a norm (zeros where it has none)."""
        return self._norm(layer, which).bias

    def _norm(self, layer: int | None, which: str) -> Any:
        if layer is None:
            return self._b.norm(self._b.stack_path("final_norm"))
        path = self._b.slots[layer].at(which)
        if path is None:
            raise SiteError(
                f"layer {layer} has no norm {which}",
                why=self._b.lacking(f"{which}_scale", layer) or "",
                instead="see `model.facts`",
            )
        return self._b.norm(path)

    def _right(self, path: str) -> Tensor:
        """A linear module's weight as [in, out]."""
        module = self._b.module(path)
        weight: Tensor = module.weight  # type: ignore[assignment]
        return weight if transposed(module) else weight.T

    def _attention(self, layer: int, part: str) -> tuple[Slots, str]:
        s = self._b.slots[layer]
        path = s.at(part)
        if path is None:
            why = (
                "latent attention has no single matrix of it"
                if s.block.latent
                else f"layer {layer} has no such projection"
            )
            raise SiteError(
                f"this model has no weight W_{part.upper()} in layer {layer}",
                why=why,
                instead="see `model.facts`",
            )
        return s, path

    def _heads_in(self, layer: int, which: str) -> Tensor:
        s = self._b.slots[layer]
        if s.block.fused is not None and s.at("qkv") is not None:
            return self._fused(s, self._right(s.at("qkv") or "").T, which).transpose(1, 2)
        _, path = self._attention(layer, which)
        n = s.n_heads if which == "q" else s.n_kv
        return self._right(path).view(-1, n, s.d_head).transpose(0, 1) if transposed(self._b.module(path)) else (
            self._right(path).T.view(n, s.d_head, -1).transpose(1, 2)
        )  # fmt: skip

    def _heads_bias(self, layer: int, which: str) -> Tensor | None:
        s = self._b.slots[layer]
        if s.block.fused is not None and s.at("qkv") is not None:
            bias = self._param(s.at("qkv") or "", "bias")
            return None if bias is None else self._fused(s, bias[:, None], which)[..., 0]
        bias = self._param(self._attention(layer, which)[1], "bias")
        return None if bias is None else bias.view(s.n_heads if which == "q" else s.n_kv, s.d_head)

    def _fused(self, s: Slots, rows: Tensor, which: str) -> Tensor:
        """Rows of a fused projection [out, in] -> [head, d_head, in]."""
        f = s.block.fused
        assert f is not None
        a0, a1, w0, w1 = getattr(f, which)
        whole = rows.reshape(f.groups, f.width, s.d_head, -1)
        return whole[a0:a1, w0:w1].reshape(-1, s.d_head, rows.shape[-1])

    def _mlp_path(self, layer: int, part: str) -> str:
        s = self._b.slots[layer]
        path = s.at(part)
        if path is None:
            reason = (
                self._b.lacking("mlp_gate" if part == "gate" else "neurons", layer)
                or f"layer {layer} has no such projection"
            )
            raise SiteError(
                f"this model has no W_{part} in layer {layer}", why=reason, instead="see `model.facts`"
            )
        return path

    def _mlp(self, layer: int, part: str) -> Tensor:
        s = self._b.slots[layer]
        if s.at("gate_up") is not None:
            both = self._right(s.at("gate_up") or "")
            return both[:, : s.d_mlp] if part == "gate" else both[:, s.d_mlp :]
        return self._right(self._mlp_path(layer, part))

    def _mlp_bias(self, layer: int, part: str) -> Tensor | None:
        s = self._b.slots[layer]
        if s.at("gate_up") is not None:
            bias = self._param(s.at("gate_up") or "", "bias")
            return None if bias is None else (bias[: s.d_mlp] if part == "gate" else bias[s.d_mlp :])
        return self._param(self._mlp_path(layer, part), "bias")
