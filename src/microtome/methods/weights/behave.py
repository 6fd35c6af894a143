"""What heads do: attention detectors, copying and losses without a head, on repeated random tokens and on natural text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from microtome.methods import patterns
from microtome.results import seeds
from microtome.results.technique import progress
from microtome.sites import parse
from microtome.trace.edits import Patch

if TYPE_CHECKING:
    from microtome.facade import Model
    from microtome.methods.weights.heads import HeadCircuits

__all__ = ["Behaviour", "copied", "losses", "measured", "repeated_at", "without"]

Ids = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Behaviour:
    """Shapes: score, null [head] for one role on one kind of text; null: the largest of 20 shuffles."""

    score: np.ndarray
    null: np.ndarray


def measured(c: HeadCircuits, prompts: Ids, seed: int) -> dict[str, Behaviour]:
    """The three roles' behaviour of every head: mean attention to the previous token and to what followed an earlier copy of
    the token, and `copied`.
    """
    found = patterns._scores(c.model, list(c.layers), [list(p) for p in prompts], seed)
    place = [(c.layers.index(layer), head) for layer, head in c.heads]
    out = {}
    for role in ("previous", "induction"):
        which = patterns.DETECTORS.index(role)
        at = tuple(np.array([(a, b, which) for a, b in place]).T)
        out[role] = Behaviour(found.score[at], found.null[at])
    out["copying"] = copied(c, prompts, seed)
    return out


def copied(c: HeadCircuits, prompts: Ids, seed: int) -> Behaviour:
    """How high a head lifts the token that it attends to most, among the tokens of the prompt: 1 the highest, 0 the middle.

    Read from the head's output through the final norm's gain and W_U, at queries whose largest attention (the first token
    left out) is 0.1 or more, weighted by it. Null: tokens of the prompt in random order, the largest of 20. Shapes: [head].
    """
    generator = torch.Generator().manual_seed(seeds.child(seed, "order of tokens"))
    total, weight = torch.zeros(len(c.heads)), torch.zeros(len(c.heads))
    null = torch.zeros(patterns.NULLS, len(c.heads))
    for start in range(0, len(prompts), patterns.BATCH):
        batch = [list(p) for p in prompts[start : start + patterns.BATCH]]
        trace = c.model.run(batch, [f"L{i}.{p}" for i in c.layers for p in ("z", "pattern")], logits=None)
        for row, ids in enumerate(batch):
            kinds, own = torch.tensor(ids).unique(return_inverse=True)
            columns = c.W_U[:, kinds].float()
            orders = [torch.randperm(len(kinds), generator=generator) for _ in range(patterns.NULLS)]
            at = 0
            for i in c.layers:
                pattern = trace[f"L{i}.pattern"][row, :, : len(ids), : len(ids)].float().cpu()
                z = trace[f"L{i}.z"][row, : len(ids)].float().cpu()
                lift = torch.einsum("phd,hdm,mt->hpt", z, c.W_O(i).float(), columns)
                most = pattern[:, 2:, 1:].max(-1)
                rank = lift[:, 2:].argsort(-1).argsort(-1).float() / max(len(kinds) - 1, 1) * 2 - 1
                share = most.values * (most.values >= 0.1)
                here = slice(at, at + len(pattern))
                attended = own[most.indices + 1]
                total[here] += (rank.gather(-1, attended[..., None])[..., 0] * share).sum(-1)
                weight[here] += share.sum(-1)
                for n, order in enumerate(orders):
                    null[n, here] += (rank.gather(-1, order[attended][..., None])[..., 0] * share).sum(-1)
                at += len(pattern)
    scale = weight.clamp_min(1e-9)
    return Behaviour((total / scale).double().numpy(), (null / scale).amax(0).double().numpy())


def repeated_at(ids: Sequence[int]) -> np.ndarray:
    """Where induction can tell the next token: it is what followed the last earlier copy of this one. Shapes: [pos - 1] bool."""
    last: dict[int, int] = {}
    out = []
    for place, (token, following) in enumerate(zip(ids[:-1], ids[1:], strict=True)):
        out.append(token in last and ids[last[token] + 1] == following)
        last[token] = place
    return np.array(out, dtype=bool)


def losses(model: Model, prompts: Ids, values: Mapping[str, Tensor] | None = None) -> list[np.ndarray]:
    """Per prompt, -log p of every next token, in nats; values: site -> [pos, d] to put there in every prompt.

    Shapes: [prompt] of [pos - 1].
    """
    out = []
    for start in range(0, len(prompts), patterns.BATCH):
        batch = [list(p) for p in prompts[start : start + patterns.BATCH]]
        edits = [
            Patch(site, value.expand(len(batch), *value.shape)) for site, value in (values or {}).items()
        ]
        logits = model.run(batch, edits=edits).logits
        for row, ids in enumerate(batch):
            out.append(_nll(logits[row, : len(ids)], ids))
    return out


def _nll(logits: Tensor, ids: Sequence[int]) -> np.ndarray:
    following = torch.tensor(ids[1:], device=logits.device)
    found = torch.nn.functional.cross_entropy(logits[:-1].float(), following, reduction="none")
    return found.double().cpu().numpy()


def without(
    model: Model, sets: Sequence[Sequence[str]], prompts: Ids, reference: Ids
) -> tuple[np.ndarray, np.ndarray]:
    """How much the loss rises without each set of heads (mean ablation over the reference), per prompt in nats.

    Prompts and reference prompts have one length. Shapes: [set, prompt] where induction can tell the next token, and
    [set, prompt] elsewhere; NaN where a prompt has no such place.
    """
    whole = losses(model, prompts)
    inside = [repeated_at(ids) for ids in prompts]
    there, elsewhere = np.full((2, len(sets), len(prompts)), np.nan)
    means = _means(model, sorted({parse(f"{name}.z").layer for names in sets for name in names}), reference)
    for k, names in enumerate(sets):
        values = {f"{name}.z": _own(means, name) for name in names}
        new_losses = losses(model, prompts, values)
        for i, (old, new) in enumerate(zip(whole, new_losses, strict=True)):
            rise = new - old
            if inside[i].any():
                there[k, i] = rise[inside[i]].mean()
            if not inside[i].all():
                elsewhere[k, i] = rise[~inside[i]].mean()
        progress(k + 1, len(sets), "sets of heads", "ablating")
    return there, elsewhere


def _own(means: Mapping[Any, Tensor], name: str) -> Tensor:
    site = parse(f"{name}.z")
    assert isinstance(site.index, int)
    return means[site.layer][:, site.index]


def _means(model: Model, layers: Sequence[Any], reference: Ids) -> dict[Any, Tensor]:
    """Mean z over the reference prompts, position by position. Shapes: layer -> [pos, head, d_head]."""
    total: dict[Any, Tensor] = {}
    for trace in model.stream(
        [list(r) for r in reference], [f"L{i}.z" for i in layers], batch=patterns.BATCH
    ):
        for i in layers:
            found = trace[f"L{i}.z"].sum(0)
            total[i] = found if i not in total else total[i] + found
    return {i: value / len(reference) for i, value in total.items()}
