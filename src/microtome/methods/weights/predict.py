"""What heads should do by their weights alone: attend to the previous token, match what followed, copy what they attend to.

No text is read. Each score comes with a null that keeps what the weights are and breaks what the score is about: a random
basis of the head in front of the rotary planes, positions in another order, a random rotation between a head's values and its
output. Copying and matching by eigenvalues and traces are after Elhage et al. 2021; the share of a QK circuit that tells one
offset from others is this project's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from microtome.methods.weights.heads import HeadCircuits
from microtome.results import seeds
from microtome.results.technique import progress

__all__ = [
    "Copying",
    "Matching",
    "Prediction",
    "Previous",
    "Vocabulary",
    "copying",
    "matching",
    "predictions",
    "previous",
]

FAR = 32
"""Offsets that the previous token is told from: 0 and 2 to this."""
AHEAD = (8, 48)
"""Offsets over which the rotation of an induction head's query is averaged: what it looks for may be anywhere."""
DRAWS = 99


@dataclass(frozen=True)
class Vocabulary:
    """The token embeddings as a head reads them: [d_vocab, d_model], normed as the norm before attention norms (its gain is in
    the heads' weights); `gram` [d_model, d_model] is the covariance over tokens, `to_logits` [d_model, d_model] W_U times them.
    """

    heads: HeadCircuits
    rows: Tensor = field(init=False)

    def __post_init__(self) -> None:
        rows, layer = self.heads.W_E, self.heads.layers[0]
        path = self.heads.model.binding.slots[layer].at("ln1")
        if path is not None:
            rows = rows - rows.mean(-1, keepdim=True) if self.heads.model.binding.norm(path).centred else rows
            rows = rows / rows.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-30)
        object.__setattr__(self, "rows", rows)

    @cached_property
    def gram(self) -> Tensor:
        """Covariance of the rows, float64."""
        centre = self.rows.mean(0)
        return self.rows.T @ self.rows / len(self.rows) - torch.outer(centre, centre)

    @cached_property
    def to_logits(self) -> Tensor:
        """W_U @ rows: through it the full OV circuit's eigenvalues come from a matrix as wide as a head, float64."""
        return self.heads.W_U @ self.rows


@dataclass(frozen=True)
class Previous:
    """Shapes: score, null (largest of the draws), p (of each head alone) [head]; how: "rotary" or "learned"."""

    score: np.ndarray
    null: np.ndarray
    p: np.ndarray
    how: str


@dataclass(frozen=True)
class Matching:
    """Shapes: advantage, z [sender, reader] (NaN where the sender is not earlier).

    advantage: how far the score of a key whose previous token is the query's stands above others, in standard deviations
    over pairs of tokens; z: the same in standard deviations of its null.
    """

    advantage: np.ndarray
    z: np.ndarray


@dataclass(frozen=True)
class Copying:
    """Shapes: score, null, z [head]. score: sum of the full OV circuit's eigenvalues over the sum of their sizes, in [-1, 1];
    null: 1.96 standard deviations of the score under random rotations between values and output; z: in those deviations.
    """

    score: np.ndarray
    null: np.ndarray
    z: np.ndarray


def previous(c: HeadCircuits, seed: int = 0, draws: int = DRAWS) -> Previous:
    """How much of a head's QK circuit is about the key just before the query.

    With rotary positions: ||W_Q (R_1 - mean R_d) W_K^T|| / ||W_Q W_K^T||, d over 0 and 2..32; it says that the head tells
    the previous token from others, not that it likes it. Heads turned into a random basis are no strict null of that: most have
    a middling share. With learned positions: mean attention to the previous token of a
    stream that holds random tokens and positions alone.

    Raises
    ------
    ModelError: a layer whose positions are not known.
    """
    turning = [c.rotation(i).turns for i in c.layers]
    return _by_rotation(c, seed, draws) if any(turning) else _by_positions(c, seed, draws)


def _by_rotation(c: HeadCircuits, seed: int, draws: int) -> Previous:
    score, null = [], []
    for i in c.layers:
        rotation = c.rotation(i)
        turns = rotation.by(torch.arange(FAR + 1))
        sharp = turns[1] - turns[[0, *range(2, FAR + 1)]].mean(0)
        q, k = (w.mT @ w for w in (c.W_Q(i), c.W_K(i)))  # [head, d_head, d_head]
        whole = (q * k).sum((-2, -1)).clamp_min(1e-30)
        score.append(_size(q, k, sharp) / whole)
        generator = torch.Generator().manual_seed(seeds.child(seed, f"basis of heads, layer {i}"))
        row = []
        for _ in range(draws):
            turn = torch.linalg.qr(torch.randn(q.shape, generator=generator, dtype=torch.float64))[0]
            row.append(_size(turn.mT @ q @ turn, turn.mT @ k @ turn, sharp) / whole)
        null.append(torch.stack(row))
    found, drawn = torch.cat(score).sqrt().numpy(), torch.cat(null, 1).sqrt().numpy()
    return Previous(found, drawn.max(0), _ranked(found, drawn), "rotary")


def _size(q: Tensor, k: Tensor, turn: Tensor) -> Tensor:
    """||W_Q turn W_K^T||^2 from the two Gram matrices in the head's width."""
    return ((turn.T @ q @ turn) * k).sum((-2, -1)).clamp_min(0)


def _by_positions(c: HeadCircuits, seed: int, draws: int) -> Previous:
    facts = c.model.facts
    length = min(24, facts.n_ctx or 24)
    generator = torch.Generator().manual_seed(seeds.child(seed, "bare tokens"))
    ids = torch.randint(0, facts.d_vocab, (8, length), generator=generator)
    score, null = [], []
    for i in c.layers:
        score.append(_before(c.bare_pattern(i, ids)))
        orders = [torch.randperm(length, generator=generator) for _ in range(draws)]
        null.append(torch.stack([_before(c.bare_pattern(i, ids, order)) for order in orders]))
    found, drawn = torch.cat(score).numpy(), torch.cat(null, 1).numpy()
    return Previous(found, drawn.max(0), _ranked(found, drawn), "learned")


def _before(pattern: Tensor) -> Tensor:
    """Mean attention to the previous token. Shapes: [prompt, head, query, key] -> [head]."""
    return pattern.diagonal(-1, -2, -1)[..., 1:].mean((0, 2))


def _ranked(found: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """p per head: how often its own null reaches its score. Shapes: [head], [draw, head] -> [head]."""
    return np.asarray((1 + (drawn >= found).sum(0)) / (1 + len(drawn)))


def matching(c: HeadCircuits, words: Vocabulary) -> Matching:
    """For every earlier head s and head h: does h, through what s writes, prefer keys whose previous token is its own?

    The circuit is W_E W_Q R W_K^T (W_V^s W_O^s)^T W_E^T, token of the query by token before the key (K-composition), with R
    averaged over offsets 8 to 48. Its null puts a random rotation U between W_V^s and W_O^s: the trace of a fixed matrix N
    times U has mean 0 and variance ||N||^2 / width, and nearly a normal distribution.
    """
    n = len(c.heads)
    advantage, z = np.full((n, n), np.nan), np.full((n, n), np.nan)
    at = {i: [k for k, (layer, _) in enumerate(c.heads) if layer == i] for i in c.layers}
    ahead = torch.arange(*AHEAD)
    for done, reader in enumerate(c.layers, 1):
        turn = c.rotation(reader).by(ahead).mean(0)
        asks = words.gram @ c.W_Q(reader) @ turn  # [h, d_model, d_head]
        sought = (c.W_Q(reader) @ turn).mT @ asks  # [h, d_head, d_head]
        for sender in (i for i in c.layers if i < reader):
            values, out = c.W_V(sender), c.W_O(sender)
            heard = torch.einsum("svm,hmk->shvk", out, c.W_K(reader))
            wanted = torch.einsum("smv,hmk->shvk", values, asks)
            found = (heard * wanted).sum((-2, -1))
            size = (heard.mT @ (values.mT @ words.gram @ values)[:, None] @ heard * sought).sum((-2, -1))
            spread = (wanted @ heard.mT).square().sum((-2, -1)).sqrt() / values.shape[-1] ** 0.5
            place = np.ix_(at[sender], at[reader])
            advantage[place] = (found / size.clamp_min(1e-60).sqrt()).numpy()
            z[place] = (found / spread.clamp_min(1e-30)).numpy()
        progress(done, len(c.layers), "layers", "composing heads")
    return Matching(advantage, z)


def copying(c: HeadCircuits, words: Vocabulary) -> Copying:
    """Eigenvalues of every head's full OV circuit, from a matrix as wide as the head.

    The null puts a random rotation between W_V and W_O, as in `matching`.
    """
    score, null, z = [], [], []
    for i in c.layers:
        inner = c.W_O(i) @ words.to_logits @ c.W_V(i)
        sizes = torch.linalg.eigvals(inner).abs().sum(-1).clamp_min(1e-30)
        total = inner.diagonal(dim1=-2, dim2=-1).sum(-1)
        spread = inner.flatten(1).norm(dim=1).clamp_min(1e-30) / inner.shape[-1] ** 0.5
        score.append(total / sizes)
        null.append(1.96 * spread / sizes)
        z.append(total / spread)
    return Copying(*(torch.cat(x).numpy() for x in (score, null, z)))


@dataclass(frozen=True)
class Prediction:
    """One role, for every head. Shapes: score, null (what it stays below without the role), p [head]; partner [head]: the head
    that it works through, -1 for none.
    """

    role: str
    score: np.ndarray
    null: np.ndarray
    p: np.ndarray
    partner: np.ndarray


def predictions(c: HeadCircuits, seed: int = 0, draws: int = DRAWS) -> tuple[Prediction, ...]:
    """Previous-token, induction and copying heads, from weights alone.

    An induction head's score is the largest, over earlier heads, of that head's previous-token score times the advantage with
    which this head matches through it (0 in the first layer). Raises as `previous`.
    """
    words = Vocabulary(c)
    before, matched, copied = previous(c, seed, draws), matching(c, words), copying(c, words)
    none = np.full(len(c.heads), -1)
    product = np.nan_to_num(before.score[:, None] * matched.advantage, nan=0.0)
    best = product.argmax(0)
    each = np.arange(len(best))
    senders = (~np.isnan(matched.z)).sum(0)
    z = np.nan_to_num(matched.z, nan=0.0)[best, each]
    score = np.maximum(product[best, each], 0.0)
    limit = stats.norm.isf(0.01 / np.maximum(senders, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        null = np.where(z > 0, score / z * limit, 0.0)
    chance = np.minimum(1.0, stats.norm.sf(z) * np.maximum(senders, 1))
    return (
        Prediction("previous", before.score, before.null, before.p, none),
        Prediction(
            "induction", score, null, np.where(senders > 0, chance, 1.0), np.where(score > 0, best, -1)
        ),
        Prediction("copying", copied.score, copied.null, stats.norm.sf(copied.z), none),
    )
