"""Singular vectors of heads and MLPs, read in the vocabulary: which tokens a part answers to and which it promotes.

After Millidge and Black 2022 (The singular value decompositions of transformer weight matrices are highly interpretable). The
tokens nearest to any direction resemble each other, since embeddings do: so the coherence of a vector's tokens stands beside that
of random directions of the same space.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from microtome.controls.signflip import sign_flip
from microtome.errors import ModelError, SiteError
from microtome.methods.weights import role_controls
from microtome.methods.weights.heads import HeadCircuits
from microtome.methods.weights.predict import Vocabulary
from microtome.model.factored import FactoredMatrix
from microtome.results import seeds
from microtome.results.result import Result
from microtome.results.technique import progress, technique
from microtome.results.verdicts import Control, verdict

if TYPE_CHECKING:
    import pandas as pd

    from microtome.facade import Model

__all__ = ["vocabulary_svd"]

MANDATORY = ("same_weights", "random_weights")
_PART = re.compile(r"L(\d+|\*)(?:H(\d+|\*)|\.mlp)")
Of = Callable[["_Part"], tuple[FactoredMatrix, FactoredMatrix]]


@dataclass(frozen=True)
class _Part:
    """A head, or (head None) an MLP."""

    layer: int
    head: int | None

    def __str__(self) -> str:
        return f"L{self.layer}.mlp" if self.head is None else f"L{self.layer}H{self.head}"


@technique(
    "vocabulary_svd",
    "1",
    controls=MANDATORY,
    mandatory=MANDATORY,
    figure="microtome.figures.vectors:draw",
    random=True,
)
def vocabulary_svd(
    model: Model,
    parts: str | Sequence[str] = ("L*H*", "L*.mlp"),
    *,
    vectors: int = 2,
    tokens: int = 8,
    randoms: int = 4,
    alpha: float = 0.001,
    seed: int = 0,
) -> Result:
    """The first singular vectors of heads' OV circuits and of MLPs' weights, as lists of tokens.

    Parameters
    ----------
    parts: "L5H3" (W_V W_O), "L5.mlp" (what it reads: W_in; what it writes: W_out), with * for all.
    vectors, tokens: how many singular vectors of each part, and tokens of each. A singular vector has no sign: of its two ends
        the one with more coherent tokens is shown, and of random directions too.
    randoms: random directions of the part's own space for each vector.

    Table "vectors": part, side ("reads", "writes"), rank, singular value and its share of the sum of squares, coherence (mean cosine
    of the tokens' embeddings, less their mean embedding), the mean and largest coherence of its random directions, the tokens.
    The p: over parts, coherence less that of random directions, signs flipped by layer.

    Raises
    ------
    SiteError: a part that is not there. ModelError: no heads, or a vocabulary smaller than `tokens`.
    """
    if not 1 < tokens <= model.facts.d_vocab or vectors < 1 or randoms < 1:
        raise ModelError(f"{vectors} vectors, {tokens} tokens, {randoms} random directions", why=f"coherence is of two tokens or more, of {model.facts.d_vocab}",
                         instead="vectors=2, tokens=8, randoms=4")  # fmt: skip
    circuits = HeadCircuits(model)
    named = _expand(circuits, [parts] if isinstance(parts, str) else list(parts))
    words = Vocabulary(circuits)
    reader = _Reader(words, tokens)
    table = _table(named, _of_model(circuits), reader, vectors, randoms, seed)
    _name_tokens(model, table)
    p, least = _test(table, seed, alpha)
    random = _table(
        named, _of_random(circuits, seed), reader, vectors, randoms, seeds.child(seed, "random weights")
    )
    ran = [role_controls.same_weights(circuits, seed), _random_weights(random, seed)]
    return Result(
        "vocabulary_svd", tables={"vectors": table.drop(columns=["ids", "layer"]), "transforms": _frame([{"transform": k, "what": v} for k, v in circuits.transforms.items()])},
        controls=ran, verdict=verdict(ran, MANDATORY, p, alpha, least),
        raw_examples=[{"part": r["part"], "side": r["side"], "tokens": r["tokens"]} for r in table.sample(min(4, len(table)), random_state=seeds.child(seed, "raw_examples") % 2**32).to_dict("records")],
    )  # fmt: skip


def _expand(c: HeadCircuits, asked: list[str]) -> list[_Part]:
    """Parts in the order asked, each once.

    Raises
    ------
    SiteError: not a head or MLP of this model.
    """
    facts = c.model.facts.layers
    found: dict[_Part, None] = {}
    if not asked:
        raise SiteError(
            "no parts were named", why="there is nothing to decompose", instead='"L*H*", "L*.mlp"'
        )
    for name in asked:
        match = _PART.fullmatch(name)
        layers = [] if match is None else list(range(len(facts))) if match[1] == "*" else [int(match[1])]
        here: list[_Part] = []
        for i in (i for i in layers if i < len(facts)):
            if match is not None and match[2] is None:
                here += [_Part(i, None)] if facts[i].mlp in ("gated", "plain") else []
            elif match is not None and i in c.layers:
                heads = range(facts[i].n_heads) if match[2] == "*" else [int(match[2])]
                here += [_Part(i, h) for h in heads if h < facts[i].n_heads]
        if not here:
            raise SiteError(
                f"no part {name!r} with singular vectors",
                why="parts are heads (L5H3) and plain or gated MLPs (L5.mlp)",
                instead='"L*H*", "L*.mlp"',
            )
        found.update(dict.fromkeys(here))
    return list(found)


def _of_model(c: HeadCircuits) -> Of:
    """What a part reads with and writes with, as products [d_model, d_model]-like: reads from the left, writes to the right."""

    def of(part: _Part) -> tuple[FactoredMatrix, FactoredMatrix]:
        if part.head is not None:
            ov = c.ov(part.layer, part.head)
            return ov, ov
        w = c.model.weights
        reads = w.W_in(part.layer).detach().double().cpu()
        slots = c.model.binding.slots[part.layer]
        if (path := slots.at("ln2")) is not None:
            norm = c.model.binding.norm(path)
            reads = norm.gain.detach().double().cpu()[:, None] * reads
            reads = reads - reads.mean(0) if norm.centred else reads
        writes = w.W_out(part.layer).detach().double().cpu()
        return _thin(reads), _thin(writes)

    return of


def _thin(weight: Tensor) -> FactoredMatrix:
    """A dense matrix as a product with the identity on its narrower side."""
    m, n = weight.shape
    return (
        FactoredMatrix(weight, torch.eye(n, dtype=weight.dtype))
        if n <= m
        else FactoredMatrix(torch.eye(m, dtype=weight.dtype), weight)
    )


def _of_random(c: HeadCircuits, seed: int) -> Of:
    """The same shapes with independent normal entries."""
    real = _of_model(c)
    generator = torch.Generator().manual_seed(seeds.child(seed, "random parts"))

    def of(part: _Part) -> tuple[FactoredMatrix, FactoredMatrix]:
        return tuple(FactoredMatrix(_like(f.left, generator), _like(f.right, generator)) for f in real(part))  # type: ignore[return-value]

    return of


def _like(weight: Tensor, generator: torch.Generator) -> Tensor:
    m, n = weight.shape
    eye = m == n and bool(torch.equal(weight, torch.eye(m, dtype=weight.dtype)))
    return weight if eye else torch.randn(m, n, generator=generator, dtype=torch.float64)


class _Reader:
    """Directions of the stream as tokens, in float32."""

    def __init__(self, words: Vocabulary, tokens: int) -> None:
        self.tokens = tokens
        self.promoted, self.answered = words.heads.W_U.float(), words.rows.T.float()
        centred = words.rows - words.rows.mean(0)
        self.unit = (centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-12)).float()

    def __call__(self, directions: Tensor, side: str) -> tuple[Tensor, Tensor]:
        """Of each direction's two ends the more coherent one. Shapes: [n, d_model] -> coherence [n], ids [n, tokens]."""
        logits = directions.float() @ (self.promoted if side == "writes" else self.answered)
        ends = [x.topk(self.tokens, -1).indices for x in (logits, -logits)]
        coherence = torch.stack([self._coherence(ids) for ids in ends])
        best = coherence.argmax(0)
        return coherence.amax(0), torch.stack(ends)[best, torch.arange(len(best))]

    def _coherence(self, ids: Tensor) -> Tensor:
        rows = self.unit[ids]
        total = rows.sum(1).square().sum(-1)
        k = ids.shape[1]
        return (total - rows.square().sum((-2, -1))) / (k * (k - 1))


def _table(
    parts: list[_Part], of: Of, reader: _Reader, vectors: int, randoms: int, seed: int
) -> pd.DataFrame:
    rows: list[dict[str, object]] = []
    generator = torch.Generator().manual_seed(seeds.child(seed, "random directions"))
    for done, part in enumerate(parts, 1):
        reads, writes = of(part)
        for side, product in (("reads", reads), ("writes", writes)):
            u, s, v = product.svd
            space = (u if side == "reads" else v).T
            keep = s > 1e-9 * s[0].clamp_min(1e-30)
            space, n = space[keep], min(vectors, int(keep.sum()))
            coherence, ids = reader(space[:n], side)
            drawn = torch.randn(n * randoms, len(space), generator=generator, dtype=torch.float64) @ space
            null = reader(drawn, side)[0].view(n, randoms) if n else torch.zeros(0, randoms)
            share = s.square() / s.square().sum().clamp_min(1e-30)
            rows += [{"part": str(part), "layer": part.layer, "side": side, "rank": k, "singular": float(s[k]), "share": float(share[k]), "coherence": float(coherence[k]),
                      "null": float(null[k].mean()), "null_high": float(null[k].max()), "ids": tuple(ids[k].tolist())} for k in range(n)]  # fmt: skip
        progress(done, len(parts), "parts", "singular vectors")
    return _frame(rows)


def _name_tokens(model: Model, table: pd.DataFrame) -> None:
    table["tokens"] = [" | ".join(model.strings(list(ids))) for ids in table["ids"]]


def _test(table: pd.DataFrame, seed: int, alpha: float) -> tuple[float | None, float | None]:
    """p that singular vectors are more coherent than random directions, and the smallest within reach."""
    layers = table["layer"].astype(str).tolist()
    if len(set(layers)) < 2:
        return None, None
    gain = (table["coherence"] - table["null"]).to_numpy(np.float64)
    test = sign_flip(gain[None], layers, seed=seed, alpha=alpha)
    return (test.min_p if gain.mean() > 0 else 1.0), test.smallest_p


def _random_weights(random: pd.DataFrame, seed: int) -> Control:
    """Singular vectors of random matrices must be no more coherent than random directions are."""
    rules_out, expected = (
        "that any matrix of these shapes has such vectors",
        f"singular vectors of random matrices are no more coherent than random directions (p above {role_controls.RANDOM_LEVEL:g})",
    )
    p, _ = _test(random, seed, 0.001)
    if p is None:
        return Control.not_run(
            "random_weights", rules_out, expected, "parts of one layer only: there is nothing to flip"
        )
    return Control(
        "random_weights",
        rules_out,
        expected,
        {"p": p, "excess": float((random["coherence"] - random["null"]).mean())},
        p > role_controls.RANDOM_LEVEL,
        len(random),
    )


def _frame(rows: list[dict[str, object]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows)
