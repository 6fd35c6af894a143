"""Random tiny models, one per family and per variant that tools get wrong. No network, no checkpoint.

Sizes differ on every axis (heads 4, key/value heads 2, d_head 8, d_model 24, d_mlp 40, layers 3) so that a transposed
or regrouped tensor cannot pass by accident; `EQUAL` makes them coincide on purpose.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from microtome.certificate import Certificate, certify
from microtome.facade import Model
from microtome.model.binding import Binding, bind
from microtome.model.load import load_module

VOCAB = 97

_BASE: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40, "vocab_size": VOCAB,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_GQA = {**_BASE, "num_key_value_heads": 2, "head_dim": 8}
_SAME = {**_BASE, "hidden_size": 32, "num_key_value_heads": 2}  # families that derive d_head from d_model
_MHA = {**_BASE, "hidden_size": 32}
_GPT = {"n_embd": 24, "n_layer": 3, "n_head": 4, "vocab_size": VOCAB, "n_positions": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
_OPT = {**_MHA, "ffn_dim": 40, "word_embed_proj_dim": 32}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LATENT = {
    **_BASE, "num_key_value_heads": 4, "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "kv_lora_rank": 10, "q_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 8,
    "first_k_dense_replace": 1, "n_shared_experts": 1,
}  # fmt: skip


def _t(*kinds: str) -> list[str]:
    return [{"f": "full_attention", "s": "sliding_attention"}[k] for k in kinds]


KNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _GQA),
    "llama-bias": ("llama", {**_GQA, "attention_bias": True, "mlp_bias": True}),
    "llama-mha": ("llama", {**_GQA, "num_key_value_heads": 4}),
    "llama-mqa": ("llama", {**_GQA, "num_key_value_heads": 1}),
    "mistral": ("mistral", {**_GQA, "sliding_window": 4}),
    "ministral": ("ministral", {**_GQA, "sliding_window": 4, "layer_types": _t("s", "f", "s")}),
    "qwen2": ("qwen2", {**_SAME, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen3": ("qwen3", _GQA),
    "gemma": ("gemma", _GQA),
    "gemma2": ("gemma2", {**_GQA, "sliding_window": 4, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 1.5, "query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", {**_GQA, "sliding_window": 4, "layer_types": _t("s", "f", "s"), "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8}),
    "olmo": ("olmo", _SAME),
    "olmo-clip": ("olmo", {**_SAME, "clip_qkv": 0.5}),
    "olmo2": ("olmo2", _SAME),
    "olmo3": ("olmo3", {**_SAME, "sliding_window": 4, "layer_types": _t("s", "s", "f")}),
    "phi3": ("phi3", {**_SAME, "sliding_window": 4}),
    "glm": ("glm", {**_GQA, "partial_rotary_factor": 0.5}),
    "stablelm": ("stablelm", {**_SAME, "partial_rotary_factor": 0.5}),
    "stablelm-parallel": ("stablelm", {**_SAME, "use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": True}),
    "phi": ("phi", _SAME),
    "phi-qknorm": ("phi", {**_SAME, "qk_layernorm": True}),
    "cohere": ("cohere", {**_SAME, "logit_scale": 0.3}),
    "cohere-qknorm": ("cohere", {**_SAME, "use_qk_norm": True, "logit_scale": 0.3}),
    "cohere2": ("cohere2", {**_SAME, "sliding_window": 4, "layer_types": _t("s", "f", "s"), "logit_scale": 0.3}),
    "granite": ("granite", {**_SAME, "embedding_multiplier": 2.5, "residual_multiplier": 0.4, "attention_multiplier": 0.2, "logits_scaling": 3.0}),
    "smollm3": ("smollm3", {**_SAME, "no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 4, "layer_types": _t("s", "f", "s")}),
    "starcoder2": ("starcoder2", {**_SAME, "use_bias": True, "sliding_window": 4}),
    "helium": ("helium", {**_SAME, "head_dim": 8}),
    "gpt2": ("gpt2", _GPT),
    "gpt2-inverse": ("gpt2", {**_GPT, "scale_attn_by_inverse_layer_idx": True, "n_inner": 40}),
    "gpt_neox": ("gpt_neox", {**_MHA, "rotary_pct": 0.5}),
    "gpt_neox-sequential": ("gpt_neox", {**_MHA, "use_parallel_residual": False, "attention_bias": False}),
    "gptj": ("gptj", {**_GPT, "n_embd": 32, "rotary_dim": 4, "n_inner": 40}),
    "gpt_neo": ("gpt_neo", {"hidden_size": 32, "num_layers": 3, "num_heads": 4, "vocab_size": VOCAB, "max_position_embeddings": 64, "intermediate_size": 40,
                            "attention_types": [[["global", "local", "global"], 1]], "window_size": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}),
    "opt": ("opt", _OPT),
    "opt-projected": ("opt", {**_OPT, "word_embed_proj_dim": 20}),
    "opt-after": ("opt", {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 20}),
    "bloom": ("bloom", {"hidden_size": 32, "n_layer": 3, "n_head": 4, "vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}),
    "bloom-postln": ("bloom", {"hidden_size": 32, "n_layer": 3, "n_head": 4, "vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
                               "apply_residual_connection_post_layernorm": True}),
    "falcon": ("falcon", {**_MHA, "ffn_hidden_size": 40, "bias": True}),
    "falcon-new": ("falcon", {**_MHA, "ffn_hidden_size": 40, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-new-1ln": ("falcon", {**_MHA, "ffn_hidden_size": 40, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    "falcon-mha": ("falcon", {**_MHA, "ffn_hidden_size": 40, "multi_query": False, "bias": True}),
    "falcon-alibi": ("falcon", {**_MHA, "ffn_hidden_size": 40, "alibi": True, "parallel_attn": False, "multi_query": False, "bias": True}),
    "falcon-sequential": ("falcon", {**_MHA, "ffn_hidden_size": 40, "parallel_attn": False}),
    "mixtral": ("mixtral", {**_GQA, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4}),
    "qwen3_moe": ("qwen3_moe", {**_GQA, **_MOE, "mlp_only_layers": [1]}),
    "gpt_oss": ("gpt_oss", {**_GQA, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4, "layer_types": _t("s", "f", "s")}),
    "deepseek_v3": ("deepseek_v3", _LATENT),
    "deepseek_v3-noq": ("deepseek_v3", {**_LATENT, "q_lora_rank": None, "attention_bias": True}),
    "deepseek_v2": ("deepseek_v2", {**_LATENT, "topk_method": "greedy"}),
}  # fmt: skip

_HYBRID = {**_SAME, "num_hidden_layers": 4}
_MAMBA = {"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_chunk_size": 4}

UNKNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "olmoe": ("olmoe", {**_SAME, **_MOE}),
    "qwen2_moe": ("qwen2_moe", {**_SAME, **_MOE, "shared_expert_intermediate_size": 24}),
    "phimoe": ("phimoe", {**_SAME, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "granitemoe": ("granitemoe", {**_SAME, "num_local_experts": 4, "num_experts_per_tok": 2, "embedding_multiplier": 2.5, "residual_multiplier": 0.4, "logits_scaling": 3.0}),
    "granitemoeshared": ("granitemoeshared", {**_SAME, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 24, "residual_multiplier": 0.4}),
    "glm4": ("glm4", _GQA),
    "glm4_moe": ("glm4_moe", {**_GQA, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}),
    "nemotron": ("nemotron", {**_SAME, "head_dim": 8}),
    "persimmon": ("persimmon", _MHA),
    "codegen": ("codegen", {**_GPT, "n_embd": 32, "rotary_dim": 4, "n_inner": 40}),
    "mpt": ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 3, "vocab_size": VOCAB, "max_seq_len": 64, "expansion_ratio": 2, "pad_token_id": 0}),
    "gpt_bigcode": ("gpt_bigcode", {**_GPT, "n_embd": 32, "n_inner": 40}),
    "xglm": ("xglm", {"d_model": 32, "num_layers": 3, "attention_heads": 4, "ffn_dim": 40, "vocab_size": VOCAB, "max_position_embeddings": 64, "pad_token_id": 0}),
    "biogpt": ("biogpt", _MHA),
    "ernie4_5": ("ernie4_5", _GQA),
    "seed_oss": ("seed_oss", _GQA),
    "exaone4": ("exaone4", {**_SAME, "sliding_window": 4, "layer_types": _t("s", "s", "f")}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", _GQA),
    "dots1": ("dots1", {**_GQA, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "n_shared_experts": 1}),
    "bitnet": ("bitnet", _SAME),
    "apertus": ("apertus", _GQA),
    "arcee": ("arcee", _GQA),
    "vaultgemma": ("vaultgemma", {**_GQA, "sliding_window": 4}),
    "nanochat": ("nanochat", _GQA),
    "minimax": ("minimax", {**_GQA, "num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["full_attention", "linear_attention", "full_attention"], "block_size": 4}),
    "dbrx": ("dbrx", {"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 64, "vocab_size": VOCAB, "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
                      "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32}}),
    "jamba": ("jamba", {**_HYBRID, **_MAMBA, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 4, "num_experts_per_tok": 2, "use_mamba_kernels": False, "mamba_dt_rank": 4}),
    "bamba": ("bamba", {**_HYBRID, **_MAMBA, "attn_layer_indices": [1, 3], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1}),
    "falcon_h1": ("falcon_h1", {**_HYBRID, **_MAMBA, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_ssm": 64}),
    "lfm2": ("lfm2", {**_HYBRID, "layer_types": ["conv", "full_attention", "conv", "full_attention"], "conv_L_cache": 3, "block_auto_adjust_ff_dim": False}),
    "zamba2": ("zamba2", {**_HYBRID, **_MAMBA, "n_mamba_heads": 8, "mamba_headdim": 8, "mamba_ngroups": 1, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "num_mem_blocks": 1, "use_mamba_kernels": False, "chunk_size": 4}),
    "recurrent_gemma": ("recurrent_gemma", {**_HYBRID, "lru_width": 32, "attention_window_size": 4, "block_types": ["recurrent", "attention"], "num_key_value_heads": 1}),
    "qwen3_next": ("qwen3_next", {**_HYBRID, **_MOE, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"] * 2, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "shared_expert_intermediate_size": 24, "linear_conv_kernel_dim": 4}),
    "granitemoehybrid": ("granitemoehybrid", {**_HYBRID, **_MAMBA, "layer_types": ["mamba", "attention"] * 2, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 24, "residual_multiplier": 0.4}),
    "diffllama": ("diffllama", _SAME),
    "doge": ("doge", {**_SAME, "num_key_value_heads": 2}),
    "moshi": ("moshi", {**_SAME, "ffn_dim": 40, "head_dim": 8, "sliding_window": 4}),
}  # fmt: skip

EQUAL: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-equal": ("llama", {**_GQA, "hidden_size": 16, "num_key_value_heads": 4, "head_dim": 4, "intermediate_size": 16}),
    "gpt2-equal": ("gpt2", {**_GPT, "n_embd": 16, "n_inner": 16}),
    "gemma2-equal": ("gemma2", {**_GQA, "hidden_size": 16, "num_key_value_heads": 2, "head_dim": 4, "intermediate_size": 16, "sliding_window": 4}),
    "falcon-equal": ("falcon", {**_MHA, "hidden_size": 16, "ffn_hidden_size": 16, "new_decoder_architecture": True, "num_kv_heads": 2}),
}  # fmt: skip

REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba2": ("mamba2", {**_BASE, "hidden_size": 32, "num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 4}),
}  # fmt: skip

ALL = {**KNOWN, **UNKNOWN, **EQUAL, **REFUSED}


def build(name: str, *, dtype: torch.dtype = torch.float32, attention: str | None = None, seed: int = 0, **overrides: Any) -> nn.Module:  # fmt: skip
    """A fresh random model in eval mode; the global random state is left alone."""
    from transformers import AutoConfig, AutoModelForCausalLM

    logging.getLogger("transformers").setLevel(logging.ERROR)
    kind, config = ALL[name]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        kwargs = {} if attention is None else {"attn_implementation": attention}
        hf = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**config, **overrides}), **kwargs)
    randomise(hf, seed)
    return hf.to(dtype).eval()


def randomise(hf: nn.Module, seed: int) -> None:
    """Move every parameter away from its initial 0, 1 or 0.02 noise, so that no norm, bias or multiplier is neutral."""
    gen = torch.Generator().manual_seed(seed)
    embeddings = {id(m.weight) for m in hf.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for name, p in hf.named_parameters():
            noise = torch.randn(p.shape, generator=gen)
            last = name.rpartition(".")[2]
            if last in ("A_log", "dt_bias", "D") or "recurrent" in last:
                continue
            if id(p) in embeddings:
                p.copy_(noise)
            elif p.dim() == 1:
                p.add_(0.3 * noise)
            else:
                p.copy_(noise * 1.2 / p.shape[-1] ** 0.5)
        for name, b in hf.named_buffers():
            if name.endswith("e_score_correction_bias"):
                b.add_(0.1 * torch.randn(b.shape, generator=gen))


@dataclass
class State:
    """What a test must leave as it was."""

    hash: str
    attention: str
    grads: tuple[bool, ...]
    training: bool


USED: dict[int, tuple[str, nn.Module, State]] = {}
"""Shared models that the running test has asked for, with their state before (see conftest)."""


def state(hf: nn.Module) -> State:
    """Parameters and buffers by hash, attention implementation, requires_grad and training mode."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in hf.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)
    training = any(m.training for m in hf.modules())
    return State(digest.hexdigest(), str(hf.config._attn_implementation), tuple(p.requires_grad for p in hf.parameters()), training)  # fmt: skip


def model(name: str, attention: str | None = None, dtype: torch.dtype = torch.float32) -> nn.Module:
    """One shared instance per name, attention implementation and dtype. Tests must leave it as they found it."""
    hf = _shared(name, attention, dtype)
    if id(hf) not in USED:
        USED[id(hf)] = (name, hf, state(hf))
    return hf


@cache
def _shared(name: str, attention: str | None, dtype: torch.dtype) -> nn.Module:
    return build(name, dtype=dtype, attention=attention)


@cache
def _bound(name: str, attention: str | None, dtype: torch.dtype) -> tuple[Binding, Certificate | None]:
    binding = bind(_shared(name, attention, dtype))
    return binding, None if binding.known else certify(binding, withdraw=True)


def certified(name: str) -> tuple[Binding, Certificate]:
    """The shared model of a family resolved by structure, with the certificate that it got at load."""
    model(name)
    binding, certificate = _bound(name, None, torch.float32)
    assert certificate is not None
    return binding, certificate


def bound(name: str, attention: str | None = None, dtype: torch.dtype = torch.float32) -> Binding:
    """The shared model's binding; a family resolved by structure keeps what its certificate left."""
    model(name, attention, dtype)
    return _bound(name, attention, dtype)[0]


def loaded(name: str, attention: str | None = None, dtype: torch.dtype = torch.float32) -> Model:
    """The user's model object around the shared module."""
    return Model(load_module(model(name, attention, dtype)))


def prompts(n: int, length: int, seed: int = 0) -> list[list[int]]:
    """Random token ids, never a special token."""
    gen = torch.Generator().manual_seed(1000 + seed)
    return torch.randint(3, VOCAB, (n, length), generator=gen).tolist()


def ragged(lengths: list[int], seed: int = 0) -> list[list[int]]:
    """Random prompts of different lengths."""
    return [row[:n] for row, n in zip(prompts(len(lengths), max(lengths), seed), lengths, strict=True)]
