"""What a model does not have, and why: one sentence per point."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microtome.errors import ModelError
from microtome.model.family import PARALLEL, PRE
from microtome.model.slots import Slots
from microtome.points import POINTS

if TYPE_CHECKING:
    from microtome.model.binding import Binding


def missing(b: Binding, point: str, s: Slots | None) -> str | None:
    """The reason why a layer (None: the model's stream) has no such point, or None when it has."""
    if s is None:
        return _missing_stream(b, point)
    if point in s.block.refuse:
        return s.block.refuse[point]
    group = POINTS[point].group
    if group == "Attention" or point in ("q_scale", "k_scale"):
        reason = _missing_attention(point, s)
        return (
            _missing_norm(b, f"{point[0]}_norm", s)
            if reason is None and point in ("q_scale", "k_scale")
            else reason
        )
    if point == "resid_mid" and s.style == PARALLEL:
        return "attention and MLP read the same stream side by side, so there is no middle"
    if point in ("ln1_scale", "ln2_scale", "ln1_post_scale", "ln2_post_scale"):
        return _missing_norm(b, point.removesuffix("_scale"), s)
    if group == "MLP" or point == "resid_mid":
        return _missing_mlp(point, s)
    return None


def _missing_norm(b: Binding, part: str, s: Slots) -> str | None:
    path = s.at(part)
    if path is None:
        if part == "ln2" and s.style == PARALLEL:
            return "the MLP reads the same norm as attention: its divisor is ln1_scale"
        normless = s.style == PRE and part in ("ln1", "ln2")
        return (
            "this model has no norm there" if normless else f"this block style ({s.style}) has no norm there"
        )
    try:
        b.norm(path)
    except ModelError as error:
        return error.what
    return None


def _missing_stream(b: Binding, point: str) -> str | None:
    if point == "final_scale" and b.stack.get("final_norm") is None:
        return "this model has no final norm: the unembedding reads final_resid"
    width = (
        getattr(b.module(b.stack_path("embed")).weight, "shape", (0, 0))[-1] if point == "tok_embed" else 0
    )
    if point == "tok_embed" and width != b.config.hidden_size:
        return f"token embeddings have {width} numbers and are projected before they enter the stream"
    if point == "pos_embed" and b.stack.get("pos") is None:
        return f"no learned position is added to the stream (positions: {b.positions})"
    if point == "final_scale":
        try:
            _ = b.final_norm
        except ModelError as error:
            return error.what
    return None


def not_additive(b: Binding) -> str:
    """Why components do not add up to the stream: the family says so, or an output is not addressed."""
    if reason := b.family.not_additive(b.config):
        return reason
    for i, s in enumerate(b.slots):
        for part in ("attn_out", "mlp_out"):
            if (part == "attn_out" or s.mlp_kind != "none") and (reason := b.lacking(part, i) or ""):
                return f"layer {i} adds something that is not addressed as {part}: {reason}"
    return ""


def _missing_attention(point: str, s: Slots) -> str | None:
    if s.kind != "attention":
        return f"this layer mixes tokens by {s.kind}, not by attention"
    if point in ("q_scale", "k_scale") and s.at(f"{point[0]}_norm") is None:
        return "queries and keys are not normed in this family"
    if point in ("z", "head_out", "attn_raw") and s.at("o") is None:
        return "no output projection was found in the attention module"
    if point == "q" and not s.registry and s.block.rotates:
        return "this attention module is not on the registry and rotates queries inside"
    if point in ("q_pre", "k_pre") and s.at(point[0]) is None and s.block.fused is None:
        return "no projection module was found for it"
    return None


def _missing_mlp(point: str, s: Slots) -> str | None:
    if s.mlp_kind == "none":
        return "this layer has no MLP"
    if point in ("neurons", "mlp_pre", "mlp_gate"):
        if s.mlp_kind == "moe":
            return "a router sends each token to a few experts: neurons belong to an expert, and experts are not addressed yet"
        if s.at("out") is None:
            return "no output projection was found in the MLP"
        if point == "mlp_gate" and s.mlp_kind == "plain":
            return "this MLP has no gate"
    return None
