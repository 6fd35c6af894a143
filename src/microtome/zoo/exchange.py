"""A plain forward of a zoo model without norms that takes nodes or single edges from other runs, row by row, with gradients.

What `oracle.py` does for one edge in all rows is done here for another one in each row, so that a batch can train all of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from microtome.errors import ModelError
from microtome.zoo.spec import all_edges

__all__ = ["Places", "run"]


class Places:
    """The order in which `run` counts sources and readers of a model of this shape (with MLPs)."""

    def __init__(self, n_layers: int, n_heads: int) -> None:
        self.edges = tuple(all_edges(n_layers, n_heads, mlp=True))
        self.sources = tuple(dict.fromkeys(e.split("->")[0] for e in self.edges))
        layers = range(n_layers)
        self.readers = tuple(
            r
            for i in layers
            for r in (*(f"L{i}H{h}.{w}" for w in "qkv" for h in range(n_heads)), f"L{i}.ln2_out")
        ) + ("logits",)

    def edge(self, edge: str) -> tuple[int, int]:
        """(source, reader) of an edge by its address."""
        source, reader = edge.split("->")
        return self.sources.index(source), self.readers.index(reader)


def run(
    module: Any,
    ids: Tensor,
    other: Tensor | None = None,
    nodes: Tensor | None = None,
    edges: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits [row, pos, d_vocab], and what every source writes [source, row, pos, d_model], in the order of `Places`.

    other: [source, row, pos, d_model], what is taken instead. nodes: [row, source] (bool), sources that are taken as a whole.
    edges: [row, 2], source and reader of the one edge that carries `other` in this row, -1 for none.

    Raises
    ------
    ModelError: a model with norms or without MLPs.
    """
    config = module.config
    if config.norm != "none" or not config.intermediate_size:
        raise ModelError(
            "edges of this model cannot be exchanged row by row",
            why="it has norms, or no MLPs",
            instead="take a model of zoo.interchange",
        )
    heads, width = config.num_attention_heads, config.head_dim
    written: list[Tensor] = []

    def write(own: Tensor) -> Tensor:
        if nodes is not None and other is not None:
            k = len(written)
            own = torch.where(nodes[:, k, None, None], other[k], own)
        written.append(own)
        return own

    def change() -> Tensor | None:
        """What the patched edge of each row adds to what its reader sees. [row, pos, d_model]."""
        if edges is None or other is None:
            return None
        rows = torch.arange(len(ids), device=ids.device)
        source = edges[:, 0].clamp(0, len(written) - 1)
        found = other[source, rows] - torch.stack(written)[source, rows]
        return found * (edges[:, 0] == source)[:, None, None]

    stream = write(module.model.embed_tokens(ids) + module.model.wpe.weight[: ids.shape[1]])
    first = 0  # reader that comes next
    for layer in module.model.layers:
        attention, more = layer.self_attn, change()
        seen = []
        for project in (attention.q_proj, attention.k_proj, attention.v_proj):
            x = project(stream).view(*ids.shape, heads, width)
            if more is not None and edges is not None:
                own = edges[:, 1, None] == first + torch.arange(heads, device=ids.device)
                x = x + project(more).view(x.shape) * own[:, None, :, None]
            seen.append(x)
            first += heads
        scores = torch.einsum("rqhd,rkhd->rhqk", seen[0], seen[1]) * attention.scaling
        if config.causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=ids.device).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        z = torch.einsum("rhqk,rkhd->rqhd", scores.softmax(-1), seen[2])
        out = attention.o_proj.weight.view(-1, heads, width)
        stream = stream + sum(write(z[:, :, h] @ out[:, h].T) for h in range(heads))
        stream = stream + write(layer.mlp(stream + _at(change(), edges, first)))
        first += 1
    return module.lm_head(stream + _at(change(), edges, first)), torch.stack(written)


def _at(more: Tensor | None, edges: Tensor | None, reader: int) -> Tensor | float:
    if more is None or edges is None:
        return 0.0
    return more * (edges[:, 1] == reader)[:, None, None]
