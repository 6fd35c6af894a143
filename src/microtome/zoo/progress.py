"""Progress measures: how far a mechanism has formed, step by step, before the accuracy shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from microtome.errors import ModelError
from microtome.results import seeds
from microtome.zoo.training import Recipe

if TYPE_CHECKING:
    from microtome.facade import Model

__all__ = ["Grokking", "Induction", "key_frequencies", "named"]

SHARE = 0.05
"""Share of the logits' cosine power from which a frequency counts as a key frequency."""


@dataclass(frozen=True)
class Grokking:
    """Nanda et al. 2023 (arXiv 2301.05217), for modular addition.

    Measures: train_loss and test_loss; restricted_loss, on all pairs, of the constant and the key frequencies' parts of the
    logits alone; excluded_loss, on the pairs trained on, of the logits without the key frequencies; random_frequencies_loss,
    as restricted with as many other frequencies, the null of the restricted one; key_embedding, the key frequencies' share of
    the embedding's Fourier power; embedding_gini, how uneven that power is over frequencies; weight_norm, the sum of squares.
    """

    recipe: Recipe
    frequencies: tuple[int, ...] = ()

    def fit(self, model: Model) -> Grokking:
        """With the key frequencies of this model."""
        return self.fit_module(model.hf)

    def fit_module(self, module: Any) -> Grokking:
        """As `fit`."""
        return replace(self, frequencies=key_frequencies(module))

    def key_embedding(self, module: Any) -> float:
        """The key frequencies' share of the embedding's Fourier power."""
        power = embedding_power(module)
        return float(power[[k - 1 for k in self.frequencies]].sum() / power.sum())

    @torch.no_grad()
    def __call__(self, model: Model) -> dict[str, float]:
        """The measures of one checkpoint."""
        from microtome.zoo.modular_addition import last_logits, pairs, split

        module: Any = model.hf
        p = module.config.vocab_size - 1
        a, b = pairs(p)
        answers = (a + b) % p
        logits = last_logits(module, a, b).double()
        (c, d), (e, f) = split(self.recipe)
        seen, held = c * p + d, e * p + f

        def loss(x: Tensor, rows: Tensor | slice = slice(None)) -> float:
            return float(torch.nn.functional.cross_entropy(x[rows], answers[rows]))

        constant = logits.mean(0, keepdim=True)
        key = part(logits, self.frequencies)
        others = [k for k in range(1, p // 2 + 1) if k not in self.frequencies]
        order = torch.randperm(
            len(others), generator=torch.Generator().manual_seed(seeds.child(0, "frequencies"))
        )
        chosen = tuple(others[int(i)] for i in order[: len(self.frequencies)])
        return {
            "train_loss": loss(logits, seen),
            "test_loss": loss(logits, held),
            "restricted_loss": loss(constant + key),
            "random_frequencies_loss": loss(constant + part(logits, chosen)),
            "excluded_loss": loss(logits - key, seen),
            "key_embedding": self.key_embedding(module),
            "embedding_gini": gini(embedding_power(module)),
            "weight_norm": float(sum(w.double().square().sum() for w in module.parameters())),
        }


def part(logits: Tensor, frequencies: tuple[int, ...]) -> Tensor:
    """The part of the logits that depends on a and b as cos and sin of w (a + b), for these frequencies.

    Shapes: logits [p * p, d_vocab] -> same.
    """
    p = round(len(logits) ** 0.5)
    n = torch.arange(p * p)
    k = torch.tensor(frequencies, dtype=torch.float64)
    angle = 2 * torch.pi * ((n // p + n % p) % p).double()[:, None] * k / p
    basis = torch.cat([angle.cos(), angle.sin()], 1) * (2**0.5 / p)  # orthonormal
    return basis @ (basis.T @ logits)


@torch.no_grad()
def key_frequencies(module: Any) -> tuple[int, ...]:
    """Frequencies k whose cos(2 pi k (a + b - c) / p) carries at least SHARE of the power of all of them in the logits, rising;
    at least the strongest one.
    """
    from microtome.zoo.modular_addition import last_logits, pairs

    p = module.config.vocab_size - 1
    a, b = pairs(p)
    logits = last_logits(module, a, b).double()[:, :p]
    logits = logits - logits.mean(1, keepdim=True)
    off = ((a + b)[:, None] - torch.arange(p)[None]) % p
    mean = torch.zeros(p, dtype=torch.float64).index_add_(0, off.flatten(), logits.flatten()) / p**2
    power = torch.fft.rfft(mean).real[1:].square()
    found = (power >= SHARE * power.sum()).nonzero()[:, 0] + 1
    return tuple(int(k) for k in found) or (int(power.argmax()) + 1,)


def embedding_power(module: Any) -> Tensor:
    """Power of the number embeddings at each frequency 1 .. p // 2. Shapes: [p // 2]."""
    p = module.config.vocab_size - 1
    fourier = torch.fft.rfft(module.model.embed_tokens.weight[:p].double(), dim=0)
    return fourier.abs().square().sum(1)[1:]


def gini(power: Tensor) -> float:
    """0 where all are equal, towards 1 where one has everything."""
    n = len(power)
    rank = torch.arange(1, n + 1, dtype=torch.float64)
    return float((2 * rank - n - 1) @ power.sort().values / (n * power.sum()))


@dataclass(frozen=True)
class Induction:
    """Olsson et al. 2022 (arXiv 2209.11895), for the zoo's repeated random tokens.

    Measures: prefix_matching and previous_token, mean attention of the best head (see `induction_heads.head_scores`);
    in_context, mean loss of the last eight tokens minus that of the first four, negative where the context helps; seen_loss,
    where what follows has been seen.
    """

    recipe: Recipe

    @torch.no_grad()
    def __call__(self, model: Model) -> dict[str, float]:
        """The measures of one checkpoint."""
        from microtome.zoo.induction_heads import head_scores, sample

        module: Any = model.hf
        scores = head_scores(module, self.recipe.seed_of("dynamics heads"))
        ids, seen = sample(256, torch.Generator().manual_seed(self.recipe.seed_of("dynamics")))
        logits = module(ids[:, :-1]).logits.double()
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        return {
            "prefix_matching": max(s["prefix"] for s in scores.values()),
            "previous_token": max(s["previous"] for s in scores.values()),
            "in_context": float(losses[:, -8:].mean() - losses[:, :4].mean()),
            "seen_loss": float(losses[seen].mean()),
        }


NAMED: Mapping[str, tuple[str, Callable[[Recipe], Any]]] = {
    "grokking": ("modular_addition", Grokking),
    "induction": ("induction_heads", Induction),
}


def named(name: str, checkpoints: Any) -> Any:
    """The measures of that name for this specimen.

    Raises
    ------
    ModelError: an unknown name, or checkpoints of something else.
    """
    if name not in NAMED:
        raise ModelError(
            f"there are no progress measures called {name!r}",
            why=f"named ones are {', '.join(NAMED)}",
            instead="one of them, or a function of a model",
        )
    of, make = NAMED[name]
    training = getattr(checkpoints, "training", None)
    if training is None or not training.recipe.name.startswith(of):
        raise ModelError(
            f"{name} measures need a specimen of {of}",
            why="they ask about its data and its split",
            instead=f"dynamics(zoo.build({('modular_addition_59' if of == 'modular_addition' else of)!r}), {name!r})",
        )
    return make(training.recipe)
