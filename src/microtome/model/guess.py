"""A family that nobody registered, from the names that its config and modules use; the certificate keeps or refuses it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from microtome.model import names
from microtome.model.family import PARALLEL, POST, PRE, SANDWICH, Block, Family


def guess_family(config: Any, positions: str) -> Family:
    """An unknown family's multipliers from the names that configs give them; the certificate keeps or refuses them."""

    def embed_scale(c: Any) -> float:
        return float(getattr(c, "embedding_multiplier", None) or 1.0)

    def logit_scale(c: Any) -> float:
        scale = getattr(c, "lm_head_multiplier", None) or getattr(c, "logit_scale", None) or 1.0
        return float(scale) / float(getattr(c, "logits_scaling", None) or 1.0)

    def softcap(c: Any) -> float | None:
        return getattr(c, "final_logit_softcapping", None)

    kind = config.model_type
    return Family(
        kind, (kind,), embed_scale=embed_scale, logit_scale=logit_scale, softcap=softcap, positions=positions
    )


def guess_block(config: Any, layer: nn.Module) -> Block:
    """An unknown family's semantics from its norms; the certificate then keeps or refuses each point."""
    has = {name for name, _ in layer.named_children()}
    style = PRE
    if {
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    } <= has or "post_self_attn_layernorm" in has:
        style = SANDWICH
    elif "post_feedforward_layernorm" in has:
        style = POST
    elif names.child(layer, names.LN2) is None:
        style = PARALLEL
    attn = names.child(layer, names.ATTN)
    inner = layer.get_submodule(attn) if attn else None
    scale = float(getattr(config, "residual_multiplier", None) or 1.0)
    block = Block(style=style, attn_scale=scale, mlp_scale=scale)
    if inner is not None and names.child(inner, names.Q) is None:
        why = "an unknown family with a fused projection: its layout is not guessed"
        block = replace(block, refuse=dict.fromkeys(("q_pre", "k_pre"), why))
    if inner is not None and names.child(inner, names.Q_NORM) is not None:
        why = "an unknown family with query and key norms: where they act is not guessed"
        block = replace(block, refuse=dict.fromkeys(("q_pre", "k_pre", "q_scale", "k_scale"), why))
    return block
