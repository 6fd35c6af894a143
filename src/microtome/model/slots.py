"""The parts of one decoder layer, found by name: module paths, sizes and semantics."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from microtome.model import names
from microtome.model.family import PARALLEL, POST, SANDWICH, Block, Family
from microtome.model.guess import guess_block


@dataclass(frozen=True)
class Slots:
    """Module paths of one layer (None where absent) with its semantics and sizes."""

    path: str
    block: Block
    style: str
    kind: str
    mlp_kind: str
    n_heads: int
    n_kv: int
    d_head: int
    d_value: int
    d_mlp: int
    window: int | None
    registry: bool
    paths: Mapping[str, str | None] = field(default_factory=dict)

    def at(self, part: str) -> str | None:
        """The full module path of a part of this layer."""
        name = self.paths.get(part)
        return None if name is None else f"{self.path}.{name}"


def find_slots(config: Any, family: Family | None, layer: nn.Module, index: int, path: str) -> Slots:
    """The slots of one layer; without a registered family its semantics are guessed from its norms."""
    attn = names.child(layer, names.ATTN)
    mlp = names.child(layer, names.MLP)
    mixer = None if attn else names.child(layer, names.MIXERS)
    block = family.block(config, index) if family else guess_block(config, layer)
    paths: dict[str, str | None] = {"attn": attn, "mlp": mlp}
    if attn:
        inner = layer.get_submodule(attn)
        for part, vocabulary in (("q", names.Q), ("k", names.K), ("v", names.V), ("qkv", names.QKV), ("o", names.O),
                                 ("q_norm", names.Q_NORM), ("k_norm", names.K_NORM)):  # fmt: skip
            found = names.child(inner, vocabulary)
            good = found and (part.endswith("_norm") or multiplies(inner.get_submodule(found)))
            paths[part] = f"{attn}.{found}" if good else None
        if not block.qk_norm:
            paths["q_norm"] = paths["k_norm"] = None
    mlp_kind, d_mlp = _mlp_slots(layer, mlp, paths)
    _norm_slots(layer, block.style, paths)
    n_heads, n_kv, d_head, d_value = _head_sizes(config, block, layer.get_submodule(attn) if attn else None)
    called = _mixer(config, index)
    kind = (called or "attention") if attn else (mixer or called or "an unknown mixer")
    return Slots(
        path, block, block.style, kind, mlp_kind, n_heads, n_kv, d_head, d_value, d_mlp,
        _window(config, index), bool(attn) and _on_registry(layer.get_submodule(attn or "")), paths,
    )  # fmt: skip


def _mlp_slots(layer: nn.Module, mlp: str | None, paths: dict[str, str | None]) -> tuple[str, int]:
    where = layer.get_submodule(mlp) if mlp else layer
    prefix = f"{mlp}." if mlp else ""
    out = names.child(where, names.OUT)
    if mlp and (out is None or not multiplies(where.get_submodule(out))):
        return ("moe" if names.child(where, names.EXPERTS) else "unknown"), 0
    if out is None:
        return "none", 0
    for part, vocabulary in (
        ("up", names.UP),
        ("gate", names.GATE),
        ("gate_up", names.GATE_UP),
        ("out", names.OUT),
    ):
        found = names.child(where, vocabulary)
        good = found and multiplies(where.get_submodule(found))
        paths[part] = f"{prefix}{found}" if good else None
    weight = tensor(where.get_submodule(out), "weight")
    d_mlp = weight.shape[0] if transposed(where.get_submodule(out)) else weight.shape[1]
    return ("gated" if paths["gate"] or paths["gate_up"] else "plain"), d_mlp


def _norm_slots(layer: nn.Module, style: str, paths: dict[str, str | None]) -> None:
    paths["ln1"] = None if style == POST else names.child(layer, names.LN1)
    if style == SANDWICH:
        paths["ln2"] = names.child(layer, names.LN2_SANDWICH)
    elif style != POST:
        paths["ln2"] = names.child(layer, names.LN2)
    if style in (SANDWICH, POST):
        paths["ln1_post"] = names.child(layer, names.LN1_POST)
        paths["ln2_post"] = names.child(layer, names.LN2_POST)
    if style == PARALLEL and paths.get("ln2") is not None and paths["ln2"] == paths["ln1"]:
        paths["ln2"] = None


def _head_sizes(config: Any, block: Block, attn: nn.Module | None) -> tuple[int, int, int, int]:
    n = int(getattr(config, "num_attention_heads", 0) or 0)
    if attn is None or not n:
        return 0, 0, 0, 0
    n_kv = int(block.n_kv_heads or getattr(config, "num_key_value_heads", None) or n)
    if block.latent:
        return n, n_kv, int(config.qk_nope_head_dim + config.qk_rope_head_dim), int(config.v_head_dim)
    d = int(getattr(attn, "head_dim", None) or getattr(config, "head_dim", None) or config.hidden_size // n)
    return n, n_kv, d, d


def _window(config: Any, index: int) -> int | None:
    window = getattr(config, "sliding_window", None) or getattr(config, "window_size", None)
    if not isinstance(window, int):
        return None
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return window if kinds[index] == "sliding_attention" else None
    local = getattr(config, "attention_layers", None)
    if local is not None:
        return window if local[index] == "local" else None
    return window if getattr(config, "use_sliding_window", True) else None


def _on_registry(attn: nn.Module) -> bool:
    home = sys.modules[type(attn).__module__]
    return hasattr(home, "ALL_ATTENTION_FUNCTIONS") and hasattr(home, "eager_attention_forward")


def tensor(module: nn.Module, name: str) -> Tensor:
    """A parameter or buffer of a module."""
    found = getattr(module, name)
    assert isinstance(found, Tensor)
    return found


def multiplies(module: nn.Module) -> bool:
    """Whether a module of a projection's name is one: some families wrap the matrix in a module of their own."""
    return isinstance(getattr(module, "weight", None), Tensor)


def transposed(module: nn.Module) -> bool:
    """Conv1D of transformers keeps its weight as [in, out]."""
    return type(module).__name__ == "Conv1D"


def _mixer(config: Any, index: int) -> str:
    """What the config calls a layer that does not attend ("" when it attends, or says nothing)."""
    kinds = getattr(config, "layer_types", None)
    kind = str(kinds[index]) if kinds is not None and index < len(kinds) else ""
    return kind if any(word in kind for word in ("linear", "mamba", "conv", "recurrent")) else ""
