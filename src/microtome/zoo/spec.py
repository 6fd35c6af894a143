"""A transformer as named blocks of weights, before it becomes a module: what the compiler writes and decoys are added to.

Every matrix multiplies from the right. Edges between components are read off the weights here, never typed in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from microtome.zoo.module import ZooForCausalLM

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass
class Head:
    """One attention head. Shapes: q, k, v [d_model, d_head]; q_bias [d_head]; out [d_head, d_model].

    `decoy` heads are no part of the mechanism. origin: the address under which the compiler made it.
    """

    q: Array
    q_bias: Array
    k: Array
    v: Array
    out: Array
    decoy: bool = False
    origin: str = ""

    @property
    def width(self) -> int:
        """d_head."""
        return self.q.shape[1]


@dataclass
class Neurons:
    """Some neurons of one MLP. Shapes: into [d_model, n]; bias [n]; out [n, d_model]; out_bias [d_model]."""

    into: Array
    bias: Array
    out: Array
    out_bias: Array
    decoy: bool = False

    @property
    def n(self) -> int:
        """How many."""
        return self.into.shape[1]


@dataclass
class Block:
    """Heads and neurons of one layer. origin: the layer's number when it was compiled, None for one of decoys only."""

    heads: list[Head] = field(default_factory=list)
    neurons: list[Neurons] = field(default_factory=list)
    origin: int | None = None


@dataclass
class Spec:
    """The whole model.

    Shapes: tokens [d_vocab, d_model]; positions [n_ctx, d_model] or None; unembed [d_model, d_vocab]. scale multiplies
    q . k; rotation [d_model, d_model] (orthogonal) is applied to the stream last of all.
    """

    tokens: Array
    positions: Array | None
    blocks: list[Block]
    unembed: Array
    n_ctx: int
    causal: bool
    scale: float
    rotation: Array | None = None

    @property
    def d_model(self) -> int:
        """Width of the stream."""
        return self.tokens.shape[1]

    @property
    def n_heads(self) -> int:
        """Heads of every layer (missing ones are filled with zeros)."""
        return max(1, *(len(b.heads) for b in self.blocks))

    def widened(self, more: int) -> Spec:
        """The same model with that many further coordinates of the stream, which nothing reads or writes."""
        if not more:
            return self

        def wide(x: Array, axis: int) -> Array:
            return np.pad(x, [(0, more if a == axis else 0) for a in range(x.ndim)])

        blocks = [
            Block(
                [
                    replace(h, q=wide(h.q, 0), k=wide(h.k, 0), v=wide(h.v, 0), out=wide(h.out, 1))
                    for h in b.heads
                ],
                [
                    replace(n, into=wide(n.into, 0), out=wide(n.out, 1), out_bias=wide(n.out_bias, 0))
                    for n in b.neurons
                ],
                b.origin,
            )
            for b in self.blocks
        ]
        return replace(
            self,
            tokens=wide(self.tokens, 1),
            positions=None if self.positions is None else wide(self.positions, 1),
            blocks=blocks,
            unembed=wide(self.unembed, 0),
        )


Coordinates = np.ndarray[Any, np.dtype[np.bool_]]


def sources(spec: Spec, *, decoys: bool = True) -> Iterator[tuple[str, Coordinates]]:
    """Every component that writes to the stream, in model order, with the coordinates that it writes. [d_model] bool."""
    embed = np.abs(spec.tokens).sum(0)
    yield "embed", (embed if spec.positions is None else embed + np.abs(spec.positions).sum(0)) > 0
    for i, block in enumerate(spec.blocks):
        for h, head in enumerate(block.heads):
            if decoys or not head.decoy:
                yield f"L{i}H{h}.z", np.abs(head.out).sum(0) > 0
        parts = [n for n in block.neurons if decoys or not n.decoy]
        if parts:
            yield f"L{i}.mlp_out", sum(np.abs(n.out).sum(0) + np.abs(n.out_bias) for n in parts) > 0


def readers(spec: Spec, *, decoys: bool = True) -> Iterator[tuple[str, Coordinates]]:
    """Every input that reads the stream, in model order, with the coordinates that it reads. [d_model] bool."""
    for i, block in enumerate(spec.blocks):
        for h, head in enumerate(block.heads):
            if decoys or not head.decoy:
                yield from (
                    (f"L{i}H{h}.{what}", np.abs(getattr(head, what)).sum(1) > 0) for what in ("q", "k", "v")
                )
        parts = [n for n in block.neurons if decoys or not n.decoy]
        if parts:
            yield f"L{i}.ln2_out", sum(np.abs(n.into).sum(1) for n in parts) > 0
    yield "logits", np.abs(spec.unembed).sum(1) > 0


def stage(node: str) -> int:
    """When a source writes or a reader reads: attention of layer l at 2 l, its MLP at 2 l + 1; embed -1; logits last."""
    if node == "embed":
        return -1
    if node == "logits":
        return 1 << 30
    layer = int(node[1:].replace("H", ".").split(".")[0])
    return 2 * layer + (1 if node.endswith(("mlp_out", "ln2_out")) else 0)


def true_edges(spec: Spec) -> list[str]:
    """Edges of the mechanism: what a true component writes meets what a later true one reads."""
    return [
        f"{source}->{reader}"
        for source, written in sources(spec, decoys=False)
        for reader, read in readers(spec, decoys=False)
        if stage(source) < stage(reader) and bool((written & read).any())
    ]


def all_edges(n_layers: int, n_heads: int, *, mlp: bool) -> list[str]:
    """Every edge that a model of this shape has, zero components included."""
    nodes = ["embed"]
    ends: list[str] = []
    for i in range(n_layers):
        nodes += [f"L{i}H{h}.z" for h in range(n_heads)] + [f"L{i}.mlp_out"] * mlp
        ends += [f"L{i}H{h}.{w}" for h in range(n_heads) for w in "qkv"] + [f"L{i}.ln2_out"] * mlp
    return [f"{s}->{r}" for s in nodes for r in [*ends, "logits"] if stage(s) < stage(r)]


def assemble(spec: Spec, dtype: torch.dtype | None = None) -> ZooForCausalLM:
    """The module with these weights (float32 unless said otherwise), computed in float64 and rounded once."""
    import torch

    from microtome.zoo.module import ZooConfig, make

    turn = np.eye(spec.d_model) if spec.rotation is None else spec.rotation
    heads = [h for b in spec.blocks for h in b.heads]
    width = max((h.width for h in heads), default=1)
    neurons = max((sum(n.n for n in b.neurons) for b in spec.blocks), default=0)
    config = ZooConfig(
        vocab_size=spec.tokens.shape[0],
        hidden_size=spec.d_model,
        num_hidden_layers=len(spec.blocks),
        num_attention_heads=spec.n_heads,
        head_dim=width,
        intermediate_size=neurons,
        causal=spec.causal,
        learned_positions=spec.positions is not None,
        max_position_embeddings=spec.n_ctx,
        attention_scale=spec.scale,
        attention_bias=any(bool(h.q_bias.any()) for h in heads),
        bos_token_id=0,
    )
    module = make(config, seed=0, dtype=torch.float64)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        _put(module.model.embed_tokens.weight, spec.tokens @ turn)
        if spec.positions is not None:
            _put(module.model.wpe.weight, spec.positions @ turn)
        for layer, block in zip(module.model.layers, spec.blocks, strict=True):
            _fill(layer, block, turn, width)
        _put(module.lm_head.weight, (turn.T @ spec.unembed).T)
    final: Any = module
    out: ZooForCausalLM = final.to(dtype or torch.float32).requires_grad_(False)
    return out


def _fill(layer: Any, block: Block, turn: Array, width: int) -> None:
    for h, head in enumerate(block.heads):
        own = slice(h * width, h * width + head.width)
        for name in ("q", "k", "v"):
            _put(getattr(layer.self_attn, f"{name}_proj").weight, (turn.T @ getattr(head, name)).T, own)
        if layer.self_attn.q_proj.bias is not None:
            _put(layer.self_attn.q_proj.bias, head.q_bias, own)
        _put(layer.self_attn.o_proj.weight, (head.out @ turn).T, (slice(None), own))
    at = 0
    for part in block.neurons:
        own = slice(at, at + part.n)
        _put(layer.mlp.up_proj.weight, (turn.T @ part.into).T, own)
        _put(layer.mlp.up_proj.bias, part.bias, own)
        _put(layer.mlp.down_proj.weight, (part.out @ turn).T, (slice(None), own))
        _add(layer.mlp.down_proj.bias, part.out_bias @ turn)
        at += part.n


def _put(parameter: Any, value: Array, where: Any = slice(None)) -> None:
    import torch

    parameter[where] = torch.from_numpy(np.ascontiguousarray(value)).to(parameter)


def _add(parameter: Any, value: Array) -> None:
    import torch

    parameter += torch.from_numpy(np.ascontiguousarray(value)).to(parameter)
