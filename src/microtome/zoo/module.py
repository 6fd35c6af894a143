"""A small causal or bidirectional transformer in the manner of transformers, for models whose mechanism is known.

Every part is optional, so that a mechanism can be written into it exactly: norms, MLPs, positions, biases. It goes through
`mt.load`, addresses and sweeps like any other family; `save` and `read` keep it as safetensors and JSON, never as a pickle.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from microtome.errors import ModelError

NORMS = ("none", "layernorm", "rms")
WEIGHTS, CONFIG = "model.safetensors", "config.json"


class ZooConfig(PreTrainedConfig):
    """Sizes and parts of a zoo model.

    head_dim does not follow from hidden_size. intermediate_size 0: no MLP. hidden_act: "relu", "gelu", "silu", "linear",
    "square". norm: "none", "layernorm" or "rms". attention_scale multiplies q . k (None: 1 / sqrt(head_dim)).
    """

    model_type = "microtome_zoo"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 16
    hidden_size: int = 32
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    head_dim: int = 16
    intermediate_size: int = 0
    hidden_act: str = "relu"
    norm: str = "none"
    norm_eps: float = 1e-5
    causal: bool = True
    learned_positions: bool = True
    max_position_embeddings: int = 16
    attention_scale: float | None = None
    attention_bias: bool = False
    mlp_bias: bool = True
    head_bias: bool = False
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    use_cache: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.norm not in NORMS:
            raise ModelError(
                f"norm={self.norm!r} is not one of the zoo's.", instead=f"one of {', '.join(NORMS)}"
            )
        if self.hidden_act not in (*ACTIVATIONS, "square"):
            raise ModelError(
                f"hidden_act={self.hidden_act!r} is not one of the zoo's.",
                instead=f"one of {', '.join((*ACTIVATIONS, 'square'))}",
            )


ACTIVATIONS = ("relu", "gelu", "silu", "linear")


class Square(nn.Module):
    """x * x: an MLP that multiplies."""

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: [...] -> same."""
        return x * x


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: [..., d] -> same."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def _norm(config: ZooConfig) -> nn.Module:
    if config.norm == "rms":
        return RMSNorm(config.hidden_size, config.norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps)


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """softmax(scaling * q k^T + mask) v. Shapes: [batch, head, pos, d_head] -> [batch, pos, head, d_head]."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    wide = torch.float64 if scores.dtype == torch.float64 else torch.float32
    pattern = nn.functional.softmax(scores, dim=-1, dtype=wide).to(query.dtype)
    return torch.matmul(pattern, value).transpose(1, 2).contiguous(), pattern


class ZooAttention(nn.Module):
    """Multi-head attention without rotation; every head has its own key and value."""

    def __init__(self, config: ZooConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim, self.num_key_value_groups = config.head_dim, 1
        scale = config.attention_scale
        self.scaling = config.head_dim**-0.5 if scale is None else scale
        self.is_causal = config.causal
        inner, bias = config.num_attention_heads * config.head_dim, config.attention_bias
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(config.hidden_size, inner, bias=bias) for _ in range(3)
        )
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=bias)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Shapes: [batch, pos, d_model] -> same."""
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            project(hidden_states).view(shape).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend: Callable[..., tuple[Tensor, Any]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        out, _ = attend(self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs)
        mixed: Tensor = self.o_proj(out.reshape(*hidden_states.shape[:-1], -1).contiguous())
        return mixed


class ZooMLP(nn.Module):
    """act(x W_in + b_in) W_out + b_out."""

    def __init__(self, config: ZooConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.act = Square() if config.hidden_act == "square" else ACT2FN[config.hidden_act]
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: [batch, pos, d_model] -> same."""
        out: Tensor = self.down_proj(self.act(self.up_proj(x)))
        return out


class ZooDecoderLayer(nn.Module):
    """Attention, then an MLP if there is one; norms only where the config has them."""

    def __init__(self, config: ZooConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = ZooAttention(config, layer_idx)
        self.normed, self.deep = config.norm != "none", config.intermediate_size > 0
        if self.normed:
            self.input_layernorm = _norm(config)
        if self.deep:
            if self.normed:
                self.post_attention_layernorm = _norm(config)
            self.mlp = ZooMLP(config)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Shapes: [batch, pos, d_model] -> same."""
        x = self.input_layernorm(hidden_states) if self.normed else hidden_states
        hidden_states = hidden_states + self.self_attn(x, attention_mask, past_key_values, **kwargs)
        if not self.deep:
            return hidden_states
        # an edit of resid_mid is made in place at the module that reads it: the sum below must come after
        x = self.post_attention_layernorm(hidden_states) if self.normed else hidden_states
        added = self.mlp(x)
        return hidden_states + added


class ZooPreTrainedModel(PreTrainedModel):
    """What transformers asks of every model."""

    config_class = ZooConfig
    base_model_prefix = "model"
    _no_split_modules = ["ZooDecoderLayer"]
    _supports_sdpa = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


class ZooModel(ZooPreTrainedModel):
    """Embeddings and layers."""

    def __init__(self, config: ZooConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.learned_positions:
            self.wpe = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(ZooDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        if config.norm != "none":
            self.norm = _norm(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Shapes: input_ids [batch, pos] -> last_hidden_state [batch, pos, d_model]."""
        x: Tensor = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = (torch.arange(x.shape[1], device=x.device) + seen)[None]
        if self.config.causal:
            mask = create_causal_mask(
                config=self.config,
                inputs_embeds=x,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
            )
        else:
            mask = create_bidirectional_mask(
                config=self.config, inputs_embeds=x, attention_mask=attention_mask
            )
        if self.config.learned_positions:
            x = x + self.wpe(position_ids)
        for layer in self.layers:
            x = layer(
                x,
                attention_mask=mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                **kwargs,
            )
        if self.config.norm != "none":
            x = self.norm(x)
        return BaseModelOutputWithPast(last_hidden_state=x, past_key_values=past_key_values)


class ZooForCausalLM(ZooPreTrainedModel):
    """The zoo's language model: an untied unembedding on top."""

    def __init__(self, config: ZooConfig) -> None:
        super().__init__(config)
        self.model = ZooModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.head_bias)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Shapes: input_ids [batch, pos] -> logits [batch, pos, d_vocab]."""
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        return CausalLMOutputWithPast(
            logits=self.lm_head(out.last_hidden_state), past_key_values=out.past_key_values
        )


AutoConfig.register(ZooConfig.model_type, ZooConfig, exist_ok=True)
AutoModelForCausalLM.register(ZooConfig, ZooForCausalLM, exist_ok=True)


def make(config: ZooConfig, *, seed: int, dtype: torch.dtype = torch.float32) -> ZooForCausalLM:
    """A fresh model with random weights from the seed (the global random state is left alone), in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: Any = ZooForCausalLM(config)
    moved: ZooForCausalLM = module.to(dtype).eval()
    return moved


def save(module: ZooForCausalLM, folder: str | Path) -> Path:
    """Write config.json and model.safetensors into a folder; `read`, or `mt.load(folder, tokenizer=...)`, takes it back."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(module.config)
    config.architectures, config.dtype = [type(module).__name__], module.dtype
    (folder / CONFIG).write_text(config.to_json_string(use_diff=False))
    tensors = {name: t.detach().cpu().contiguous() for name, t in module.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def read(folder: str | Path, *, device: str | torch.device = "cpu") -> ZooForCausalLM:
    """Read what `save` wrote, in eval mode and without gradients, in the dtype of the file.

    Raises
    ------
    ModelError: files missing, a config of another family, or weights that are not this config's.
    """
    import json

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    try:
        fields = json.loads((folder / CONFIG).read_text())
        tensors = load_file(folder / WEIGHTS, device=str(device))
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"{folder} holds no zoo model.",
            why=f"{type(error).__name__}: {str(error).splitlines()[0][:200]}",
            instead="give a folder that `zoo.module.save` wrote",
        ) from error
    if fields.get("model_type") != ZooConfig.model_type:
        raise ModelError(
            f"{folder} holds a model of the type {fields.get('model_type')!r}.",
            instead="load it with mt.load",
        )
    module: Any = make(ZooConfig.from_dict(fields), seed=0)
    expected = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if expected != found:
        wrong = sorted(set(expected.items()) ^ set(found.items()))
        raise ModelError(
            f"the weights in {folder} are not this config's: {', '.join(sorted({n for n, _ in wrong})[:5])}.",
            why="names or shapes differ",
            instead="keep config.json and model.safetensors of one save together",
        )
    module.load_state_dict(tensors)
    dtype = next(iter(tensors.values())).dtype
    filled: ZooForCausalLM = module.to(device=device, dtype=dtype).requires_grad_(False)
    return filled
