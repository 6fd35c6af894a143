"""The vocabulary of module names: how released models call the same parts.

Order matters: the first name that exists is taken. Names never decide semantics (that is the family's row or the
certificate); they only find modules.
"""

from __future__ import annotations

from torch import nn

LAYERS = ("layers", "h", "blocks", "decoder.layers")
EMBED = ("embed_tokens", "wte", "embed_in", "word_embeddings", "decoder.embed_tokens", "tok_embeddings")
POS = ("wpe", "embed_positions", "decoder.embed_positions")
EMBED_NORM = ("word_embeddings_layernorm", "embed_norm", "embeddings_norm")
FINAL_NORM = (
    "norm",
    "ln_f",
    "final_layernorm",
    "final_layer_norm",
    "decoder.final_layer_norm",
    "final_norm",
    "norm_f",
    "layer_norm",
    "embedding_norm",
)
PROJECT_OUT = ("decoder.project_out",)
HEAD = ("lm_head", "embed_out", "output", "output_projection")

ATTN = ("self_attn", "attn.attention", "attn", "attention", "self_attention")
MIXERS = ("mamba", "mixer", "linear_attn", "conv", "temporal_block", "short_conv", "delta_net")
Q, K, V = ("q_proj", "query", "wq"), ("k_proj", "key", "wk"), ("v_proj", "value", "wv")
QKV = ("qkv_proj", "query_key_value", "c_attn", "Wqkv", "qkv")
O = ("o_proj", "out_proj", "dense", "c_proj", "wo")  # noqa: E741
Q_NORM, K_NORM = ("q_norm", "q_layernorm", "query_layernorm"), ("k_norm", "k_layernorm", "key_layernorm")

MLP = ("mlp", "feed_forward", "ffn", "mlp_block", "block_sparse_moe", "moe")
GATE, UP = ("gate_proj", "w1"), ("up_proj", "c_fc", "dense_h_to_4h", "fc1", "fc_in", "w3")
GATE_UP = ("gate_up_proj",)
OUT = ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out", "w2")
EXPERTS = ("experts",)

LN1 = (
    "input_layernorm",
    "ln_1",
    "self_attn_layer_norm",
    "ln_attn",
    "norm1",
    "norm_1",
    "attention_norm",
    "attention_layernorm",
    "operator_norm",
    "temporal_pre_norm",
)
LN2_SANDWICH = ("pre_feedforward_layernorm", "post_attention_layernorm")
LN2 = (
    "pre_feedforward_layernorm",
    "post_attention_layernorm",
    "ln_2",
    "final_layer_norm",
    "ln_mlp",
    "norm2",
    "norm_2",
    "ffn_norm",
    "pre_ff_layernorm",
    "feedforward_layernorm",
    "channel_pre_norm",
)
LN1_POST = ("post_self_attn_layernorm", "post_attention_layernorm")
LN2_POST = ("post_feedforward_layernorm", "post_mlp_layernorm")


def child(module: nn.Module, names: tuple[str, ...]) -> str | None:
    """The first of `names` that is a submodule (dots go deeper), or None."""
    for name in names:
        found: nn.Module | None = module
        for part in name.split("."):
            found = getattr(found, part, None) if found is not None else None
        if isinstance(found, nn.Module):
            return name
    return None
