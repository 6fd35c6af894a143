"""Balanced brackets: "yes" or "no" at the last token, by a small bidirectional model.

After the exercises of ARENA (1.5.1, transformer interpretability on brackets): a word is unbalanced when as a whole it does
not close what it opens ("count"), or when at some point more is closed than was opened ("below"). The published network (three
layers of two heads, with norms) finds the two in different heads of its last layer. This one has two layers of one head, and
no norms, so that its graph is a sum; one head has to find both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from microtome.zoo.mechanism import Variable
from microtome.zoo.trained import EXAMPLES, Asked, Claim, Subject, choose
from microtome.zoo.training import Loss, Measure, Optimiser, Recipe

__all__ = ["BalancedBrackets", "faults"]

LENGTHS = tuple(range(2, 17, 2))
BOS, OPEN, CLOSE, END, YES, NO = range(6)
KINDS = ("balanced", "count", "below", "both")


class BalancedBrackets(Subject):
    """See the module."""

    name = "balanced_brackets"
    summary = "whether brackets are balanced: two conditions, found by attention in both directions"
    source = "ARENA 1.5.1; after Langland 2023"
    words = ("<bos>", "(", ")", "?", "yes", "no")
    differs = frozenset({"balanced"})

    def recipe(self, *, seed: int, **options: Any) -> Recipe:
        """Options: steps (3000)."""
        o = choose(self.name, options, {"steps": 3000})
        config = {
            "vocab_size": len(self.words),
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 1,
            "head_dim": 16,
            "intermediate_size": 32,
            "causal": False,
            "max_position_embeddings": LENGTHS[-1] + 2,
            "initializer_range": 0.1,
            "bos_token_id": BOS,
        }
        return Recipe(
            self.name,
            config,
            seed,
            o["steps"],
            target=0.99,
            batch=96,
            every=max(1, o["steps"] // 40),
            optimiser=Optimiser(lr=5e-3, weight_decay=0.1, warmup=100, schedule="cosine", clip=1.0),
            checkpoints=tuple(range(0, o["steps"], max(1, o["steps"] // 10))),
        )

    def loss(self, recipe: Recipe) -> Loss:
        """Cross-entropy of "yes" and "no" among all tokens, on words of one length."""

        def loss(module: Any, generator: torch.Generator) -> Tensor:
            length = LENGTHS[int(torch.randint(0, len(LENGTHS), (1,), generator=generator))]
            ids = sample(recipe.batch, length, generator)
            return torch.nn.functional.cross_entropy(module(ids).logits[:, -1], told(ids))

        return loss

    def measure(self, recipe: Recipe) -> Measure:
        """Accuracy on 256 words of each length, and on each kind of fault."""
        generator = torch.Generator().manual_seed(recipe.seed_of("test"))
        words = [sample(256, length, generator) for length in LENGTHS]
        kinds = torch.cat([faults(ids) for ids in words])

        def measure(module: Any) -> dict[str, float]:
            right = torch.cat([module(ids).logits[:, -1].argmax(-1) == told(ids) for ids in words]).float()
            each = {f"accuracy_{kind}": float(right[kinds == i].mean()) for i, kind in enumerate(KINDS)}
            return {"accuracy": float(right.mean()), **each}

        return measure

    def examples(self, recipe: Recipe) -> tuple[Tensor, Tensor]:
        """Words of 16 brackets."""
        ids = sample(EXAMPLES, 16, torch.Generator().manual_seed(recipe.seed_of("examples")))
        return ids, told(ids)

    def claim(self, module: Any, recipe: Recipe) -> Claim:
        """The first head compares what opens and closes from a position on, its MLP tests that; the second head gathers the
        tests at the last token, where the last MLP sharpens the answer.
        """
        edges = [f"embed->L0H0.{what}" for what in "qkv"] + ["embed->L0.ln2_out", "L0H0.z->L0.ln2_out"]
        edges += [f"L0.mlp_out->L1H0.{what}" for what in "qkv"] + ["embed->L1H0.v"]
        edges += ["L1H0.z->L1.ln2_out", "L1H0.z->logits", "L1.mlp_out->logits"]
        nodes = ("embed", "L0H0.z", "L0.mlp_out", "L1H0.z", "L1.mlp_out")
        height = Variable(
            "height", "L0H0.z", "share of brackets that open among those compared", "numerical", ()
        )
        fault = Variable("fault", "L1H0.z", "whether some test failed", "categorical", ("yes", "no"))
        return Claim(nodes, tuple(edges), (height, fault))

    def facts(self, module: Any, recipe: Recipe) -> dict[str, float]:
        """Of each kind of word the share answered wrongly when the last head carries its mean."""
        from microtome.zoo.oracle import forward, parts

        ids, answers = self.examples(recipe)
        kinds = faults(ids)
        means = {k: v.mean(0, keepdim=True) for k, v in parts(module, ids).items()}
        edges = ("L1H0.z->L1.ln2_out", "L1H0.z->logits")
        wrong = (forward(module, ids, edges, means)[0][:, -1].argmax(-1) != answers).float()
        return {f"without_L1H0_wrong_{kind}": float(wrong[kinds == i].mean()) for i, kind in enumerate(KINDS)}

    def pair(self, random: np.random.Generator) -> tuple[Asked, Asked]:
        """A balanced word and one with a single bracket turned or two exchanged, of 12 brackets; either may be clean."""
        good = dyck(12, random)
        bad = list(good)
        if random.integers(2):
            k = int(random.integers(len(bad)))
            bad[k] = "(" if bad[k] == ")" else ")"
        else:  # the first bracket opens and the last closes: exchanged, the count is right and the height is not
            bad[0], bad[-1] = ")", "("
        sides = [_asked(good, "yes"), _asked(bad, "no")]
        if random.integers(2):
            sides.reverse()
        return sides[0], sides[1]


def _asked(brackets: list[str], answer: str) -> Asked:
    return Asked((*brackets, "?"), answer, {"balanced": answer})


def dyck(length: int, random: np.random.Generator) -> list[str]:
    """A balanced word: a random walk that never leaves what can still be closed."""
    word: list[str] = []
    height = 0
    for left in range(length, 0, -1):
        opens = height == 0 or (height < left and bool(random.random() < 0.5))
        word.append("(" if opens else ")")
        height += 1 if opens else -1
    return word


def sample(n: int, length: int, generator: torch.Generator) -> Tensor:
    """Words between BOS and "?": a third balanced, a third of those with two brackets exchanged, a third at random.

    Shapes: ids [n, length + 2].
    """
    left = torch.rand(n, length, generator=generator)
    height = torch.zeros(n)
    opens = torch.zeros(n, length, dtype=torch.bool)
    for p in range(length):
        opens[:, p] = (height == 0) | ((height < length - p) & (left[:, p] < 0.5))
        height = height + torch.where(opens[:, p], 1.0, -1.0)
    third = n // 3
    swapped = opens[third : 2 * third]
    i, j = (torch.randint(0, length, (third, 1), generator=generator) for _ in range(2))
    a, b = swapped.gather(1, i), swapped.gather(1, j)
    swapped = swapped.scatter(1, i, b).scatter(1, j, a)
    opens = torch.cat([opens[:third], swapped, left[2 * third :] < 0.5])
    brackets = torch.where(opens, OPEN, CLOSE)
    return torch.cat([torch.full((n, 1), BOS), brackets, torch.full((n, 1), END)], 1)


def faults(ids: Tensor) -> Tensor:
    """What is wrong with each word, as an index into KINDS. Shapes: ids [n, pos] -> [n]."""
    steps = (ids[:, 1:-1] == OPEN).long() * 2 - 1
    height = steps.cumsum(1)
    count, below = height[:, -1] != 0, (height < 0).any(1)
    return count.long() + 2 * below.long()


def told(ids: Tensor) -> Tensor:
    """The answer token of each word. Shapes: ids [n, pos] -> [n]."""
    return torch.where(faults(ids) == 0, YES, NO)
