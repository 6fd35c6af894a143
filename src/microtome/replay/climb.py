"""The staircase: rows join at the layer where they first differ, and climb together."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from microtome.replay.base import Base
from microtome.replay.call import Segment, call_layer
from microtome.trace import seam
from microtome.trace.frame import Frame
from microtome.trace.session import Write


@dataclass(frozen=True)
class Rows:
    """Rows to replay.

    Shapes [row]: base, the recorded row each continues; entry, the first layer with a change (n_layers: only the
    final stream changes); start and stop, the columns changed at that layer; end, behind the last column that is
    scored. `narrow` is True where every change is
    at the entry layer and at points whose change stays at its position, so that the entry layer need only be run on
    the changed columns.
    """

    base: Tensor
    entry: Tensor
    start: Tensor
    stop: Tensor
    end: Tensor
    narrow: Tensor

    def __len__(self) -> int:
        return int(self.base.shape[0])

    def take(self, which: Tensor) -> Rows:
        """Some of the rows."""
        return Rows(*(getattr(self, f)[which] for f in ("base", "entry", "start", "stop", "end", "narrow")))


def climb(base: Base, rows: Rows, writes: list[Write], scored: Tensor, *, live: bool = False) -> Tensor:
    """The final stream of every row at its scored columns.

    Parameters
    ----------
    writes: edits, rows numbered 0..len(rows); a write at layer n_layers' `resid_pre` edits the final stream.
    live: let gradients flow from the result to what the writes put in.

    Shapes: scored [base row, step] columns -> [row, step, d_model].
    """
    with torch.set_grad_enabled(live), seam.implementation(base.binding.hf, base.attention):
        return _climb(base, rows, writes, scored)


def _climb(base: Base, rows: Rows, writes: list[Write], scored: Tensor) -> Tensor:
    n_layers = len(base.binding.slots)
    by_layer: dict[int, list[Write]] = defaultdict(list)
    for write in writes:
        by_layer[write.layer or 0].append(write)
    active: dict[tuple[int, int], Segment] = {}
    for layer in range(int(rows.entry.min()), n_layers):
        here = rows.entry == layer
        for segment in _segments(base, rows, (here & ~rows.narrow).nonzero()[:, 0], layer, whole=True):
            _join(active, segment)
        narrow = _segments(base, rows, (here & rows.narrow).nonzero()[:, 0], layer, whole=False)
        stream, inside = _split(by_layer.get(layer, []))
        for segment in (*active.values(), *narrow):
            _edit_stream(segment, stream, len(rows))
        segments = [*active.values(), *narrow]
        for segment, hidden in zip(
            segments, call_layer(base, layer, segments, inside, len(rows)), strict=True
        ):
            segment.hidden = hidden
        for segment in narrow:
            _join(active, _widen(base, segment, layer + 1))
    last = _segments(base, rows, (rows.entry == n_layers).nonzero()[:, 0], n_layers, whole=True)
    for segment in last:
        _join(active, segment)
    for segment in active.values():
        _edit_stream(segment, by_layer.get(n_layers, []), len(rows))
    return _scored(base, rows, active, scored)


def tokens_of(rows: Rows, n_layers: int) -> Tensor:
    """Tokens per row that all its layer calls together compute. Shapes: [row]."""
    wide = (rows.end - rows.start) * (n_layers - rows.entry)
    narrow = (rows.stop - rows.start) + (rows.end - rows.start) * (n_layers - rows.entry - 1).clamp_min(0)
    return torch.where(rows.narrow & (rows.entry < n_layers), narrow, wide)


def _segments(base: Base, rows: Rows, which: Tensor, layer: int, *, whole: bool) -> list[Segment]:
    """New rows at a layer, grouped by their columns, with the recorded stream."""
    if not len(which):
        return []
    device = base.resid[0].device
    ends = rows.end[which]
    keys = torch.stack([rows.start[which], ends if whole else rows.stop[which], ends], 1)
    distinct, kind = keys.unique(dim=0, return_inverse=True)
    out = []
    for k, (start, stop, end) in enumerate(distinct.tolist()):
        number = which[kind == k].to(device)
        owner = rows.base[number.cpu()].to(device)
        hidden = base.resid[layer][owner, start:stop]
        out.append(Segment(start, stop, number, owner, hidden, end))
    return out


def _join(active: dict[tuple[int, int], Segment], new: Segment) -> None:
    old = active.get((new.start, new.stop))
    if old is None:
        active[new.start, new.stop] = new
        return
    old.hidden = torch.cat([old.hidden, new.hidden])
    old.number, old.base = torch.cat([old.number, new.number]), torch.cat([old.base, new.base])


def _widen(base: Base, segment: Segment, layer: int) -> Segment:
    """Changed columns put into the recorded stream of the next layer."""
    hidden = base.resid[layer][segment.base, segment.start : segment.end]
    hidden[:, : segment.stop - segment.start] = segment.hidden
    return Segment(segment.start, segment.end, segment.number, segment.base, hidden, segment.end)


def _split(writes: list[Write]) -> tuple[list[Write], list[Write]]:
    stream = [w for w in writes if w.point == "resid_pre"]
    return stream, [w for w in writes if w.point != "resid_pre"]


def _edit_stream(segment: Segment, writes: list[Write], rows: int) -> None:
    if not writes:
        return
    row_map = torch.full((rows,), -1, dtype=torch.long, device=segment.number.device)
    row_map[segment.number] = torch.arange(len(segment.number), device=row_map.device)
    frame = Frame(len(segment.number), segment.stop - segment.start, segment.start, row_map)
    for write in writes:
        segment.hidden = write.apply(segment.hidden, frame)


def _scored(base: Base, rows: Rows, active: dict[tuple[int, int], Segment], scored: Tensor) -> Tensor:
    final = base.resid[-1]
    owner = rows.base.to(final.device)
    cols = scored.to(final.device)[owner]
    out = final[owner[:, None], cols]
    for segment in active.values():
        mine = cols[segment.number] - segment.start
        inside = mine >= 0
        place = torch.arange(len(mine), device=mine.device)[:, None].expand_as(mine)
        found = segment.hidden[place, mine.clamp_min(0)]
        out[segment.number] = torch.where(inside[..., None], found, out[segment.number])
    return out
