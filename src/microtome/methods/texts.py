"""Texts as blocks of tokens of one length, each with the document that it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from microtome.errors import TaskError
from microtome.results import seeds

if TYPE_CHECKING:
    from microtome.facade import Model

__all__ = ["Blocks", "blocks_of"]


@dataclass(frozen=True)
class Blocks:
    """ids [block][context] and the document of each [block]."""

    ids: tuple[tuple[int, ...], ...]
    documents: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, index: Sequence[int]) -> Blocks:
        """Some of the blocks."""
        return Blocks(tuple(self.ids[i] for i in index), tuple(self.documents[i] for i in index))

    def split(self, share: float, seed: int) -> tuple[Blocks, Blocks]:
        """Two parts with no document in common; the first has about `share` of the documents.

        Raises
        ------
        TaskError: a single document.
        """
        names = sorted(set(self.documents))
        if len(names) < 2:
            raise TaskError("one document cannot be split", why="what is learned on a text must not be judged on it",
                            instead="give two documents or more")  # fmt: skip
        order = seeds.rng(seed, "split of documents").permutation(len(names)).tolist()
        taken = {names[i] for i in order[: min(max(round(share * len(names)), 1), len(names) - 1)]}
        sides = (
            [i for i, d in enumerate(self.documents) if (d in taken) is first] for first in (True, False)
        )
        first, second = (self.part(side) for side in sides)
        return first, second


def blocks_of(model: Model, texts: Any, *, context: int, most: int, seed: int) -> Blocks:
    """At most `most` blocks of exactly `context` tokens, in random order, from different documents first.

    texts: a corpus with `.blocks(model, context=, tokens=, seed=)`, or a list of texts or of id lists (each one document).
    A text's last incomplete block is left out; what the tokenizer puts in front of a text stands in its first block only.

    Raises
    ------
    TaskError: no text, or none as long as the context.
    """
    if context < 2 or most < 1:
        raise TaskError(
            f"{most} blocks of {context} tokens",
            why="a block has a token and a next one",
            instead="context=64",
        )
    if model.facts.n_ctx is not None and context > model.facts.n_ctx:
        raise TaskError(
            f"blocks of {context} tokens",
            why=f"the model reads {model.facts.n_ctx}",
            instead="a shorter context",
        )
    if hasattr(texts, "blocks"):
        return _of_corpus(model, texts, context, most, seed)
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not len(texts):
        raise TaskError(
            "no texts were given",
            why=f"got {type(texts).__name__}",
            instead="a list of texts, of id lists, or a corpus",
        )
    per_text = []
    for text in texts:
        ids = list(model.tokens([text]).rows()[0]) if isinstance(text, str) else [int(i) for i in text]
        per_text.append([tuple(ids[k : k + context]) for k in range(0, len(ids) - context + 1, context)])
    if not any(per_text):
        raise TaskError(
            f"no text has {context} tokens",
            why=f"the longest of {len(texts)} is shorter",
            instead="longer texts or a smaller context",
        )
    generator = seeds.rng(seed, "blocks of texts")
    queue = [(int(rank), float(generator.random()), d, block) for d, found in enumerate(per_text)
             for rank, block in zip(generator.permutation(len(found)), found, strict=True)]  # fmt: skip
    queue.sort(key=lambda entry: entry[:2])
    chosen = queue[:most]
    return Blocks(tuple(block for *_, block in chosen), tuple(f"text {d}" for _, _, d, _ in chosen))


def _of_corpus(model: Model, corpus: Any, context: int, most: int, seed: int) -> Blocks:
    """The first `context` tokens of a corpus's blocks, which are of at most the length asked for: from different files first."""
    wide = 2 * context if model.facts.n_ctx is None else min(2 * context, model.facts.n_ctx)
    of: dict[str, list[tuple[int, ...]]] = {}
    for block in corpus.blocks(model, context=wide, tokens=16 * context * most, seed=seed):
        if len(block.ids) >= context:
            of.setdefault(block.document.partition("#")[0], []).append(tuple(block.ids[:context]))
        if len(of) == most:
            break
    rows = [(rank, name, row) for name, found in of.items() for rank, row in enumerate(found)]
    rows.sort(key=lambda entry: entry[0])  # stable: the corpus's order within a rank
    if not rows:
        raise TaskError(f"the corpus gave no block of {context} tokens", why="it has no text of this length", instead="a larger corpus or a smaller context")  # fmt: skip
    return Blocks(tuple(row for _, _, row in rows[:most]), tuple(name for _, name, _ in rows[:most]))
