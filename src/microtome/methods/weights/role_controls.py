"""Controls of `head_roles`: the weights are those that the model uses, and random ones predict nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from microtome.methods.weights.behave import Behaviour
from microtome.methods.weights.heads import HeadCircuits
from microtome.methods.weights.predict import predictions
from microtome.results import seeds
from microtome.results.verdicts import Control

__all__ = ["RandomHeads", "natural_text", "random_weights", "same_weights"]

RANDOM_LEVEL = 0.001
DRAWS = 19


class RandomHeads(HeadCircuits):
    """The same model with every head's weights drawn at random, at the norms that they have; embeddings are kept."""

    def __init__(self, heads: HeadCircuits, seed: int) -> None:
        super().__init__(heads.model, heads.fold)
        self._generator = torch.Generator().manual_seed(seeds.child(seed, "random heads"))
        # grouped heads stay grouped: one draw per layer in a fixed order
        self._drawn = {i: self._draw(heads, i) for i in heads.layers}

    def _draw(self, heads: HeadCircuits, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        step = heads._repeat(layer)
        q, k, v, o = heads.W_Q(layer), heads.W_K(layer)[::step], heads.W_V(layer)[::step], heads.W_O(layer)
        q, k, v, o = (self._like(w) for w in (q, k, v, o))
        return q, k.repeat_interleave(step, 0), v.repeat_interleave(step, 0), o

    def _like(self, weight: Tensor) -> Tensor:
        noise = torch.randn(weight.shape, generator=self._generator, dtype=torch.float64)
        size = weight.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
        return noise * size[:, None, None]

    def _qk_of(self, layer: int) -> tuple[Tensor, Tensor]:
        return self._drawn[layer][:2]

    def _vo_of(self, layer: int) -> tuple[Tensor, Tensor]:
        return self._drawn[layer][2:]


def same_weights(c: HeadCircuits, seed: int) -> Control:
    """What the weights say is what the model computes: projections and outputs of every layer, and the first layer's attention."""
    facts, w = c.model.facts, c.model.weights
    length = min(12, facts.n_ctx or 12)
    ids = torch.randint(
        0, facts.d_vocab, (2, length), generator=torch.Generator().manual_seed(seeds.child(seed, "tokens"))
    )
    off: dict[str, float] = {}
    for i in c.layers:
        plain = not c.model.binding.slots[i].block.qk_norm
        wanted = {
            "v": (w.W_V, w.b_V),
            **({"q_pre": (w.W_Q, w.b_Q), "k_pre": (w.W_K, w.b_K)} if plain else {}),
        }
        points = [p for p in ("ln1_out", "z", "attn_raw", *wanted) if p not in facts.layers[i].lacks]
        trace = c.model.run(ids.tolist(), [f"L{i}.{p}" for p in points], logits=None)
        seen = {p: trace[f"L{i}.{p}"].detach().double().cpu() for p in points}
        for point, (weight, bias) in wanted.items():
            if point in seen and "ln1_out" in seen:
                made = torch.einsum("bpm,hmd->bphd", seen["ln1_out"], weight(i).detach().double().cpu())
                extra = bias(i)
                off[f"L{i}.{point}"] = _gap(
                    made if extra is None else made + extra.detach().double().cpu(), seen[point]
                )
        if {"z", "attn_raw"} <= set(seen):
            made = torch.einsum("bphd,hdm->bpm", seen["z"], w.W_O(i).detach().double().cpu())
            extra = w.b_O(i)
            off[f"L{i}.attn_raw"] = _gap(
                made if extra is None else made + extra.detach().double().cpu(), seen["attn_raw"]
            )
    if 0 in c.layers and "pattern" not in facts.layers[0].lacks:
        pattern = c.model.run(ids.tolist(), "L0.pattern", logits=None)["L0.pattern"].detach().double().cpu()
        off["L0.pattern"] = _gap(c.bare_pattern(0, ids), pattern)
    worst = max(off, key=lambda k: off[k])
    half = next(c.model.hf.parameters()).dtype in (torch.float16, torch.bfloat16)
    limit = 5e-2 if half else 1e-3
    return Control("same_weights", "that other weights, heads or positions are read than the model uses",
                   f"queries, keys, values and outputs of every layer and the first layer's attention, from the weights, within {limit:g} of the model's",
                   {"largest": off[worst], "at": worst}, off[worst] <= limit, len(off), gates=True)  # fmt: skip


def _gap(made: Tensor, seen: Tensor) -> float:
    """Largest distance over the largest value."""
    return float((made - seen.reshape(made.shape)).abs().max() / seen.abs().max().clamp_min(1e-12))


def random_weights(c: HeadCircuits, seen: Mapping[str, Behaviour], seed: int) -> Control:
    """Predictions from random weights must not agree with what the heads do."""
    from microtome.methods.weights.roles import rank_test

    third = [3 * layer // max(c.model.facts.n_layers, 1) for layer, _ in c.heads]
    observed: dict[str, float] = {}
    for one in predictions(RandomHeads(c, seed), seed, DRAWS):
        rho, p, _ = rank_test(one.score, seen[one.role].score, third, seeds.child(seed, f"random {one.role}"))
        observed |= {f"spearman {one.role}": rho, f"p {one.role}": p}
    least = min(v for k, v in observed.items() if k.startswith("p "))
    return Control("random_weights", "that the prediction follows from where a head stands, not from its weights",
                   f"predictions from random weights of the same norms agree with no role (each p above {RANDOM_LEVEL:g})",
                   observed, least > RANDOM_LEVEL, len(c.heads))  # fmt: skip


def natural_text(agreement: Sequence[Mapping[str, object]]) -> Control:
    """The agreement holds on natural text too."""
    rules_out, expected = (
        "that the prediction holds on repeated random tokens only",
        "where weights predict what heads do on repeated tokens (p at most 0.01), they do on natural text",
    )
    by = {(a["role"], a["text"]): float(a["p"]) for a in agreement}  # type: ignore[arg-type]
    if not any(text == "natural" for _, text in by):
        return Control.not_run("natural_text", rules_out, expected, "no texts were given")
    held = {
        str(role): by[role, "natural"] for role, text in by if text == "repeated" and by[role, text] <= 0.01
    }
    if not held:
        return Control.not_run(
            "natural_text", rules_out, expected, "nothing was predicted on repeated tokens"
        )
    return Control(
        "natural_text",
        rules_out,
        expected,
        {f"p {k}": v for k, v in held.items()},
        all(v <= 0.01 for v in held.values()),
        len(held),
    )
