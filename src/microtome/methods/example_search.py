"""One pass over a corpus for all units of a point at once, in a memory that does not grow with the corpus.

Kept per unit: the k largest activations, one per block, so that one passage does not fill the list. Kept of all units together:
their activations at some thousand token positions drawn at random before the pass, which give the quantiles and the random
examples. Half of the documents are looked at for examples; the other half is held out, and predictions are tried on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from microtome.activations.items import Items, items_of
from microtome.activations.layout import batches, windows
from microtome.errors import ControlError, ModelError
from microtome.methods.units import Units, watch
from microtome.model.tokens import pack
from microtome.results import seeds
from microtome.results.technique import progress
from microtome.trace.run import forward, prepare

if TYPE_CHECKING:
    from microtome.facade import Model

__all__ = ["Found", "blocks_of", "search"]

WINDOW = 1 << 14  # tokens among which blocks of like length are batched


@dataclass(frozen=True)
class Found:
    """What one pass found for units and, after them, null directions ("column": both).

    items: the blocks. document: [item] number of the document. shown: [item] True in the half that examples are taken from.
    value, item, at: [column, k] the largest activations, falling; -inf where there were fewer blocks. first: [column, k] the
    largest at blocks' first tokens, which `value` leaves out unless asked for.
    sample: [row, column] activations at random positions `sample_item`, `sample_at` [row].
    """

    items: Items
    document: np.ndarray
    shown: np.ndarray
    value: np.ndarray
    item: np.ndarray
    at: np.ndarray
    first: np.ndarray
    sample: np.ndarray
    sample_item: np.ndarray
    sample_at: np.ndarray

    @property
    def train(self) -> np.ndarray:
        """[row] True where the sample's row is from a document that examples are taken from."""
        return np.asarray(self.shown[self.sample_item])

    def tokens(self, back: int = 0) -> np.ndarray:
        """The token at each row of the sample, or `back` before it (-1: none). Shapes: [row]."""
        at = self.sample_at - back
        ids = self.items.ids[self.items.starts[self.sample_item] + np.maximum(at, 0)].astype(np.int64)
        return np.where(at < 0, -1, ids)


def blocks_of(model: Model, corpus: Any, context: int, tokens: int, seed: int) -> Items:
    """Blocks of at most `context` tokens, each of one document, of at most `tokens` tokens together.

    A corpus makes its own (`corpus.blocks`); texts and ids are cut up, one document each.

    Raises
    ------
    TaskError: no text. ControlError: fewer than two documents: none could be held out.
    """
    if model.facts.n_ctx is not None:
        context = min(context, model.facts.n_ctx)
    if hasattr(corpus, "blocks"):
        items = items_of(model, list(corpus.blocks(model, context=context, tokens=tokens, seed=seed)))
    else:
        items = items_of(model, corpus, long="whole").blocks(context, tokens)
    documents = set(items.documents) if items.documents else range(len(items))
    if len(documents) < 2:
        raise ControlError("the corpus has one document", why="half of the documents are held out to try descriptions on",
                           instead="at least two texts, better a hundred")  # fmt: skip
    return items


def halves(items: Items, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Number of each item's document, and whether its document is in the half that is shown. Shapes: [item], [item]."""
    named = items.documents or tuple(range(len(items)))
    codes: dict[Any, int] = {}
    document = np.array([codes.setdefault(d, len(codes)) for d in named])
    size = np.bincount(document, items.lengths)
    shown = np.zeros(len(codes), bool)
    held = taken = 0.0
    for code in seeds.rng(seed, "examples/halves").permutation(len(codes)):
        if taken <= held:
            shown[code], taken = True, taken + size[code]
        else:
            held += size[code]
    return document, shown[document]


def search(
    model: Model,
    items: Items,
    units: Units,
    null: Callable[[Tensor], Tensor] | None,
    *,
    k: int,
    sample: int,
    first: bool,
    batch: int,
    seed: int,
) -> Found:
    """The pass. first: whether a block's first token may be an example.

    Raises
    ------
    ModelError: an activation is not finite (unit, block and position are named). ControlError: blocks of one token.
    """
    document, shown = halves(items, seed)
    rows_item, rows_at = _positions(items, shown, sample, first, seed)
    by_item = np.searchsorted(rows_item, np.arange(len(items) + 1))
    tokens = pack([items[0][:2]])
    plan = prepare(model.binding, tokens, capture=[units.site.whole], edits=(), attention=None)

    def columns(view: Tensor) -> Tensor:
        own = units.read(view)
        return own if null is None else torch.cat([own, null(view)], -1)

    seen = watch(units.site, columns)
    best: _Best | None = None
    values = np.empty((0, 0), np.float32)
    alike = "right padding" in model.binding.limits
    done = 0
    for window in windows(items, [], 1, WINDOW):
        for members in batches(items, window, batch, alike=alike):
            tokens = pack([items[i] for i in members])
            forward(model.binding, tokens, [seen], [], logits=None, attention=plan.attention)
            assert seen.value is not None
            got, seen.value = seen.value.detach().cpu(), None
            if best is None:
                best = _Best(got.shape[-1], k, first)
                values = np.empty((len(rows_item), got.shape[-1]), np.float32)
            _refuse(got, tokens.mask, members, units)
            for place, item in enumerate(members):
                mine = slice(by_item[item], by_item[item + 1])
                values[mine] = got[place, rows_at[mine]].numpy()
            chosen = [place for place, item in enumerate(members) if shown[item]]
            if chosen:
                best.add(got[chosen], tokens.mask[chosen], torch.tensor([members[p] for p in chosen]))
            done += int(tokens.mask.sum())
        progress(done, len(items.ids), "tokens", f"reading {units.site}")
    assert best is not None
    return Found(items, document, shown, best.value.numpy(), best.item.numpy(), best.at.numpy(), best.at_first.numpy(),
                 values, rows_item, rows_at)  # fmt: skip


class _Best:
    """The k largest of each column so far."""

    def __init__(self, columns: int, k: int, first: bool) -> None:
        self.k, self.first = k, first
        self.value = torch.full((columns, k), -torch.inf)
        self.item = torch.full((columns, k), -1)
        self.at = torch.full((columns, k), -1)
        self.at_first = torch.full((columns, k), -torch.inf)

    def add(self, got: Tensor, mask: Tensor, items: Tensor) -> None:
        """Take a batch in. Shapes: got [prompt, pos, column], mask [prompt, pos], items [prompt]."""
        start = got[:, 0].T
        self.at_first = torch.cat([self.at_first, start], 1).topk(self.k, 1).values
        keep = mask.clone()
        keep[:, 0] &= self.first
        if not bool(mask.all() and self.first):
            got = got.masked_fill(~keep[..., None], -torch.inf)
        value, at = got.max(1)
        value, at = torch.cat([self.value, value.T], 1), torch.cat([self.at, at.T], 1)
        item = torch.cat([self.item, items.expand(len(value), -1)], 1)
        order = torch.sort(value, dim=1, descending=True, stable=True).indices[
            :, : self.k
        ]  # of equals the earlier stays
        self.value, self.at, self.item = (t.gather(1, order) for t in (value, at, item))


def _positions(items: Items, shown: np.ndarray, n: int, first: bool, seed: int) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(item, position) of the random sample, sorted: half of it from each half of the documents."""
    low = 0 if first else 1
    free = np.maximum(items.lengths - low, 0)
    found = []
    for name, half in (("shown", shown), ("held out", ~shown)):
        own = np.where(half, free, 0)
        ends = np.cumsum(own)
        if not len(ends) or not ends[-1]:
            raise ControlError(f"the {name} half of the corpus has no token to look at", why="a block's first token is left out, where attention sinks lie",
                               instead="longer texts, or first=True")  # fmt: skip
        total = int(ends[-1])
        draw = np.sort(seeds.rng(seed, f"examples/sample/{name}").choice(total, min(total, n // 2), replace=False))  # fmt: skip
        item = np.searchsorted(ends, draw, side="right")
        found.append(np.stack([item, draw - (ends[item] - own[item]) + low]))
    both = np.concatenate(found, 1)
    order = np.lexsort((both[1], both[0]))
    return both[0, order], both[1, order]


def _refuse(got: Tensor, mask: Tensor, members: list[int], units: Units) -> None:
    if all(bool(torch.isfinite(end)) for end in torch.aminmax(got)):  # NaN is both the least and the largest
        return
    bad = (~torch.isfinite(got) & mask[..., None]).nonzero()
    if len(bad):
        prompt, at, column = (int(v) for v in bad[0])
        name = units.names[column] if column < len(units.names) else str(units.site)
        raise ModelError(f"{name}, block {members[prompt]}, position {at}: the activation is not finite", why="NaN or infinity would be the largest of all",
                         instead="load the model with dtype=torch.float32, check its weights, or leave the text out")  # fmt: skip
