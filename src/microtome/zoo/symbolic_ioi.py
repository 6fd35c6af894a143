"""Symbolic indirect objects: two names, one of them again, "to": the other name follows. 60 inputs, no MLP, no norm.

Adhikari 2025 (arXiv 2510.25013): one layer with one head fails, with two heads it is right on all of them, one head adding
the names and the other taking the repeated one away. The inputs here are our reading of that paper: six names give the 60
inputs of which its percentages are multiples.
"""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from microtome.zoo.mechanism import Variable
from microtome.zoo.oracle import parts
from microtome.zoo.trained import Asked, Claim, Subject, choose
from microtome.zoo.training import Loss, Measure, Optimiser, Recipe

__all__ = ["SymbolicIOI"]

NAMES = ("Anna", "Ben", "Carl", "Dora", "Emil", "Fay")
WIDTH = 8


class SymbolicIOI(Subject):
    """See the module."""

    name = "symbolic_ioi"
    summary = (
        "names A B A to -> B, by one layer of two heads: one adds names, one takes the repeated one away"
    )
    source = "Adhikari 2025, arXiv 2510.25013"
    words = ("<bos>", *NAMES, "to")
    differs = frozenset({"repeated"})

    def recipe(self, *, seed: int, **options: Any) -> Recipe:
        """Options: n_heads (2), n_layers (1), steps (1000)."""
        o = choose(self.name, options, {"n_heads": 2, "n_layers": 1, "steps": 1000})
        config = {
            "vocab_size": len(self.words),
            "hidden_size": WIDTH,
            "num_hidden_layers": o["n_layers"],
            "num_attention_heads": o["n_heads"],
            "head_dim": WIDTH // o["n_heads"],
            "max_position_embeddings": 5,
            "initializer_range": 0.3,
            "bos_token_id": 0,
        }
        suffix = "" if (o["n_layers"], o["n_heads"]) == (1, 2) else f".{o['n_layers']}l{o['n_heads']}h"
        steps = o["steps"]
        return Recipe(
            self.name + suffix,
            config,
            seed,
            steps,
            target=1.0,
            every=max(1, steps // 40),
            optimiser=Optimiser(lr=2e-2),
            checkpoints=tuple(range(0, steps, max(1, steps // 10))),
        )

    def loss(self, recipe: Recipe) -> Loss:
        """Cross-entropy of the other name on all inputs."""
        ids, answers = domain()
        return lambda module, _: torch.nn.functional.cross_entropy(module(ids).logits[:, -1], answers)

    def measure(self, recipe: Recipe) -> Measure:
        """Accuracy on all inputs."""
        ids, answers = domain()
        return lambda module: {
            "accuracy": float((module(ids).logits[:, -1].argmax(-1) == answers).float().mean())
        }

    def examples(self, recipe: Recipe) -> tuple[Tensor, Tensor]:
        """All 60 inputs."""
        return domain()

    def claim(self, module: Any, recipe: Recipe) -> Claim:
        """Every head writes names to the logits; which one tells them apart is measured."""
        heads = [f"L{i}H{h}" for i in range(module.config.num_hidden_layers) for h in range(module.config.num_attention_heads)]  # fmt: skip
        edges = [f"embed->{head}.{what}" for head in heads for what in "qkv"]
        edges += [f"{head}.z->logits" for head in heads]
        shares = contributions(module)
        contrast = max(heads, key=lambda h: shares[h]["answer"] - shares[h]["repeated"])
        variables = tuple(
            Variable(
                "contrast",
                f"{h}.z",
                "the name that is not repeated, against the one that is",
                "categorical",
                NAMES,
            )
            if h == contrast
            else Variable("both", f"{h}.z", "both names, against all others", "categorical", ())
            for h in heads
        )
        return Claim(("embed", *(f"{h}.z" for h in heads)), tuple(edges), variables)

    def facts(self, module: Any, recipe: Recipe) -> dict[str, float]:
        """What the heads add to the answer's logit over the repeated name's (the two names that both add to cancel out)."""
        shares = contributions(module)
        gaps = sorted((s["answer"] - s["repeated"]) / max(s["answer"], 1e-9) for s in shares.values())
        return {"least_contrast": gaps[0], "most_contrast": gaps[-1]}

    def pair(self, random: np.random.Generator) -> tuple[Asked, Asked]:
        """The same two names, the other one repeated."""
        a, b = (NAMES[int(k)] for k in random.choice(len(NAMES), 2, replace=False))
        sides = [self._asked(a, b, a), self._asked(a, b, b)]
        if random.integers(2):
            sides.reverse()
        return sides[0], sides[1]

    def _asked(self, a: str, b: str, again: str) -> Asked:
        return Asked(
            (a, b, again, "to"), b if again == a else a, {"first": a, "second": b, "repeated": again}
        )


def domain() -> tuple[Tensor, Tensor]:
    """All inputs with BOS and their answers. Shapes: [60, 5], [60]."""
    rows = [(a, b, s) for a, b in permutations(range(1, len(NAMES) + 1), 2) for s in (a, b)]
    ids = torch.tensor([[0, a, b, s, len(NAMES) + 1] for a, b, s in rows])
    return ids, torch.tensor([b if s == a else a for a, b, s in rows])


@torch.no_grad()
def contributions(module: Any) -> dict[str, dict[str, float]]:
    """Per head the mean of what it adds to the logit of the answer and of the repeated name, over that of the other names."""
    ids, answers = domain()
    out = {}
    for source, written in parts(module, ids).items():
        if source == "embed":
            continue
        logits = written[:, -1] @ module.lm_head.weight[1 : len(NAMES) + 1].T
        answer, repeated = (logits.gather(1, (t - 1)[:, None])[:, 0] for t in (answers, ids[:, 3]))
        others = (logits.sum(1) - answer - repeated) / (len(NAMES) - 2)
        means = {"answer": answer - others, "repeated": repeated - others}
        out[source.removesuffix(".z")] = {name: float(v.mean()) for name, v in means.items()}
    return out
