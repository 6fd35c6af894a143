"""The streams of readers: what writers wrote in the present runs, held against the donor's, and summed by a mask.

A reader's stream is the present one plus, for every patched edge into it, donor minus present of the writer. Where nearly
every edge is patched the same sum is shorter from the other end: the donor's stream, less the few writers that are not
patched; readers for which there are none share that stream, and their norm is computed once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from microtome.graph.runs import Ground

ROUNDING = 32
"""Epsilons of the largest number in a stream below which what is left of it is rounding."""
FEW = 0.08
"""Share of a block's edges up to which adding writers one by one is cheaper than a product with all of them (measured)."""
SMALL = 2_000_000
"""Multiplications of one mask and span below which a product is so cheap that nothing else is tried."""


@dataclass
class Streams:
    """What neighbouring readers read. own: numbers of the readers with a stream of their own; the others read `shared`.

    Shapes: x [own reader, mask, row, pos, d_model]; shared [mask, row, pos, d_model], or None where every reader has its own.
    """

    x: Tensor
    own: list[int]
    shared: Tensor | None = None

    def part(self, first: int, last: int) -> Streams:
        """Those of the readers first..last, numbered from 0."""
        inside = [i for i, reader in enumerate(self.own) if first <= reader < last]
        x = self.x[inside[0] : inside[-1] + 1] if inside else self.x[:0]
        return Streams(x, [self.own[i] - first for i in inside], self.shared)


class Stack:
    """What writers wrote in the present runs, as donor minus present, grown layer by layer.

    Writers of layers that are not computed again are kept once for all masks. Writers come first, so that a mask times the
    stack is one matrix product; with spans, one over each span's own places, which lie side by side. Shapes: low [writer,
    place], high [mask, writer, place], a place being (row, pos, d_model).
    """

    def __init__(self, ground: Ground, layer: int, masks: int, *, grad: bool) -> None:
        self.ground, self.masks, self.grad = ground, masks, grad
        self.split = self.size = ground.graph.written_before(layer)
        self.order, self.places = _by_span(ground)
        self.low = self._sorted(ground.difference[: self.split].flatten(1, 2)).flatten(1)
        self.blocks: list[Tensor] = []
        self.high: Tensor | None = None
        self._total: Tensor | None = None
        self._summed = 0
        if not grad:
            more = len(ground.graph.writers) - self.split
            self.high = self.low.new_empty(masks, more, self.low.shape[1])

    def add(self, present: Tensor) -> None:
        """What the next writers wrote. Shapes: [mask * row, pos, writer, d_model]."""
        n = present.shape[2]
        donor = self.ground.donor[:, :, self.size : self.size + n].permute(2, 0, 1, 3)
        now = present.unflatten(0, (self.masks, -1)).permute(0, 3, 1, 2, 4)
        if self.high is None:
            self.blocks.append(self._sorted((donor - now).flatten(2, 3)).flatten(2))
        else:
            begin = self.size - self.split
            room = self.high[:, begin : begin + n]
            if self.order is None:
                torch.sub(donor, now, out=room.view(now.shape))
            else:
                room.copy_(self._sorted((donor - now).flatten(2, 3)).flatten(2))
        self.size += n

    def streams(self, patched: Tensor, stream: Tensor) -> Streams | None:
        """What readers read under a mask; None where no edge into them is patched.

        Shapes: patched [mask, span, reader, writer]; stream [mask * row, pos, d_model], the present one.
        """
        here = self._here(patched)
        if not (here.requires_grad or bool(here.any())):
            return None
        shape = self.ground.clean.shape
        stream = stream.view(self.masks, shape[0], shape[1], shape[3])
        if self.grad or not self._worth(here):
            return Streams(self._rounded(stream + self._product(here)), list(range(patched.shape[2])))
        return self._short(here, stream)

    def _here(self, patched: Tensor) -> Tensor:
        """A mask's parts of the spans that have places. Shapes: [mask, span, reader, writer] -> same."""
        if len(self.places) == patched.shape[1]:
            return patched
        return patched[:, [number for number, _ in self.places]]

    def _worth(self, patched: Tensor) -> bool:
        """Whether a mask's sparseness can pay: never on devices that multiply faster than they start many small sums."""
        work = patched.shape[2] * patched.shape[3] * max(place.stop - place.start for _, place in self.places)
        return patched.dtype == torch.bool and self.low.device.type == "cpu" and work >= SMALL

    def _product(self, patched: Tensor) -> Tensor:
        """The change by matrix products. Shapes: [mask, span, reader, writer] -> [reader, mask, row, pos, d_model]."""
        shape = (patched.shape[2], patched.shape[0])
        parts = []
        for i, (_, place) in enumerate(self.places):
            part = self._one(patched[:, i], place)
            parts.append(self.low.new_zeros(*shape, place.stop - place.start) if part is None else part)
        return self._unsorted(parts[0] if len(parts) == 1 else torch.cat(parts, 2))

    def _one(self, patched: Tensor, place: slice) -> Tensor | None:
        """The change of one span's mask at its places. Shapes: [mask, reader, writer] -> [reader, mask, place]."""
        if not (patched.requires_grad or bool(patched.any())):
            return None
        patched = patched.to(self.low.dtype)
        low, high = patched[..., : self.split], patched[..., self.split :]
        out = None
        if low.requires_grad or bool(low.any()):
            out = (low.transpose(0, 1).flatten(0, 1) @ self.low[:, place]).unflatten(0, (-1, low.shape[0]))
        if self.high is None:
            begin = 0
            for block in self.blocks:
                part = (high[..., begin : begin + block.shape[1]] @ block[..., place]).transpose(0, 1)
                begin += block.shape[1]
                out = part if out is None else out + part
        elif bool(high.any()):
            part = (high @ self.high[:, : high.shape[2], place]).transpose(0, 1)
            out = part if out is None else out + part
        return out

    def _short(self, patched: Tensor, stream: Tensor) -> Streams:
        """Streams from whichever end is nearer. Shapes: patched [mask, span, reader, writer], stream [mask, row, pos, d_model]."""
        counts = patched.sum(3)
        readers, writers = patched.shape[2], patched.shape[3]
        every = (counts == writers).all(0).all(0).tolist()
        own = [r for r in range(readers) if not every[r]]
        most = len(own) < readers or bool((2 * counts.sum(2) > readers * writers).any())
        donor = self._donor_stream(stream) if most else None
        flat = self._sorted(stream.flatten(1, 2)).flatten(1)
        out = flat.new_empty(len(own), self.masks, flat.shape[1])
        for i, (_, place) in enumerate(self.places):
            for mask in range(self.masks):
                part = patched[mask, i] if len(own) == readers else patched[mask, i, own]
                if part.numel():
                    self._fill(out[:, mask, place], part, mask, place, flat, donor)
        shared = None
        if len(own) < readers:
            assert donor is not None
            shared = self._rounded(self._unsorted(donor[None])[0])
        return Streams(self._rounded(self._unsorted(out)), own, shared)

    def _fill(self, out: Tensor, patched: Tensor, mask: int, place: slice, stream: Tensor, donor: Tensor | None) -> None:  # fmt: skip
        """One mask's streams at one span's places, in place. Shapes: out [reader, place], patched [reader, writer]."""
        most = donor is not None and 2 * int(patched.sum()) > patched.numel()
        terms = ~patched if most else patched
        start = (donor if most and donor is not None else stream)[mask, place]
        if int(terms.sum()) > FEW * terms.numel():
            torch.add(stream[mask, place], self._all(patched, mask, place), out=out)
            return
        for reader, row in enumerate(terms):
            which = row.nonzero()[:, 0]
            if not len(which):
                out[reader] = start
                continue
            cut = int((which < self.split).sum())
            total = self._added(which[:cut], self.low, place)
            assert self.high is not None
            total = self._added(which[cut:] - self.split, self.high[mask], place, total)
            assert total is not None
            torch.add(start, total, alpha=-1 if most else 1, out=out[reader])

    def _all(self, patched: Tensor, mask: int, place: slice) -> Tensor:
        """As `_one`, of one mask. Shapes: [reader, writer] -> [reader, place]."""
        assert self.high is not None
        patched = patched.to(self.low.dtype)
        low, high = patched[:, : self.split], patched[:, self.split :]
        out = high @ self.high[mask, : high.shape[1], place]
        return out.addmm_(low, self.low[:, place]) if bool(low.any()) else out

    @staticmethod
    def _added(which: Tensor, rows: Tensor, place: slice, to: Tensor | None = None) -> Tensor | None:
        """The sum of some rows, and of what there is already."""
        if not len(which):
            return to
        found = rows[which, place]
        total = found[0] if len(which) == 1 else found.new_ones(1, len(which)).mm(found)[0]
        return total if to is None else to + total

    def _donor_stream(self, stream: Tensor) -> Tensor:
        """The stream with every writer's output the donor's. Shapes: [mask, row, pos, d_model] -> [mask, place].

        The differences are summed in double, so that it is the donor's stream up to one rounding.
        """
        assert self.high is not None
        if self._total is None:
            self._total = self.low.sum(0, dtype=torch.float64).repeat(self.masks, 1)
            self._summed = self.split
        if self._summed < self.size:
            new = self.high[:, self._summed - self.split : self.size - self.split]
            self._total += new.sum(1, dtype=torch.float64)
            self._summed = self.size
        return (self._sorted(stream.flatten(1, 2)).flatten(1) + self._total).to(stream.dtype)

    def _rounded(self, x: Tensor) -> Tensor:
        """Exactly 0 where nothing is left of a stream but rounding, which a norm would blow up to full size.

        Shapes: [..., row, pos, d_model] -> same.
        """
        if self.ground.size is None:
            return x
        rounding = ROUNDING * torch.finfo(x.dtype).eps * self.ground.size[..., None]
        return x.masked_fill(x.detach().abs().amax(-1, keepdim=True) <= rounding, 0.0)

    def _sorted(self, values: Tensor) -> Tensor:
        """Places of a span side by side. Shapes: [..., row * pos, d_model] -> same."""
        return values if self.order is None else values.index_select(-2, self.order)

    def _unsorted(self, values: Tensor) -> Tensor:
        """Places as they are in the prompts. Shapes: [..., place] -> [..., row, pos, d_model]."""
        rows, width, _, d = self.ground.clean.shape
        out = values.unflatten(-1, (rows * width, d))
        if self.order is not None:
            out = out.index_select(-2, torch.argsort(self.order))
        return out.unflatten(-2, (rows, width))


def _by_span(ground: Ground) -> tuple[Tensor | None, list[tuple[int, slice]]]:
    """Positions in order of their spans (None: as they are), and where the places of each span begin and end."""
    rows, width, _, d = ground.clean.shape
    if ground.span is None:
        return None, [(0, slice(0, rows * width * d))]
    flat = ground.span.flatten()
    places, begin = [], 0
    for number in sorted(ground.spans_here):
        size = int((flat == number).sum()) * d
        places.append((number, slice(begin, begin + size)))
        begin += size
    return torch.argsort(flat, stable=True), places
