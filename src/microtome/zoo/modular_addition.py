"""Modular addition, a b = -> (a + b) mod p, learned long after the training pairs were: grokking.

Nanda et al. 2023 (arXiv 2301.05217): one layer, no norm, ReLU, full batches, AdamW with strong decay. The network computes
cos and sin of w a and w b at a few frequencies w = 2 pi k / p, and by angle addition the logit of c is a sum of
cos(w (a + b - c)).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from microtome.zoo.mechanism import Variable
from microtome.zoo.trained import EXAMPLES, Asked, Claim, Subject, choose
from microtome.zoo.training import Loss, Measure, Optimiser, Recipe

__all__ = ["ModularAddition", "last_logits", "margin", "pairs", "split"]


class ModularAddition(Subject):
    """See the module. p: the modulus."""

    source = "Nanda et al. 2023, arXiv 2301.05217"
    bos = False
    differs = frozenset({"a"})

    def __init__(self, p: int = 59) -> None:
        self.p = p
        self.name = f"modular_addition_{p}"
        self.summary = (
            f"(a + b) mod {p} by cosines of a few frequencies, learned long after its training pairs"
        )
        self.words = (*map(str, range(p)), "=")
        self.store = "float16" if p > 100 else "float32"
        self.keep = KEPT.get(p, ())

    def recipe(self, *, seed: int, **options: Any) -> Recipe:
        """Options: steps, weight_decay (1.0), share of pairs to train on. p = 113 as published; p = 59 is smaller and quicker."""
        small = self.p < 100
        known = {"steps": 4000 if small else 14_000, "weight_decay": 1.0, "share": 0.4 if small else 0.3}
        o = choose(self.name, options, known)
        width = 64 if small else 128
        config = {
            "vocab_size": self.p + 1,
            "hidden_size": width,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "head_dim": width // 4,
            "intermediate_size": 4 * width,
            "hidden_act": "relu",
            "max_position_embeddings": 3,
            "initializer_range": width**-0.5,
        }
        return Recipe(
            self.name,
            config,
            seed,
            o["steps"],
            target=0.999,
            every=100,
            optimiser=Optimiser(
                lr=3e-3 if small else 1e-3, weight_decay=o["weight_decay"], betas=(0.9, 0.98), warmup=10
            ),
            checkpoints=tuple(range(0, o["steps"], 100)),
            data={"p": self.p, "share": o["share"]},
        )

    def loss(self, recipe: Recipe) -> Loss:
        """Cross-entropy (in float64) on the training pairs, all of them at each step."""
        (a, b), _ = split(recipe)
        answers = (a + b) % self.p
        return lambda module, _: torch.nn.functional.cross_entropy(last_logits(module, a, b).double(), answers)  # fmt: skip

    def measure(self, recipe: Recipe) -> Measure:
        """Accuracy and loss on the pairs that are held out, accuracy on those trained on."""
        seen, held = split(recipe)

        def measure(module: Any) -> dict[str, float]:
            (logits, answers), (known, taught) = (
                (last_logits(module, a, b).double(), (a + b) % self.p) for a, b in (held, seen)
            )
            return {
                "accuracy": float((logits.argmax(-1) == answers).double().mean()),
                "test_loss": float(torch.nn.functional.cross_entropy(logits, answers)),
                "train_accuracy": float((known.argmax(-1) == taught).double().mean()),
            }

        return measure

    def examples(self, recipe: Recipe) -> tuple[Tensor, Tensor]:
        """Pairs from all."""
        a, b = pairs(self.p)
        order = torch.randperm(len(a), generator=torch.Generator().manual_seed(recipe.seed_of("examples")))
        a, b = a[order[:EXAMPLES]], b[order[:EXAMPLES]]
        return torch.stack([a, b, torch.full_like(a, self.p)], 1), (a + b) % self.p

    def claim(self, module: Any, recipe: Recipe) -> Claim:
        """Heads bring both numbers to "=", the MLP multiplies, the logits are read off its neurons."""
        heads = [f"L0H{h}" for h in range(module.config.num_attention_heads)]
        edges = [f"embed->{h}.{what}" for h in heads for what in "qkv"]
        edges += [f"{h}.z->L0.ln2_out" for h in heads] + ["L0.mlp_out->logits"]
        total = Variable("sum", "L0.mlp_out", "(a + b) mod p", "categorical", self.words[:-1])
        return Claim(("embed", *(f"{h}.z" for h in heads), "L0.mlp_out"), tuple(edges), (total,))

    def facts(self, module: Any, recipe: Recipe) -> dict[str, float]:
        """The number of key frequencies, their share of the embedding's power, and the smallest margin over all pairs."""
        from microtome.zoo.progress import Grokking

        measures = Grokking(recipe).fit_module(module)
        a, b = pairs(self.p)
        logits, right = last_logits(module, a, b).double(), ((a + b) % self.p)[:, None]
        others = logits.scatter(1, right, -torch.inf).amax(1)
        least = float((logits.gather(1, right)[:, 0] - others).min())
        return {
            "key_frequencies": len(measures.frequencies),
            "key_embedding": measures.key_embedding(module),
            "least_margin": least,
        }

    def pair(self, random: np.random.Generator) -> tuple[Asked, Asked]:
        """The same b with two different a."""
        a, other = (int(k) for k in random.choice(self.p, 2, replace=False))
        b = int(random.integers(self.p))
        return self._asked(a, b), self._asked(other, b)

    def _asked(self, a: int, b: int) -> Asked:
        return Asked((str(a), str(b), "="), str((a + b) % self.p), {"a": str(a), "b": str(b)})


KEPT: dict[int, tuple[int, ...]] = {59: (0, 200, 400, 600, 1000, 1500, 2000, 3000)}
"""Steps whose weights ship."""


def pairs(p: int) -> tuple[Tensor, Tensor]:
    """All a and b, in order. Shapes: [p * p] each."""
    n = torch.arange(p * p)
    return n // p, n % p


def split(recipe: Recipe) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(a, b) of the pairs trained on and of those held out."""
    p = recipe.data["p"]
    order = torch.randperm(p * p, generator=torch.Generator().manual_seed(recipe.seed_of("split")))
    cut = int(recipe.data["share"] * p * p)
    a, b = pairs(p)
    return (a[order[:cut]], b[order[:cut]]), (a[order[cut:]], b[order[cut:]])


def last_logits(module: Any, a: Tensor, b: Tensor) -> Tensor:
    """Logits at "=", as the module gives them, several times quicker: keys and values depend on the number alone, and only
    the last position goes through the MLP. Shapes: a, b [pair] -> [pair, d_vocab].
    """
    c, model = module.config, module.model
    p, layer = c.vocab_size - 1, module.model.layers[0]
    attention, shape = layer.self_attn, (c.num_attention_heads, c.head_dim)
    embed, position = model.embed_tokens.weight, model.wpe.weight
    end = embed[p] + position[2]
    numbers = torch.stack([embed[:p] + position[0], embed[:p] + position[1]])
    query = attention.q_proj(end).view(shape)

    def read(x: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = (project(x).unflatten(-1, shape) for project in (attention.k_proj, attention.v_proj))
        return (keys * query).sum(-1) * attention.scaling, values

    scores, values = read(numbers)
    own_score, own_value = read(end)
    told = [scores[0].index_select(0, a), scores[1].index_select(0, b), own_score.expand(len(a), -1)]
    pattern = torch.stack(told).softmax(0)[..., None]
    mixed = pattern[0] * values[0].index_select(0, a) + pattern[1] * values[1].index_select(0, b)
    stream = end + attention.o_proj((mixed + pattern[2] * own_value).flatten(1))
    logits: Tensor = module.lm_head(stream + layer.mlp(stream))
    return logits


def margin(p: int, frequencies: Sequence[int]) -> float:
    """How far sum_k cos(2 pi k (a + b - c) / p) at c = a + b mod p stands above every other c: the smallest over all pairs.

    Positive: the argmax is the sum for all p * p pairs. Nanda et al. 2023, with the key frequencies of their model.
    """
    a, b = pairs(p)
    k = torch.tensor(list(frequencies), dtype=torch.float64)
    off = (a + b)[:, None] - torch.arange(p)[None]
    total = torch.cos(2 * torch.pi * torch.arange(p, dtype=torch.float64)[:, None] * k / p).sum(1)
    logits = total[off % p]
    right = ((a + b) % p)[:, None]
    others = logits.scatter(1, right, -torch.inf).amax(1)
    return float((logits.gather(1, right)[:, 0] - others).min())
