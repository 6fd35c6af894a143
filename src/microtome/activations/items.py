"""Data of any kind as token ids: one flat array, where each item begins, and the token range of each span.

Token ids of a whole dataset are small beside one activation of it (4 bytes a token), so they are held; activations never.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Int

from microtome.errors import ModelError, SiteError, TaskError
from microtome.model.tokens import Tokens, encode
from microtome.sites import Site
from microtome.tasks.encode import Encoder, Prompt

if TYPE_CHECKING:
    from microtome.facade import Model

__all__ = ["Items", "Long", "items_of"]

Long = Literal["refuse", "cut", "whole"]
Span = tuple[int, int]
_AT_ONCE = 256  # texts that the tokenizer gets in one call


@dataclass(frozen=True, repr=False)
class Items:
    """n items of tokens.

    ids: [token] int32, one item after the other. starts: [item + 1] int64, where each begins in `ids`.
    spans: name -> per item a half-open range of its own tokens, or None. documents: per item which document it came from.
    about: what it was made of, JSON-able. cut: (item, tokens that it had, tokens that were kept), for those cut.
    """

    ids: Int[np.ndarray, " token"]
    starts: Int[np.ndarray, " item_1"]
    spans: Mapping[str, tuple[Span | None, ...]] = field(default_factory=dict)
    documents: tuple[Any, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    cut: tuple[tuple[int, int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __repr__(self) -> str:
        return f"<Items: {len(self)} of {len(self.ids)} tokens>"

    def __getitem__(self, item: int) -> list[int]:
        """Token ids of one item."""
        return [int(i) for i in self.ids[self.starts[item] : self.starts[item + 1]]]

    @property
    def lengths(self) -> Int[np.ndarray, " item"]:
        """Tokens of each item."""
        return np.diff(self.starts)

    @property
    def hash(self) -> str:
        """Hex digest of tokens and spans: two datasets of one hash give the same activations."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(np.ascontiguousarray(self.ids, "<i4").tobytes())
        digest.update(np.ascontiguousarray(self.starts, "<i8").tobytes())
        for name in sorted(self.spans):
            digest.update(repr((name, self.spans[name])).encode())
        return digest.hexdigest()

    def blocks(self, size: int, tokens: int) -> Items:
        """Every item cut into blocks of at most `size` tokens, of at most `tokens` tokens together, in order.

        What was one item is one document; spans are dropped. The last block of an item may be short.
        """
        named = self.documents or tuple(range(len(self)))
        starts, documents = [0], []
        for item, (low, high) in enumerate(
            zip(self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True)
        ):
            for begin in range(low, min(high, tokens), size):
                starts.append(min(begin + size, high, tokens))
                documents.append(named[item])
        return Items(self.ids[: starts[-1]], np.asarray(starts, np.int64), {}, tuple(documents), self.about)

    def spans_of(self, item: int) -> dict[str, Span | None]:
        """The spans of one item."""
        return {name: where[item] for name, where in self.spans.items()}

    def ranges(self, site: Site) -> tuple[np.ndarray, np.ndarray]:
        """The half-open range of own positions that a site names in each item. Shapes: [item], [item].

        Raises
        ------
        SiteError: a position or span that an item does not have, naming the item.
        """
        lengths = self.lengths
        at = site.at
        if at is None:
            return np.zeros(len(self), np.int64), lengths.astype(np.int64)
        if at.single and not at.span and at.start is not None:
            first = at.start if at.start >= 0 else lengths + at.start
            low = np.broadcast_to(np.asarray(first, np.int64), len(self)).copy()
            if bool(((low >= 0) & (low < lengths)).all()):
                return low, low + 1
        found = np.empty((2, len(self)), np.int64)
        for item, length in enumerate(lengths.tolist()):
            try:
                found[:, item] = at.resolve(length, self.spans_of(item) if self.spans else None)
            except SiteError as error:
                raise SiteError(f"{site}, item {item}: {error.what}", why=error.why, instead=error.instead) from error  # fmt: skip
        return found[0], found[1]


def items_of(model: Model, data: Any, sites: Sequence[Site] = (), long: Long = "refuse") -> Items:
    """Tokens of texts, ids, blocks of a corpus, a corpus, labelled text or a side of a task.

    sites: those asked for; spans that none of them names are not looked up.
    long: "refuse" or "cut" what exceeds the model's context (the first tokens are kept, and it is said which); "whole" keeps
        it for a caller that will cut it into blocks.

    Raises
    ------
    TaskError: no items, an empty one, text longer than the context, a span that the cut took away, or that does not lie
    between tokens. ModelError: text without a tokenizer. SiteError: a span that the data lacks.
    """
    if isinstance(data, Items):
        return data
    named = {s.at.span for s in sites if s.at is not None and s.at.span}
    rows, spans, about = _read(model, data, named)
    documents: list[Any] = []
    return _packed(_checked(rows, documents), spans, documents, about, model.facts.n_ctx, long)


def _read(
    model: Model, data: Any, named: set[str]
) -> tuple[Iterable[Any], dict[str, tuple[Span | None, ...]], dict[str, Any]]:
    if hasattr(data, "blocks") and not hasattr(data, "labels"):
        return _rows(model, data.blocks(model)), {}, _about(data, "corpus")
    if hasattr(data, "texts") and hasattr(data, "spans") and not hasattr(data, "ids"):
        if not named:
            return _rows(model, data.texts), {}, _about(data, "labelled text")
        return *_spanned(model, data, named), _about(data, "labelled text")
    if hasattr(data, "ids") and hasattr(data, "spans") and not isinstance(data, Tokens):
        spans = {name: tuple(where) for name, where in data.spans.items() if name in named}
        return data.ids, spans, {"kind": "task side"}
    if isinstance(data, Tokens):
        spans = {name: tuple(own.get(name) for own in data.spans) for name in named if data.spans}
        return data.rows(), spans, {"kind": "tokens"}
    if isinstance(data, str):
        return _rows(model, [data]), {}, {"kind": "text"}
    if hasattr(data, "tolist"):
        data = data.tolist()
    if not isinstance(data, Iterable) or isinstance(data, bytes | Mapping):
        raise TaskError(f"{type(data).__name__} is no data for a store", why="it has no items to run",
                        instead="texts, lists of token ids, labelled text, a corpus or a side of a task")  # fmt: skip
    return _rows(model, data), {}, {"kind": "items"}


def _about(data: Any, kind: str) -> dict[str, Any]:
    about: dict[str, Any] = {"kind": kind}
    for name in ("name", "hash"):
        value = getattr(data, name, None)
        if isinstance(value, str):
            about[name] = value
    return about


def _spanned(
    model: Model, data: Any, named: set[str]
) -> tuple[list[Any], dict[str, tuple[Span | None, ...]]]:
    """Texts and the token ranges of their spans, which are given in characters."""
    encoder = Encoder(model)
    rows: list[Any] = []
    spans: dict[str, list[Span | None]] = {name: [] for name in named if name in data.spans}
    for item, text in enumerate(data.texts):
        slots = {name: at for name in spans if (at := data.spans[name][item]) is not None}
        try:
            told = encoder.encode(Prompt(text, slots))
        except TaskError as error:
            raise TaskError(f"item {item}: {error.what}", why=error.why, instead=error.instead) from error
        rows.append(told.ids)
        for name in spans:
            spans[name].append(told.slots.get(name))
    encoder.confirm(data.texts, rows)
    return rows, {name: tuple(where) for name, where in spans.items()}


def _rows(model: Model, data: Iterable[Any]) -> Iterator[Any]:
    """Each item as ids, or as (ids, document) where it is a block. Texts go to the tokenizer many at a time."""
    waiting: list[str] = []
    for one in data:
        if isinstance(one, str):
            waiting.append(one)
            if len(waiting) == _AT_ONCE:
                yield from _encoded(model, waiting)
                waiting = []
            continue
        yield from _encoded(model, waiting)
        waiting = []
        yield one
    yield from _encoded(model, waiting)


def _encoded(model: Model, texts: list[str]) -> Iterator[list[int]]:
    if not texts:
        return
    for i, text in enumerate(texts):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TaskError(f"{text[:40]!r} is not text", why=f"character {error.start} is half of a surrogate pair, which no tokenizer can read",
                            instead="remove it, or write the whole character") from error  # fmt: skip
        if not text:
            raise TaskError(f"the text after {texts[i - 1][:40]!r} is empty" if i else "a text is empty", why="a model needs at least one token",
                            instead="leave it out")  # fmt: skip
    if model.tokenizer is None:
        encode(None, texts[0])  # refuses, with the reason
    yield from (list(row) for row in model.tokenizer(texts).input_ids)


def _checked(rows: Iterable[Any], documents: list[Any]) -> Iterator[np.ndarray]:
    for item, row in enumerate(rows):
        ids = row
        if hasattr(row, "ids"):
            ids = row.ids
            documents.append(getattr(row, "document", item))
        elif isinstance(row, tuple) and len(row) == 2 and not hasattr(row[0], "__index__"):
            ids, document = row
            documents.append(document)
        if hasattr(ids, "tolist"):
            ids = ids.tolist()
        if isinstance(ids, bytes) or not isinstance(ids, Sequence) or not all(hasattr(i, "__index__") for i in ids):  # fmt: skip
            raise TaskError(f"item {item} is no prompt but a {type(row).__name__}", why="an item is text, or a list of token ids",
                            instead="for example [[1, 5, 9], [1, 7]]")  # fmt: skip
        if not len(ids):
            raise TaskError(f"item {item} has no tokens", why="a model needs at least one token", instead="leave it out")  # fmt: skip
        yield np.asarray([int(i) for i in ids], np.int64)


def _packed(
    rows: Iterable[np.ndarray],
    spans: Mapping[str, tuple[Span | None, ...]],
    documents: list[Any],
    about: Mapping[str, Any],
    n_ctx: int | None,
    long: Long,
) -> Items:
    if long not in ("refuse", "cut", "whole"):
        raise TaskError(f"long={long!r}", why='text longer than the context is refused or cut', instead='long="refuse" or long="cut"')  # fmt: skip
    kept: list[np.ndarray] = []
    starts, cut = [0], []
    for item, ids in enumerate(rows):
        if n_ctx is not None and len(ids) > n_ctx and long != "whole":
            if long == "refuse":
                raise TaskError(f"item {item} has {len(ids)} tokens", why=f"this model's context is {n_ctx} tokens",
                                instead='long="cut" keeps the first ones and notes where; or split it into several items')  # fmt: skip
            cut.append((item, len(ids), n_ctx))
            ids = ids[:n_ctx]
        if ids.min() < 0 or ids.max() >= 1 << 31:
            raise ModelError(f"item {item} holds a number that is no token id", why="ids are not negative and fit a vocabulary",
                             instead="tokenise with this model's own tokenizer")  # fmt: skip
        kept.append(ids.astype(np.int32))
        starts.append(starts[-1] + len(ids))
    if not kept:
        raise TaskError("no items were given", why="there is nothing to capture", instead="at least one text")
    for name, where in spans.items():
        for item, _, length in cut:
            at = where[item]
            if at is not None and at[1] > length:
                raise TaskError(f'item {item} was cut at {length} tokens, which takes its span "{name}" away', why=f"the span is at tokens {at[0]} to {at[1]}",
                                instead="leave the item out, or shorten its text in front of the span")  # fmt: skip
    return Items(np.concatenate(kept), np.asarray(starts, np.int64), dict(spans), tuple(documents), dict(about), tuple(cut))  # fmt: skip
