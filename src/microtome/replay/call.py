"""Calling one layer again, on any rows and any part of their positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from microtome.replay.base import CACHES, PER_TOKEN, Base, mask_slice, per_token, pick_rows
from microtome.trace.frame import Frame
from microtome.trace.session import Read, Session, Tapping, Write


@dataclass
class Segment:
    """Rows that share their columns start..stop.

    Shapes: number [row] their numbers in the sweep; base [row] the recorded row each continues; hidden [row, stop -
    start, d_model]. `end` is where the rows end once all their columns are computed.
    """

    start: int
    stop: int
    number: Tensor
    base: Tensor
    hidden: Tensor
    end: int

    @property
    def tokens(self) -> int:
        """Tokens in the call."""
        return self.hidden.shape[0] * (self.stop - self.start)


@dataclass
class Ops:
    """What to read and write in one layer call. Reads come as the call has its rows: [1, token, ...] or [row, pos, ...]."""

    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)


class _PackedSession(Session):
    """All segments in one row of tokens; attention is split back into segments with their recorded prefix."""

    def __init__(
        self, base: Base, layer: int, segments: list[Segment], ops: Ops, frame: Frame, rows: int
    ) -> None:
        super().__init__(base.binding, ops.reads, ops.writes, frame)
        self.base, self.layer, self.segments, self.rows = base, layer, segments, rows

    def attend(self, call: Callable[..., Any], module: nn.Module, qkv: tuple[Tensor, Tensor, Tensor], mask: Tensor | None,
               kwargs: dict[str, Any]) -> Any:  # fmt: skip
        path = self.binding.slots[self.layer].at("attn") or ""
        stations = self.by_place.get(("attention", path), [])
        q, k, v = self.edit_qkv(stations, qkv)
        square = [s for s in stations if s.tap.how in ("scores", "pattern")]
        recorded = self.base.calls[self.layer]
        assert recorded.key is not None and recorded.value is not None
        out = None
        begin = 0
        for segment in self.segments:
            n, width = segment.hidden.shape[:2]
            own = slice(begin, begin + n * width)
            begin = own.stop
            mine = [x[0, :, own].view(x.shape[1], n, width, x.shape[3]).transpose(0, 1) for x in (q, k, v)]
            keys = _after(recorded.key, segment, mine[1])
            values = _after(recorded.value, segment, mine[2])
            part = mask_slice(recorded.mask, segment.base, segment.start, segment.stop, self.base.n)
            done = self._segment(call, module, (mine[0], keys, values), part, kwargs, square, segment, path)
            if out is None:
                out = done.new_empty(1, q.shape[2], *done.shape[2:])
            out[0, own] = done.reshape(n * width, *done.shape[2:])
        return out, None

    def _segment(self, call: Callable[..., Any], module: nn.Module, qkv: tuple[Tensor, Tensor, Tensor], mask: Tensor | None,
                 kwargs: dict[str, Any], square: list[Any], segment: Segment, path: str) -> Tensor:  # fmt: skip
        if not square:
            plain: Tensor = call(module, *qkv, mask, **kwargs)[0]
            return plain
        row_map = torch.full((self.rows,), -1, dtype=torch.long, device=segment.number.device)
        row_map[segment.number] = torch.arange(len(segment.number), device=row_map.device)
        self._keys = qkv[1].shape[2]
        mode = self._softmax(
            square, Frame(segment.hidden.shape[0], segment.hidden.shape[1], segment.start, row_map)
        )
        with mode:
            out: Tensor = call(module, *qkv, mask, **kwargs)[0]
        self._keys = 0
        mode.finish(path)
        return out


def _after(recorded: Tensor, segment: Segment, new: Tensor) -> Tensor:
    """The recorded prefix of each row, then its new part. Shapes: [row, head, pos, d]."""
    if segment.start == 0:
        return new
    prefix = recorded[:, :, : segment.start]
    prefix = (
        prefix.expand(new.shape[0], -1, -1, -1)
        if recorded.shape[0] == 1
        else prefix.index_select(0, segment.base)
    )
    return torch.cat([prefix, new], 2)


class _Prefix(DynamicCache):
    """A cache that puts the recorded prefix before what it receives."""

    def __init__(self, base: Base, segment: Segment, session: Session) -> None:
        super().__init__()
        self.base, self.segment, self.session = base, segment, session

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Prefix and new part."""
        key_states, value_states = self.session.cached(layer_idx, key_states, value_states)
        pair = self.base.calls[layer_idx].cached
        assert pair is not None
        return _after(pair[0], self.segment, key_states), _after(pair[1], self.segment, value_states)

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        """Tokens before the segment."""
        return self.segment.start


def call_layer(
    base: Base,
    layer: int,
    segments: list[Segment],
    writes: list[Write],
    rows: int,
    reads: Sequence[Read] = (),
) -> list[Tensor]:
    """Run one layer on several segments, under the base's attention implementation (the caller sets it).

    Parameters
    ----------
    writes: edits at this layer, with rows numbered as in the sweep (0..rows).
    reads: points of this layer to copy; with a single segment only.

    Returns the new hidden of each segment.
    """
    if not segments:
        return []
    ops = Ops(writes, list(reads))
    if base.mode == "packed":
        return _packed(base, layer, segments, ops, rows)
    return [_rectangle(base, layer, segment, ops, rows) for segment in segments]


def _packed(base: Base, layer: int, segments: list[Segment], ops: Ops, rows: int) -> list[Tensor]:
    device = segments[0].hidden.device
    columns = [torch.arange(s.start, s.stop, device=device).repeat(len(s.number)) for s in segments]
    owners = [s.base.repeat_interleave(s.stop - s.start) for s in segments]
    cols, own = torch.cat(columns), torch.cat(owners)
    total = len(cols)
    frame = Frame(1, total)
    if ops.writes:
        frame = _packed_frame(segments, total, rows, device)
    session = _PackedSession(base, layer, segments, ops, frame, rows)
    kwargs = dict(base.calls[layer].kwargs)
    for name, value in kwargs.items():
        if name in PER_TOKEN:
            kwargs[name] = per_token(value, own, cols)
        elif name == "attention_mask":
            kwargs[name] = None
        elif name in CACHES:
            kwargs[name] = Tapping(session, keep=False)
    hidden = torch.cat([s.hidden.reshape(-1, s.hidden.shape[-1]) for s in segments])[None]
    with session:
        out = base.binding.layers[layer](hidden, **kwargs)
    out = out[0] if isinstance(out, tuple) else out
    sizes = [s.tokens for s in segments]
    return [part.view(s.hidden.shape) for s, part in zip(segments, out[0].split(sizes), strict=True)]


def _packed_frame(segments: list[Segment], total: int, rows: int, device: torch.device) -> Frame:
    offsets = torch.full((rows,), -1, dtype=torch.long, device=device)
    starts, stops = torch.zeros_like(offsets), torch.zeros_like(offsets)
    begin = 0
    for s in segments:
        width = s.stop - s.start
        offsets[s.number] = begin + width * torch.arange(len(s.number), device=device)
        starts[s.number], stops[s.number] = s.start, s.stop
        begin += s.tokens
    return Frame(1, total, offsets=offsets, starts=starts, stops=stops)


def _rectangle(base: Base, layer: int, segment: Segment, ops: Ops, rows: int) -> Tensor:
    n, width = segment.hidden.shape[:2]
    row_map = torch.full((rows,), -1, dtype=torch.long, device=segment.number.device)
    row_map[segment.number] = torch.arange(n, device=row_map.device)
    session = Session(base.binding, ops.reads, ops.writes, Frame(n, width, segment.start, row_map))
    kwargs = {k: _slice(base, k, v, segment) for k, v in base.calls[layer].kwargs.items()}
    for name in CACHES:
        if name in kwargs:
            kwargs[name] = _Prefix(base, segment, session) if base.mode == "sliced" else _none_kept(session)
    with session:
        out = base.binding.layers[layer](segment.hidden, **kwargs)
    return out[0] if isinstance(out, tuple) else out


def _none_kept(session: Session) -> Tapping | None:
    """Whole prompts need no cache, unless keys or values are edited on their way to it."""
    return Tapping(session, keep=False) if session.needs_cache else None


def _slice(base: Base, name: str, value: Any, segment: Segment) -> Any:
    """A recorded argument for some rows and positions, by name and never by shape."""
    if isinstance(value, tuple) and name in PER_TOKEN:
        return tuple(_slice(base, name, v, segment) for v in value)
    if not isinstance(value, Tensor):
        return value
    span = slice(segment.start, segment.stop)
    if name == "attention_mask":
        if value.dim() == 4:
            return mask_slice(value, segment.base, segment.start, segment.stop, base.n)
        return pick_rows(value, segment.base, base.n)
    if name == "alibi":
        heads = value.shape[0] // base.n
        return (
            value.view(base.n, heads, *value.shape[1:])
            .index_select(0, segment.base)
            .flatten(0, 1)[..., : segment.stop]
        )
    if name in PER_TOKEN:
        if value.dim() == 1:
            return value[span]
        part = value[:, span]
        return (
            part.expand(len(segment.base), *part.shape[1:])
            if part.shape[0] == 1
            else pick_rows(part, segment.base, base.n)
        )
    return pick_rows(value, segment.base, base.n) if value.dim() else value
