"""What a loaded model is, layer by layer, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LayerFacts:
    """One decoder layer.

    `kind` is "attention" or the name of another mixer; `d_value` the width of a head's value (it differs from
    `d_head` in latent attention); `window` the sliding window in tokens or None; `parallel` is True when the MLP
    reads the same stream as attention; `mlp` is "gated", "plain", "moe" or "none"; `lacks` maps each point that
    this layer does not have to the reason, as a sentence.
    """

    index: int
    kind: str
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_value: int
    d_mlp: int
    mlp: str
    window: int | None
    parallel: bool
    lacks: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """The whole model.

    `additive` is True when the stream is the plain sum of what its parts write; `not_additive` says why it is
    not. `n_ctx` is the longest prompt in tokens, None when the family sets no limit.
    """

    family: str
    model_type: str
    n_layers: int
    d_model: int
    d_vocab: int
    n_ctx: int | None
    layers: tuple[LayerFacts, ...]
    lacks: Mapping[str, str]
    n_params: int
    tied: bool
    softcap: float | None
    logit_scale: float
    positions: str
    additive: bool
    not_additive: str
    known_family: bool

    def _same(self, name: str) -> int:
        values = {getattr(layer, name) for layer in self.layers if layer.kind == "attention"}
        return values.pop() if len(values) == 1 else 0

    @property
    def n_heads(self) -> int:
        """Query heads per layer; 0 when layers differ (then ask `layers[i]`)."""
        return self._same("n_heads")

    @property
    def n_kv_heads(self) -> int:
        """Key/value heads per layer; 0 when layers differ."""
        return self._same("n_kv_heads")

    @property
    def d_head(self) -> int:
        """Width of a head; 0 when layers differ."""
        return self._same("d_head")

    @property
    def d_mlp(self) -> int:
        """Neurons per layer; 0 when layers differ."""
        return self._same("d_mlp")
