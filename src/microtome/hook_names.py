"""TransformerLens's hook names, translated by meaning.

Seen equal, tensor by tensor, on TransformerLens 4.3's bridge of llama, gpt2, gemma2 and qwen3 (a stored fixture in the
tests). A name without an exact counterpart is refused. Values are those of its unprocessed weights: after
`enable_compatibility_mode()`, or in releases before 4.0, weights are folded and centred there and numbers differ.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from microtome.errors import SiteError

if TYPE_CHECKING:
    from microtome.model.facts import Facts

__all__ = ["PLAIN", "REFUSED", "is_hook_name", "translate"]

_NAME = re.compile(r"^(?:blocks\.(?P<layer>\d+)\.)?(?P<rest>(?:[a-z0-9_]+\.)?hook_[a-z_]+)$")

PLAIN = {
    "hook_embed": "tok_embed",
    "hook_pos_embed": "pos_embed",
    "ln_final.hook_scale": "final_scale",
    "ln_final.hook_out": "final_norm_out",
    "blocks.hook_resid_pre": "resid_pre",
    "blocks.hook_resid_mid": "resid_mid",
    "blocks.hook_resid_post": "resid_post",
    "blocks.hook_attn_out": "attn_out",
    "blocks.hook_mlp_out": "mlp_out",
    "blocks.ln1.hook_scale": "ln1_scale",
    "blocks.ln1.hook_out": "ln1_out",
    "blocks.ln2.hook_scale": "ln2_scale",
    "blocks.ln2.hook_out": "ln2_out",
    "blocks.attn.hook_q": "q_pre",
    "blocks.attn.hook_k": "k_pre",
    "blocks.attn.hook_v": "v",
    "blocks.attn.hook_rot_q": "q",
    "blocks.attn.hook_rot_k": "k",
    "blocks.attn.hook_attn_scores": "scores",
    "blocks.attn.hook_pattern": "pattern",
    "blocks.attn.hook_z": "z",
    "blocks.attn.hook_result": "head_out",
    "blocks.attn.hook_out": "attn_raw",
    "blocks.mlp.hook_pre": "mlp_pre",
    "blocks.mlp.hook_pre_linear": "mlp_pre",
    "blocks.mlp.hook_post": "neurons",
    "blocks.mlp.hook_out": "mlp_raw",
}
"""Name (layer number left out) -> point. `translate` knows where a family changes the meaning."""

REFUSED = {
    "ln1.hook_normalized": "it is the stream over its scale, before the norm's weight; ln1_out is after the weight",
    "ln2.hook_normalized": "it is the stream over its scale, before the norm's weight; ln2_out is after the weight",
    "ln_final.hook_normalized": "it is the stream over its scale, before the norm's weight; final_norm_out is after it",
    "ln1_post.hook_scale": "its scale of a norm after attention is not the divisor ln1_post_scale",
    "ln2_post.hook_scale": "its scale of a norm after the MLP is not the divisor ln2_post_scale",
    "hook_unembed": "it is before a final softcap; logits are after it",
    "hook_attn_in": "an input split per head is a second copy of the stream; edges address what a head reads",
    "hook_q_input": "an input split per head is a second copy of the stream; edges address what a head reads",
    "hook_k_input": "an input split per head is a second copy of the stream; edges address what a head reads",
    "hook_v_input": "an input split per head is a second copy of the stream; edges address what a head reads",
    "hook_mlp_in": "an input split off the stream is a second copy of it; edges address what an MLP reads",
}


def is_hook_name(text: str) -> bool:
    """Whether a text (without position or flag) is one of TransformerLens's names."""
    return _NAME.match(text) is not None


def translate(text: str, facts: Facts | None = None) -> str:
    """The address of a TransformerLens name, such as `blocks.5.attn.hook_z` -> `L5.z`. No position, no flag.

    facts: of the model; some names mean another point in some families.

    Raises
    ------
    SiteError: no exact counterpart, or one that depends on the family where no facts are given.
    """
    found = _NAME.match(text)
    layer, rest = (found["layer"], found["rest"]) if found else (None, text)
    point = PLAIN.get(rest if layer is None else f"blocks.{rest}")
    if point is None:
        raise SiteError(
            f'"{text}" of TransformerLens has no exact counterpart here',
            why=REFUSED.get(rest, "no point of the table holds that tensor"),
            instead="see the table of points in the docs",
        )
    where = "" if layer is None else f"L{layer}."
    if rest not in ("attn.hook_q", "attn.hook_k", "mlp.hook_pre"):
        return where + point
    if facts is None:
        other = (
            "mlp_gate in a gated MLP"
            if rest == "mlp.hook_pre"
            else "nothing where queries and keys are normed"
        )
        raise SiteError(
            f'"{text}" of TransformerLens depends on the family',
            why=f"it is {point}, or {other}",
            instead=f'say "{where}{point}"',
        )
    lacks = facts.layers[min(int(layer or 0), facts.n_layers - 1)].lacks
    if rest == "mlp.hook_pre":
        return where + ("mlp_pre" if "mlp_gate" in lacks else "mlp_gate")
    if f"{point[0]}_scale" not in lacks:
        raise SiteError(f'"{text}" has no exact counterpart here', why=f"there it is before this family's {point[0]} norm; {point} is after it",
                        instead=f'say "{where}{point}" if that is what you mean')  # fmt: skip
    return where + point
