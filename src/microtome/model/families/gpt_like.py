"""The older families: learned or alibi positions, fused projections, attention outside the registry."""

from __future__ import annotations

from typing import Any

from microtome.model.family import PARALLEL, PRE, Block, Family, concatenated, grouped, interleaved, register

_INSIDE = "this family computes rotary inside its attention module and is not on the attention registry"
_NO_MID = "this family normalises the stream itself after each part, so there is no additive middle"
_OLD_SLICES = "pretraining_tp > 1 with slow_but_exact multiplies slices of W_O and W_out by hand"


def _gpt2(config: Any, layer: int) -> Block:
    refuse = {}
    if getattr(config, "reorder_and_upcast_attn", False):
        refuse = dict.fromkeys(
            ("scores", "pattern"), "reorder_and_upcast_attn takes a path of its own in eager mode"
        )
    return Block(fused=concatenated(config.n_head, config.n_head), rotates=False, refuse=refuse)


def _gpt_neox(config: Any, layer: int) -> Block:
    style = PARALLEL if config.use_parallel_residual else PRE
    return Block(style=style, fused=interleaved(config.num_attention_heads))


def _opt(config: Any, layer: int) -> Block:
    refuse = {}
    if not config.do_layer_norm_before:
        refuse = dict.fromkeys(("resid_mid", "ln1_scale", "ln2_scale"), _NO_MID)
    return Block(rotates=False, refuse=refuse)


def _opt_additive(config: Any) -> str:
    return "" if config.do_layer_norm_before else _NO_MID


def _bloom(config: Any, layer: int) -> Block:
    refuse = {}
    if config.pretraining_tp > 1 and config.slow_but_exact:
        refuse = dict.fromkeys(
            ("attn_raw", "attn_out", "mlp_raw", "mlp_out", "z", "head_out", "neurons"), _OLD_SLICES
        )
    return Block(fused=interleaved(config.n_head), rotates=False, refuse=refuse)


def _bloom_additive(config: Any) -> str:
    return (
        "the stream restarts from the norm's output"
        if config.apply_residual_connection_post_layernorm
        else ""
    )


def _falcon(config: Any, layer: int) -> Block:
    new = config.new_decoder_architecture
    heads = config.num_attention_heads
    kv = config.num_kv_heads if new else (1 if config.multi_query else heads)
    fused = interleaved(heads) if not new and not config.multi_query else grouped(kv, heads // kv)
    style = PARALLEL if new or config.parallel_attn else PRE
    refuse = {} if config.alibi else {"q": _INSIDE}
    return Block(style=style, fused=fused, n_kv_heads=kv, kv_repeat=heads // kv if new else 1,
                 rotates=not config.alibi, refuse=refuse)  # fmt: skip


for _family in (
    Family("gpt2", ("gpt2",), _gpt2, positions="learned"),
    Family("gpt_neox", ("gpt_neox",), _gpt_neox),
    Family("gptj", ("gptj",), lambda c, i: Block(style=PARALLEL, refuse={"q": _INSIDE})),
    Family("gpt_neo", ("gpt_neo",), lambda c, i: Block(rotates=False), positions="learned"),
    Family("opt", ("opt",), _opt, positions="learned", not_additive=_opt_additive),
    Family("bloom", ("bloom",), _bloom, positions="alibi", not_additive=_bloom_additive),
    Family("falcon", ("falcon",), _falcon),
):
    register(_family)
