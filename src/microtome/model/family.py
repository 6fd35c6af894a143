"""A family as data: what its module tree does not tell by itself.

Module names come from a shared vocabulary (`names.py`); a family states only the semantics: which norms sit
where, whether attention and MLP run side by side, how fused projections are laid out, what is multiplied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from microtome.results import registry

Config = Any

PRE, SANDWICH, POST, PARALLEL = "pre", "sandwich", "post", "parallel"
"""Block styles: norms before each part; before and after; only after; one stream read by both parts."""


@dataclass(frozen=True)
class Fused:
    """A fused query/key/value projection, seen as [.., groups, width, d_head].

    A `slot` is (first group, last group, first in width, last in width), half-open.
    """

    groups: int
    width: int
    q: tuple[int, int, int, int]
    k: tuple[int, int, int, int]
    v: tuple[int, int, int, int]


def concatenated(n_heads: int, n_kv: int) -> Fused:
    """[q heads | k heads | v heads], as in gpt2 and phi3."""
    total = n_heads + 2 * n_kv
    return Fused(total, 1, (0, n_heads, 0, 1), (n_heads, n_heads + n_kv, 0, 1), (n_heads + n_kv, total, 0, 1))


def interleaved(n_heads: int) -> Fused:
    """[head: q, k, v], as in gpt_neox and bloom."""
    return Fused(n_heads, 3, (0, n_heads, 0, 1), (0, n_heads, 1, 2), (0, n_heads, 2, 3))


def grouped(n_kv: int, per_group: int) -> Fused:
    """[group: its queries, one key, one value], as in falcon."""
    return Fused(
        n_kv, per_group + 2,
        (0, n_kv, 0, per_group), (0, n_kv, per_group, per_group + 1), (0, n_kv, per_group + 1, per_group + 2),
    )  # fmt: skip


@dataclass(frozen=True)
class Block:
    """The semantics of one decoder layer.

    `qk_norm` says where a query/key norm acts: "" none, "flat" [b, s, h*d], "bshd", "bhsd".
    `rotates` is False where queries and keys reach attention as projected. `kv_repeat` is how often the cache
    repeats each key/value head. `refuse` maps points to the reason why this family must not offer them.
    """

    style: str = PRE
    attn_scale: float = 1.0
    mlp_scale: float = 1.0
    fused: Fused | None = None
    qk_norm: str = ""
    rotates: bool = True
    latent: bool = False
    kv_repeat: int = 1
    n_kv_heads: int | None = None
    mixer: str = "attention"
    refuse: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """One architecture family.

    Parameters
    ----------
    name: the name users see in `model.facts.family`.
    types: values of `config.model_type` that belong to it.
    block: (config, layer index) -> Block.
    embed_scale, logit_scale, softcap: config -> number; what multiplies the embedding, the logits, and the tanh
        cap of the logits (None without one).
    positions: "rotary", "learned", "alibi" or "none"; "unknown" where a family is resolved by structure.
    not_additive: config -> "" or the reason why the stream is not a plain sum.
    causal: config -> False where every token sees the whole prompt: then nothing is skipped, cached or continued.
    """

    name: str
    types: tuple[str, ...]
    block: Callable[[Config, int], Block] = lambda config, layer: Block()
    embed_scale: Callable[[Config], float] = lambda config: 1.0
    logit_scale: Callable[[Config], float] = lambda config: 1.0
    softcap: Callable[[Config], float | None] = lambda config: None
    positions: str = "rotary"
    not_additive: Callable[[Config], str] = lambda config: ""
    causal: Callable[[Config], bool] = lambda config: True


def register(family: Family) -> None:
    """Make a family known under each of its config types."""
    for kind in family.types:
        registry.register("families", kind, family)


def find(model_type: str) -> Family | None:
    """The family of a config type, or None when nobody registered it (it is then resolved by structure)."""
    from microtome.model import families  # noqa: F401  the built-in rows register themselves

    return registry.get("families", model_type) if model_type in registry.names("families") else None
