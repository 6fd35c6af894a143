"""Mixtures of experts, attention sinks and latent attention."""

from __future__ import annotations

from typing import Any

from microtome.model.family import Block, Family, register

_LATENT = "queries and keys are two parts, one compressed and one rotary, joined only inside attention"


def _latent(config: Any, layer: int) -> Block:
    return Block(
        latent=True, n_kv_heads=config.num_attention_heads, refuse={"q_pre": _LATENT, "k_pre": _LATENT}
    )


for _family in (
    Family("mixtral", ("mixtral",)),
    Family("qwen3_moe", ("qwen3_moe",), lambda c, i: Block(qk_norm="bshd")),
    Family("gpt_oss", ("gpt_oss",)),
    Family("deepseek", ("deepseek_v3", "deepseek_v2"), _latent),
):
    register(_family)
