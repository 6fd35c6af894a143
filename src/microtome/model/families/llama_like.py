"""Families with rotary positions and separate or fused projections in the manner of Llama."""

from __future__ import annotations

from typing import Any

from microtome.model.family import PARALLEL, POST, PRE, SANDWICH, Block, Family, concatenated, register

_CLIP = "clip_qkv clamps the projections in place: before rotary there is no module boundary after the clamp"


def _plain(config: Any, layer: int) -> Block:
    return Block()


def _fused(config: Any, layer: int) -> Block:
    return Block(fused=concatenated(config.num_attention_heads, config.num_key_value_heads))


def _unrotated(config: Any, layer: int) -> Block:
    rotates = getattr(config, "no_rope_layers", None)
    return Block(rotates=bool(rotates[layer]) if rotates else True)


def _olmo(config: Any, layer: int) -> Block:
    clipped = getattr(config, "clip_qkv", None) is not None
    return Block(refuse={"q_pre": _CLIP, "k_pre": _CLIP} if clipped else {})


def _granite(config: Any, layer: int) -> Block:
    return Block(attn_scale=config.residual_multiplier, mlp_scale=config.residual_multiplier)


def _stablelm(config: Any, layer: int) -> Block:
    style = PARALLEL if config.use_parallel_residual else PRE
    return Block(style=style, qk_norm="bhsd" if config.qk_layernorm else "")


def _phi(config: Any, layer: int) -> Block:
    return Block(style=PARALLEL, qk_norm="bhsd" if config.qk_layernorm else "")


def _cohere(config: Any, layer: int) -> Block:
    return Block(style=PARALLEL, qk_norm="bshd" if getattr(config, "use_qk_norm", False) else "")


def _cohere2(config: Any, layer: int) -> Block:
    kinds = getattr(config, "layer_types", None)
    return Block(style=PARALLEL, rotates=kinds is None or kinds[layer] == "sliding_attention")


def _final_softcap(config: Any) -> float | None:
    return getattr(config, "final_logit_softcapping", None)


for _family in (
    Family("llama", ("llama",), _plain),
    Family("mistral", ("mistral", "ministral"), _plain),
    Family("qwen2", ("qwen2",), _plain),
    Family("qwen3", ("qwen3",), lambda c, i: Block(qk_norm="bshd")),
    Family("smollm3", ("smollm3",), _unrotated),
    Family("starcoder2", ("starcoder2",), _plain),
    Family("helium", ("helium",), _plain),
    Family("gemma", ("gemma",), _plain),
    Family("gemma2", ("gemma2",), lambda c, i: Block(style=SANDWICH), softcap=_final_softcap),
    Family("gemma3", ("gemma3_text",), lambda c, i: Block(style=SANDWICH, qk_norm="bhsd"), softcap=_final_softcap),
    Family("olmo", ("olmo",), _olmo),
    Family("olmo2", ("olmo2", "olmo3"), lambda c, i: Block(style=POST, qk_norm="flat")),
    Family("phi3", ("phi3",), _fused),
    Family("glm", ("glm",), _plain),
    Family("stablelm", ("stablelm",), _stablelm),
    Family("phi", ("phi",), _phi),
    Family("cohere", ("cohere",), _cohere, logit_scale=lambda c: c.logit_scale),
    Family("cohere2", ("cohere2",), _cohere2, logit_scale=lambda c: c.logit_scale),
    Family(
        "granite", ("granite",), _granite,
        embed_scale=lambda c: c.embedding_multiplier, logit_scale=lambda c: 1.0 / c.logits_scaling,
    ),
):  # fmt: skip
    register(_family)
