"""The largest of k numbers, at the last of them: one layer of one head, which attends to large numbers and copies.

Gross et al. 2024 (arXiv 2406.11779) prove bounds on such models, whose domain is small enough to be tried whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from microtome.zoo.mechanism import Variable
from microtome.zoo.trained import EXAMPLES, Asked, Claim, Subject, choose
from microtome.zoo.training import Loss, Measure, Optimiser, Recipe

__all__ = ["MaxOfK", "exact_accuracy"]

K, VALUES = 4, 64


class MaxOfK(Subject):
    """See the module."""

    name = "max_of_k"
    summary = f"the largest of {K} numbers below {VALUES}, by one head that attends to large ones and copies"
    source = "Gross et al. 2024, arXiv 2406.11779"
    words = tuple(map(str, range(VALUES)))
    bos = False
    differs = frozenset({"max"})

    def recipe(self, *, seed: int, **options: Any) -> Recipe:
        """Options: steps (5000)."""
        o = choose(self.name, options, {"steps": 5000})
        config = {
            "vocab_size": VALUES,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "head_dim": 32,
            "max_position_embeddings": K,
            "initializer_range": 32**-0.5,
        }
        return Recipe(
            self.name,
            config,
            seed,
            o["steps"],
            target=0.99,
            batch=256,
            every=max(1, o["steps"] // 40),
            optimiser=Optimiser(lr=5e-3, betas=(0.9, 0.99), warmup=20, schedule="cosine"),
            checkpoints=tuple(range(0, o["steps"], max(1, o["steps"] // 10))),
        )

    def loss(self, recipe: Recipe) -> Loss:
        """Cross-entropy of the largest at the last position."""

        def loss(module: Any, generator: torch.Generator) -> Tensor:
            ids = torch.randint(0, VALUES, (recipe.batch, K), generator=generator)
            # every other prompt from a narrow range, so that neighbours are told apart
            low = torch.randint(0, VALUES - 7, (recipe.batch // 2, 1), generator=generator)
            ids[: recipe.batch // 2] = low + ids[: recipe.batch // 2] % 8
            return torch.nn.functional.cross_entropy(module(ids).logits[:, -1], ids.amax(1))

        return loss

    def measure(self, recipe: Recipe) -> Measure:
        """Accuracy on 8192 random prompts."""
        ids, answers = self._some(recipe, "test", 8192)
        return lambda module: {"accuracy": float((module(ids).logits[:, -1].argmax(-1) == answers).float().mean())}  # fmt: skip

    def examples(self, recipe: Recipe) -> tuple[Tensor, Tensor]:
        """Random prompts."""
        return self._some(recipe, "examples", EXAMPLES)

    def _some(self, recipe: Recipe, what: str, n: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(recipe.seed_of(what))
        ids = torch.randint(0, VALUES, (n, K), generator=generator)
        return ids, ids.amax(1)

    def claim(self, module: Any, recipe: Recipe) -> Claim:
        """The head reads every number and writes the largest."""
        edges = ("embed->L0H0.q", "embed->L0H0.k", "embed->L0H0.v", "L0H0.z->logits")
        largest = Variable("max", "L0H0.z", "the largest number", "categorical", self.words)
        return Claim(("embed", "L0H0.z"), edges, (largest,))

    def facts(self, module: Any, recipe: Recipe) -> dict[str, float]:
        """Accuracy on all inputs; how often the head attends most to a largest number."""
        from microtome.zoo.induction_heads import attention

        ids, answers = self._some(recipe, "examples", EXAMPLES)
        most = attention(module, ids)["L0H0"][:, -1].argmax(-1)
        there = float((ids.gather(1, most[:, None])[:, 0] == answers).float().mean())
        return {"exact_accuracy": exact_accuracy(module), "attends_to_max": there}

    def pair(self, random: np.random.Generator) -> tuple[Asked, Asked]:
        """One number is replaced so that the largest is another."""
        while True:
            clean = random.integers(0, VALUES, K)
            corrupt = clean.copy()
            corrupt[int(random.integers(K))] = random.integers(0, VALUES)
            if clean.max() != corrupt.max():
                return _asked(clean), _asked(corrupt)


def _asked(numbers: Any) -> Asked:
    largest = str(numbers.max())
    return Asked(tuple(map(str, numbers)), largest, {"max": largest})


@torch.no_grad()
def exact_accuracy(module: Any) -> float:
    """Accuracy on all VALUES ** K inputs, by the sums that one head is made of: exponentials and what each number writes.

    For one query (the last number) the logits are sum_p e_p w_p / sum_p e_p, and those of the first numbers are tabulated.
    """
    c = module.config
    attention, stream = module.model.layers[0].self_attn, module.model.embed_tokens.weight.double()
    positions, head = module.model.wpe.weight.double(), module.lm_head.weight.double()
    q, k, v, o = (getattr(attention, f"{n}_proj").weight.double() for n in "qkvo")
    x = stream[None] + positions[:, None]  # [position, number, d_model]
    values = x @ v.T @ o.T @ head.T  # [position, number, logit]
    right = 0
    largest = torch.arange(c.vocab_size)
    for last in range(c.vocab_size):
        query = x[K - 1, last] @ q.T
        weight = ((x @ k.T @ query) * attention.scaling).exp()
        direct = x[K - 1, last] @ head.T
        parts = weight[..., None] * values
        both = (parts[1][:, None] + parts[2][None]).flatten(0, 1)  # [number * number, logit]
        total = (weight[1][:, None] + weight[2][None]).flatten()
        inner = torch.maximum(largest[:, None], largest[None]).flatten().clamp(min=last)
        for first in range(c.vocab_size):
            sums = both + parts[0, first] + parts[K - 1, last]
            norm = total + weight[0, first] + weight[K - 1, last]
            said = (sums / norm[:, None] + direct).argmax(-1)
            right += int((said == inner.clamp(min=first)).sum())
    return right / c.vocab_size**K
