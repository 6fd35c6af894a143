"""Which edges matter, by brute force: a plain forward of a zoo model without norms in which single edges are cut.

Shares nothing with Microtome's graph, trace or replay, so that these can be tested against it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from microtome.errors import ModelError
from microtome.zoo.module import ZooForCausalLM

__all__ = ["changes", "forward", "parts"]


@torch.no_grad()
def forward(
    module: ZooForCausalLM, ids: Tensor, cut: Collection[str] = (), replaced: dict[str, Tensor] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits [prompt, pos, d_vocab] and what every source wrote [prompt, pos, d_model], with edges cut.

    cut: edges "L0H1.z->L1H0.q" whose reader sees the stream without that source. replaced: what the reader sees in place
    of a source ([prompt, pos, d_model], default zeros). The source itself and its other readers stay as they are.

    Raises
    ------
    ModelError: a model with norms (its readers do not see a sum). Prompts have one length.
    """
    config = module.config
    if config.norm != "none":
        raise ModelError("this model has norms", why="an edge is a term of a sum", instead="take one without")
    written = {"embed": module.model.embed_tokens(ids)}
    if config.learned_positions:
        written["embed"] = written["embed"] + module.model.wpe.weight[: ids.shape[1]]

    stream = written["embed"]
    removed: dict[str, list[str]] = {}
    for edge in cut:
        source, reader = edge.split("->")
        removed.setdefault(reader, []).append(source)

    def read(reader: str) -> Tensor:
        seen = stream
        for source in removed.get(reader, ()):
            other = None if replaced is None else replaced.get(source)
            seen = seen - written[source] + (0 if other is None else other)
        return seen

    for i, layer in enumerate(module.model.layers):
        heads = {
            f"L{i}H{h}.z": _head(layer.self_attn, h, [read(f"L{i}H{h}.{w}") for w in "qkv"])
            for h in range(config.num_attention_heads)
        }
        written |= heads
        stream = sum(heads.values(), stream)
        if config.intermediate_size:
            written[f"L{i}.mlp_out"] = layer.mlp(read(f"L{i}.ln2_out"))
            stream = stream + written[f"L{i}.mlp_out"]
    return read("logits") @ module.lm_head.weight.T, written


def _head(attention: Any, h: int, seen: Sequence[Tensor]) -> Tensor:
    """What one head writes. Shapes: seen, three times [prompt, pos, d_model] -> [prompt, pos, d_model]."""
    width = attention.head_dim
    own = slice(h * width, (h + 1) * width)
    q, k, v = (
        torch.nn.functional.linear(x, p.weight[own], None if p.bias is None else p.bias[own])
        for x, p in zip(seen, (attention.q_proj, attention.k_proj, attention.v_proj), strict=True)
    )
    scores = torch.einsum("bqd,bkd->bqk", q, k) * attention.scaling
    if attention.is_causal:
        hidden = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    mixed: Tensor = scores.softmax(-1) @ v @ attention.o_proj.weight[:, own].T
    return mixed


def parts(module: ZooForCausalLM, ids: Tensor) -> dict[str, Tensor]:
    """What every source writes. Shapes: [prompt, pos, d_model]."""
    return forward(module, ids)[1]


def changes(
    module: ZooForCausalLM,
    ids: Tensor,
    edges: Sequence[str],
    *,
    donors: Tensor | None = None,
    average: bool = False,
    batch: int = 1024,
) -> dict[str, tuple[float, float]]:
    """Per edge the largest change of any logit when it alone is patched: (anywhere after BOS, at the last position).

    A patched edge carries zero, or what its source writes on `donors` ([prompt, pos]): row for row, or its average over
    them at each position. In float64 whatever the module's dtype, so that what is found is not rounding.

    Raises
    ------
    ModelError: a model with norms, or an average without donors.
    """
    import copy

    if average and donors is None:
        raise ModelError("there is nothing to average over", instead="give donors")
    twin = copy.deepcopy(module).double()
    out = dict.fromkeys(edges, (0.0, 0.0))
    for start in range(0, len(ids), batch):
        rows = ids[start : start + batch]
        base = forward(twin, rows)[0]
        other = None if donors is None or average else parts(twin, donors[start : start + batch])
        if average and donors is not None:
            other = {source: out.mean(0, keepdim=True) for source, out in parts(twin, donors).items()}
        for edge in edges:
            moved = (forward(twin, rows, (edge,), other)[0] - base).abs().amax((0, 2))
            far, last = out[edge]
            out[edge] = max(far, float(moved[1:].max())), max(last, float(moved[-1]))
    return out
