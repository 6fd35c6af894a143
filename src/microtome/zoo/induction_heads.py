"""Induction: random tokens that repeat with a period of each prompt's own, so that only what was seen can tell what follows.

Elhage et al. 2021 (A mathematical framework for transformer circuits), Olsson et al. 2022 (arXiv 2209.11895): two layers of
attention learn it abruptly, by a head that attends to the previous token and one that attends to what followed the token's
earlier occurrence; one layer never does. The period varies because a fixed one could be learned as a distance, by one layer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from microtome.zoo.mechanism import Variable
from microtome.zoo.trained import Asked, Claim, Subject, choose
from microtome.zoo.training import Loss, Measure, Optimiser, Recipe

__all__ = ["InductionHeads", "head_scores", "sample"]

TOKENS = 32
LENGTH = 24
PERIODS = (4, 12)
BATCH = 64
PAIR_LENGTH = 16
THRESHOLD = 0.4
"""Mean attention from which a head counts as one that does something (the exercises of ARENA use this value)."""


class InductionHeads(Subject):
    """See the module."""

    name = "induction_heads"
    summary = (
        "repeated random tokens: a previous-token head and an induction head, by two layers of attention"
    )
    source = "Olsson et al. 2022, arXiv 2209.11895"
    words = ("<bos>", *(f"t{i}" for i in range(TOKENS)))
    differs = frozenset({"asked", "answer", "place"})
    keep = (0, 50, 100, 150, 200, 250, 300, 400, 600, 1000)

    def recipe(self, *, seed: int, **options: Any) -> Recipe:
        """Options: n_layers (2), n_heads (1), steps (1500)."""
        o = choose(self.name, options, {"n_layers": 2, "n_heads": 1, "steps": 1500})
        config = {
            "vocab_size": len(self.words),
            "hidden_size": 64,
            "num_hidden_layers": o["n_layers"],
            "num_attention_heads": o["n_heads"],
            "head_dim": 32,
            "max_position_embeddings": LENGTH + 1,
            "initializer_range": 0.05,
            "bos_token_id": 0,
        }
        suffix = "" if o["n_layers"] == 2 else f".{o['n_layers']}l"
        steps = o["steps"]
        return Recipe(
            self.name + suffix,
            config,
            seed,
            steps,
            target=0.99,
            batch=BATCH,
            every=max(1, steps // 60),
            optimiser=Optimiser(lr=3e-3, weight_decay=0.01, warmup=50, schedule="linear"),
            checkpoints=tuple(range(0, steps, max(1, steps // 30))),
        )

    def loss(self, recipe: Recipe) -> Loss:
        """Cross-entropy where what follows has been seen."""

        def loss(module: Any, generator: torch.Generator) -> Tensor:
            ids, seen = sample(recipe.batch, generator)
            logits = module(ids[:, :-1]).logits
            return torch.nn.functional.cross_entropy(logits[seen], ids[:, 1:][seen])

        return loss

    def measure(self, recipe: Recipe) -> Measure:
        """Accuracy and loss where what follows has been seen, and head scores, on 256 prompts."""
        ids, seen = sample(256, torch.Generator().manual_seed(recipe.seed_of("test")))

        def measure(module: Any) -> dict[str, float]:
            logits = module(ids[:, :-1]).logits[seen]
            answers = ids[:, 1:][seen]
            loss = torch.nn.functional.cross_entropy(logits, answers)
            return {
                "accuracy": float((logits.argmax(-1) == answers).float().mean()),
                "test_loss": float(loss),
            }

        return measure

    def examples(self, recipe: Recipe) -> tuple[Tensor, Tensor]:
        """512 prompts, asked at their last position."""
        ids, _ = sample(512, torch.Generator().manual_seed(recipe.seed_of("examples")))
        return ids[:, :-1], ids[:, -1]

    def claim(self, module: Any, recipe: Recipe) -> Claim:
        """Previous-token heads of layer 0 and induction heads of layer 1, by their scores; the best one where none is clear."""
        scores = head_scores(module, recipe.seed_of("heads"))
        before = _chosen({h: s["previous"] for h, s in scores.items() if h.startswith("L0")})
        finds = _chosen({h: s["prefix"] for h, s in scores.items() if h.startswith("L1")})
        edges = [f"embed->{b}.{what}" for b in before for what in "qkv"]
        edges += [f"{b}.z->{f}.k" for b in before for f in finds]
        edges += [f"embed->{f}.{what}" for f in finds for what in "qv"]
        edges += [f"{f}.z->logits" for f in finds]
        variables = [Variable("previous", f"{b}.z", "the token before this one", "categorical", self.words[1:]) for b in before]  # fmt: skip
        variables += [Variable("after", f"{f}.z", "what followed the earlier occurrence of this token", "categorical", self.words[1:]) for f in finds]  # fmt: skip
        return Claim(("embed", *(f"{h}.z" for h in (*before, *finds))), tuple(edges), tuple(variables))

    def facts(self, module: Any, recipe: Recipe) -> dict[str, float]:
        """The best previous-token and prefix-matching scores."""
        scores = head_scores(module, recipe.seed_of("heads"))
        return {
            "previous": max(s["previous"] for h, s in scores.items() if h.startswith("L0")),
            "prefix": max(s["prefix"] for s in scores.values()),
        }

    def pair(self, random: np.random.Generator) -> tuple[Asked, Asked]:
        """The same tokens, asked for what followed two different ones of them."""
        period = int(random.integers(PAIR_LENGTH // 2 + 1, PERIODS[1] + 1))
        base = [f"t{i}" for i in random.choice(TOKENS, period, replace=False)]
        place = PAIR_LENGTH - period - 1
        other = int(random.choice([k for k in range(period - 1) if k != place]))
        sides = [asked(base, place), asked(base, other)]
        return sides[0], sides[1]

    def alike(self, asked_: Asked, random: np.random.Generator) -> Asked:
        """Other tokens around the one asked for and the one that followed it."""
        period, place = int(asked_.variables["period"]), int(asked_.variables["place"])
        kept = [asked_.variables["asked"], asked_.variables["answer"]]
        free = [f"t{i}" for i in random.permutation(TOKENS) if f"t{i}" not in kept]
        base = free[:period]
        base[place : place + 2] = kept
        return asked(base, place)

    def other(self, clean: Asked, corrupt: Asked, random: np.random.Generator) -> Asked:
        """The same tokens, asked for a third."""
        period = int(clean.variables["period"])
        taken = [int(side.variables["place"]) for side in (clean, corrupt)]
        place = int(random.choice([k for k in range(period - 1) if k not in taken]))
        return asked(list(clean.words[:period]), place)


def asked(base: list[str], place: int) -> Asked:
    """Tokens that repeat up to the length of a pair's prompts, the last one replaced by base[place]."""
    period = len(base)
    words = [*base, *base[: PAIR_LENGTH - period - 1], base[place]]
    variables = {"asked": base[place], "answer": base[place + 1], "place": str(place), "period": str(period)}
    return Asked(tuple(words), base[place + 1], variables)


def sample(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Prompts with BOS, and where the next token has been seen to follow.

    Shapes: ids [n, LENGTH + 2]; seen [n, LENGTH + 1] (true at position p if token p + 1 can be told from those up to p).
    """
    bases = torch.rand(n, TOKENS, generator=generator).argsort(-1) + 1
    periods = torch.randint(PERIODS[0], PERIODS[1] + 1, (n, 1), generator=generator)
    place = torch.arange(LENGTH + 1).expand(n, -1)
    ids = torch.cat([torch.zeros(n, 1, dtype=torch.long), bases.gather(1, place % periods)], 1)
    return ids, torch.arange(LENGTH + 1)[None] > periods


def head_scores(module: Any, seed: int, n: int = 128) -> dict[str, dict[str, float]]:
    """Per head mean attention, where what follows has been seen: "previous", to the token before; "prefix", to the token
    after an earlier occurrence (Olsson et al. 2022, prefix matching).
    """
    ids, seen = sample(n, torch.Generator().manual_seed(seed))
    patterns = attention(module, ids[:, :-1])
    at = torch.arange(LENGTH + 1)
    follows = torch.zeros(n, LENGTH + 1, LENGTH + 1)
    for row, tokens in enumerate(ids[:, :-1].tolist()):
        for p, token in enumerate(tokens):
            for earlier in (k for k in range(p) if tokens[k] == token):
                follows[row, p, earlier + 1] = 1
    out = {}
    for head, pattern in patterns.items():
        before = pattern[:, at[1:], at[:-1]][seen[:, 1:]]
        match = (pattern * follows).sum(-1)[seen]
        out[head] = {"previous": float(before.mean()), "prefix": float(match.mean())}
    return out


@torch.no_grad()
def attention(module: Any, ids: Tensor) -> dict[str, Tensor]:
    """Every head's pattern in a causal model without norms. Shapes: ids [n, pos] -> [n, pos, pos]."""
    from microtome.zoo.oracle import parts

    written, config = parts(module, ids), module.config
    stream: Tensor = written["embed"]
    out: dict[str, Tensor] = {}
    hidden = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
    for i, layer in enumerate(module.model.layers):
        shape = (*stream.shape[:-1], config.num_attention_heads, config.head_dim)
        q, k = (p(stream).view(shape) for p in (layer.self_attn.q_proj, layer.self_attn.k_proj))
        scores = torch.einsum("bqhd,bkhd->hbqk", q, k) * layer.self_attn.scaling
        patterns = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        out |= {f"L{i}H{h}": pattern for h, pattern in enumerate(patterns)}
        stream = sum((written[n] for n in written if n.startswith(f"L{i}")), stream)
    return out


def _chosen(scores: dict[str, float]) -> list[str]:
    """Heads above the threshold, else the best one (none where there are no heads)."""
    clear = [h for h, s in scores.items() if s > THRESHOLD]
    return clear or sorted(scores, key=lambda h: -scores[h])[:1]
