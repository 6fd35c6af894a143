"""From documents to blocks of tokens, one document at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from microtome.errors import ModelError, TaskError
from microtome.model.tokens import Bos, encode
from microtome.tasks import checks
from microtome.tasks.corpus import Block, Document, digest
from microtome.tasks.encode import Encoder
from microtome.tasks.rng import child, shuffled

if TYPE_CHECKING:
    from microtome.tasks.corpus import Corpus

__all__ = ["Passages", "blocks", "passages"]

PASSAGE = 16  # characters of a passage per token of context: three to six blocks
_STAGGER = 3
_BREAKS = ("\n\n", "\n", " ")


def blocks(
    corpus: Corpus, model: Any, context: int, tokens: int, seed: int, bos: Bos = "model"
) -> Iterator[Block]:
    """See `Corpus.blocks`. The arguments are checked at once, not when the first block is taken."""
    checks.count(tokens, "tokens")
    longest = model.facts.n_ctx
    if checks.count(context, "context") < 2 or (longest is not None and context > longest):
        raise TaskError(f"a context of {context} tokens", why=f"a block has two tokens or more, and this model takes {longest or 'any number'} at most",
                        instead=f"context={min(max(context, 2), longest or context)}")  # fmt: skip
    if model.tokenizer is None:
        raise ModelError(
            "this model has no tokenizer",
            why="blocks are made from text",
            instead="mt.load(module, tokenizer=...)",
        )
    encoder = Encoder(model)
    prefix = encoder.prefix if bos == "model" else ()
    if bos is True:
        prefix = tuple(encode(model.tokenizer, "", bos=True))
    if len(prefix) >= context:
        raise TaskError(
            f"a context of {context} tokens",
            why=f"BOS alone takes {len(prefix)}",
            instead=f"context={len(prefix) + 1} or more",
        )
    return _blocks(corpus, encoder, prefix, context, tokens, seed)


def _blocks(corpus: Corpus, encoder: Encoder, prefix: tuple[int, ...], context: int, tokens: int, seed: int) -> Iterator[Block]:  # fmt: skip
    left, turn, more = tokens, 0, True
    while more:
        more = False
        for document, first in _staggered(corpus, seed):
            places = _passages(document.text, context * PASSAGE)
            more = more or turn + 1 < first + len(places)
            if not first <= turn < first + len(places):
                continue
            at = shuffled(places, seed, f"corpus/passages/{document.id}")[turn - first]
            for block in _of_passage(document, at, encoder, prefix, context):
                n = len(block.ids) - len(prefix)
                if n >= left:
                    yield _shortened(block, encoder, len(prefix), left)
                    return
                left -= n
                yield block
        turn += 1


def _staggered(corpus: Corpus, seed: int) -> Iterator[tuple[Document, int]]:
    """Each document and the round in which it is first read. Of the documents of one file (its docstrings, comments, code) about
    one begins in each round, so that the first round has many files and every kind."""
    home, k = "", 0
    for document in corpus.documents(seed):
        k = k + 1 if document.home == home else 0
        home = document.home
        alone = document.id == home
        yield document, 0 if alone else (k + child(seed, f"corpus/stagger/{home}")) % _STAGGER


def _passages(text: str, size: int) -> list[tuple[int, int]]:
    """Ranges of at most `size` characters that cover the text, cut after an empty line, a line or a word where there is one."""
    out, start = [], 0
    while start < len(text):
        stop = min(start + size, len(text))
        if stop < len(text):
            found = (text.rfind(mark, start + size // 2, stop) + len(mark) for mark in _BREAKS)
            stop = next((at for at in found if at > start + size // 2), stop)
        if text[start:stop].strip():
            out.append((start, stop))
        start = stop
    return out


def _of_passage(
    document: Document, at: tuple[int, int], encoder: Encoder, prefix: tuple[int, ...], context: int
) -> Iterator[Block]:
    """The passage's tokens in blocks of equal size, as few as the context allows."""
    start, stop = at
    ids, offsets = _encoded(encoder, document.text[start:stop])
    room = context - len(prefix)
    count = -(-len(ids) // room)
    cut = count > 1 or start > 0 or stop < len(document.text)
    for k in range(count):
        a, b = k * len(ids) // count, (k + 1) * len(ids) // count
        first, last = offsets[a][0], offsets[b - 1][1]
        text = document.text[start + first : start + last]
        yield Block((*prefix, *ids[a:b]), document.id, document.kind, start + first, text, cut)


def _encoded(encoder: Encoder, text: str) -> tuple[Sequence[int], Sequence[tuple[int, int]]]:
    """Ids of a text's own tokens and the characters of each. A slow tokenizer does not tell; there they are as decoded."""
    fast = bool(getattr(encoder.tokenizer, "is_fast", False))
    told = encoder.tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast)
    ids = list(told["input_ids"])
    if fast:
        return ids, told["offset_mapping"]
    ends = [len(encoder.tokenizer.decode(ids[: i + 1])) for i in range(len(ids))]
    return ids, list(zip([0, *ends[:-1]], ends, strict=True))


def _shortened(block: Block, encoder: Encoder, before: int, n: int) -> Block:
    """The block's first n tokens after BOS."""
    if n == len(block.ids) - before:
        return block
    ids, offsets = _encoded(encoder, block.text)
    # a text that begins inside a document can be cut into other tokens than it was there: then all of it is named
    same = tuple(ids) == block.ids[before:]
    text = block.text[: offsets[n - 1][1]] if same else block.text
    return Block(block.ids[: before + n], block.document, block.kind, block.start, text, True)


@dataclass(frozen=True)
class Passages:
    """Stretches of a corpus as prompts: each one's tokens and the file that it is from, by which statistics cluster.

    Shapes: ids [item][pos]; documents [item]. name, hash: of the corpus and of these very tokens.
    """

    name: str
    ids: tuple[tuple[int, ...], ...]
    documents: tuple[str, ...]
    hash: str

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def texts(self) -> tuple[tuple[int, ...], ...]:
        """What a model is run on."""
        return self.ids


def _goes_on(before: Block, block: Block) -> bool:
    """Whether a block is the next stretch of the same document."""
    end = before.start + len(before.text)
    return block.document == before.document and before.start <= block.start <= end + 1


def passages(corpus: Corpus, model: Any, n: int, context: int, seed: int) -> Passages:
    """See `Corpus.passages`."""
    checks.count(n, "n")
    found: list[Block] = []
    before: Block | None = None
    for block in blocks(corpus, model, context, 1 << 62, seed, "model"):
        goes_on = before is not None and _goes_on(before, block)
        before = block
        # neighbours in a text are no independent sample: of blocks that go on from each other the first is taken
        if goes_on or len(block.ids) < context // 2:
            continue
        found.append(block)
        if len(found) == n:
            break
    if len(found) < n:
        raise TaskError(f"the corpus {corpus.name} gives {len(found)} passages of {context} tokens, and {n} were asked for",
                        why="one is taken per stretch of a document", instead="fewer, a smaller context, or more text")  # fmt: skip
    ids = tuple(tuple(b.ids) for b in found)
    mark = digest([corpus.hash, *(" ".join(map(str, row)) for row in ids)])
    return Passages(corpus.name, ids, tuple(b.document.partition("#")[0] for b in found), mark)
