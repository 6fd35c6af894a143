"""One instrumented forward: hooks put in, points read and written, hooks always taken out.

This file and `seam.py` are the only code that touches hooks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from microtome.model import taps as where
from microtome.model.binding import Binding
from microtome.model.taps import Tap
from microtome.points import POINTS
from microtome.trace.frame import Frame
from microtome.trace.seam import Softmax, attending, current
from microtome.trace.spill import Spill

_ORDER = {name: place for place, name in enumerate(POINTS)}
_ATTENTION = (where.QUERY, where.KEY, where.VALUE, where.SCORES, where.PATTERN)

_ADDED_IN_PLACE = (
    "mlp_raw",
    "mlp_out",
)  # falcon adds attention's output into the MLP's: a live read must not see it


class StopRun(Exception):
    """Raised inside a hook once everything that was asked for has been seen."""


@dataclass
class Receipt:
    """Proof that an edit happened: how often, at how many (row, position) places, how large the change was."""

    edit: str
    times: int = 0
    places: int = 0
    squared: Tensor | None = None
    measured: bool = True

    @property
    def size(self) -> float:
        """L2 norm of all changes together, in the point's units."""
        return float(self.squared.sqrt()) if self.squared is not None else 0.0


@dataclass
class Write:
    """An edit resolved to places.

    rows, cols: [pair]; index: [pair] heads or neurons, or None for the whole vector. `fn(old, which)` gets the old
    values [pair', ...] and which pairs they belong to (None: all) and returns the new ones.
    """

    point: str
    layer: int | None
    rows: Tensor
    cols: Tensor
    index: Tensor | None
    fn: Callable[[Tensor, Tensor | None], Tensor]
    receipt: Receipt | None = None

    def apply(self, view: Tensor, frame: Frame) -> Tensor:
        """The view with new values at this edit's places. Shapes: [batch, pos, ...] -> same."""
        keep, i, j = frame.locate(self.rows, self.cols)
        if not len(i):
            return view
        places: tuple[Tensor, ...] = (i, j)
        if self.index is not None:
            places = (i, j, self.index if keep is None else self.index[keep])
        old = view[places]
        new = self.fn(old, keep).to(view.dtype)
        if self.receipt is not None:
            _stamp(self.receipt, old, new)
        return view.index_put(places, new)


@dataclass
class Whole(Write):
    """An edit of everything in the call: `fn` gets all old values and returns all new ones."""

    def apply(self, view: Tensor, frame: Frame) -> Tensor:
        """The new values. Shapes: [batch, pos, ...] -> same, however the call has its rows."""
        new = self.fn(view, None)
        if self.receipt is not None:
            self.receipt.times += 1
            self.receipt.places += view.shape[0] * view.shape[1]
        return new.to(view.dtype).reshape(view.shape)


def whole(point: str, layer: int, fn: Callable[[Tensor], Tensor], receipt: Receipt | None = None) -> Whole:
    """A write of all values of a point in one call."""
    nowhere = torch.zeros(0, dtype=torch.long)
    return Whole(point, layer, nowhere, nowhere, None, lambda old, keep: fn(old), receipt)


def _stamp(receipt: Receipt, old: Tensor, new: Tensor) -> None:
    receipt.times += 1
    receipt.places += old.shape[0]
    if not receipt.measured:
        return
    change = (
        torch.where(old == new, 0, (new - old)).detach().float().nan_to_num(posinf=0, neginf=0).square().sum()
    )
    receipt.squared = change if receipt.squared is None else receipt.squared + change


@dataclass
class Read:
    """A capture of one point: whole, or only some (row, column) pairs."""

    point: str
    layer: int | None
    before: bool = False
    rows: Tensor | None = None
    cols: Tensor | None = None
    heads: Tensor | None = None
    live: bool = False
    spill: Spill | None = None
    value: Tensor | None = None

    def take(self, view: Tensor, frame: Frame) -> None:
        """Copy what was asked for. Shapes: [batch, pos, ...] -> the same, or [pair, ...]."""
        if self.heads is not None:
            view = view.index_select(2, self.heads)
        if self.rows is not None and self.cols is not None:
            _, i, j = frame.locate(self.rows, self.cols)
            self.value = view[i, j]
        else:
            self.value = view if self.live else view.clone()
        if self.spill is not None:
            self.value = self.spill.keep(self.name, self.value)

    @property
    def name(self) -> str:
        """The address read, as a file name."""
        layer = "" if self.layer is None else f"L{self.layer}."
        return layer + self.point + ("!before" if self.before else "")


@dataclass
class _Station:
    """All that happens at one tap."""

    tap: Tap
    before: list[Read] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    after: list[Read] = field(default_factory=list)

    def visit(self, view: Tensor, frame: Frame) -> tuple[Tensor, bool]:
        changed = bool(self.writes)
        if any(r.live for r in self.before):
            view, changed = _rooted(view), True
        for read in self.before:
            read.take(view, frame)
        for write in self.writes:
            view = write.apply(view, frame)
        if any(r.live for r in self.after):
            view, changed = _rooted(view), True
        for read in self.after:
            read.take(view, frame)
        if self.tap.point in _ADDED_IN_PLACE and any(r.live for r in (*self.before, *self.after)):
            view = view.clone()
        return view, changed


def _rooted(view: Tensor) -> Tensor:
    """A tensor of its own through which the gradient passes, or at which it begins (learned positions)."""
    view = view.clone()
    return view if view.requires_grad else view.requires_grad_()


def cache_kinds(binding: Binding) -> dict[str, Any]:
    """How to make a cache: plain keys and values, whole also under a sliding window (the mask hides what is outside);
    or, where some layers keep another state, what the config says."""
    return {"config": binding.config} if binding.mixes else {}


class Tapping(DynamicCache):
    """A cache whose keys and values pass through a session before they are kept."""

    def __init__(self, session: Session, keep: bool) -> None:
        super().__init__(**cache_kinds(session.binding))
        self.session, self.keep = session, keep

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Read and edit, then keep (generation) or pass on (one forward)."""
        key_states, value_states = self.session.cached(layer_idx, key_states, value_states)
        if self.keep:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        return key_states, value_states

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        """Tokens kept so far."""
        return super().get_seq_length(*args, **kwargs) if self.keep else 0


class Session:
    """Reads and writes around one forward (or around single layer calls, for replay).

    Use as a context manager; hooks and seam are removed on exit, also after an exception. `frame` may be replaced
    between calls.
    """

    def __init__(
        self,
        binding: Binding,
        reads: list[Read],
        writes: list[Write],
        frame: Frame,
        *,
        stop_at: str | None = None,
    ) -> None:
        self.binding, self.frame, self.stop_at = binding, frame, stop_at
        stations: dict[tuple[str, int | None], _Station] = {}
        ops: list[Read | Write] = [*reads, *writes]
        for op in ops:
            key = (op.point, op.layer)
            if key not in stations:
                stations[key] = _Station(binding.tap(*key))
            station = stations[key]
            if isinstance(op, Write):
                station.writes.append(op)
            else:
                (station.before if op.before else station.after).append(op)
        self.by_place: dict[tuple[str, str], list[_Station]] = defaultdict(list)
        for station in sorted(stations.values(), key=_order):
            self.by_place[_side(station.tap.how), station.tap.module].append(station)
        self._stack = ExitStack()
        self._modes: list[Softmax] = []
        self._keys = 0  # keys of the attention call under way, a sink's column not counted; 0 where unknown
        for station in stations.values():
            if station.tap.how == where.NORM:
                binding.norm(station.tap.module)  # probed now: inside a hook it would call itself

    @property
    def hows(self) -> set[str]:
        """The kinds of tap in use."""
        return {s.tap.how for stations in self.by_place.values() for s in stations}

    @property
    def needs_cache(self) -> bool:
        """True when keys or values must be read or edited on their way to the cache."""
        return bool(self.hows & {where.CACHE_K, where.CACHE_V})

    def __enter__(self) -> Session:
        try:
            for (side, path), _ in self.by_place.items():
                if side == "attention":
                    self._hook_attention(path)
                elif side != "cache":
                    self._hook(side, path)
            if self.stop_at is not None:
                handle = self.binding.module(self.stop_at).register_forward_pre_hook(self._stop)
                self._stack.callback(handle.remove)
            self._stack.enter_context(attending(self))
        except BaseException:
            self._stack.close()
            raise
        return self

    @property
    def acts(self) -> bool:
        """False in a run of another thread, or of an edit's own function: hooks are on the module that it uses too."""
        return current() is self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._modes:
            self._modes.pop().__exit__(None, None, None)
        self._stack.close()

    def _hook(self, side: str, path: str) -> None:
        module = self.binding.module(path)
        stations = self.by_place[side, path]
        if side == "input":
            handle = module.register_forward_pre_hook(
                lambda m, a, k: self._on_input(stations, a, k) if self.acts else None, with_kwargs=True
            )
        else:
            handle = module.register_forward_hook(
                lambda m, a, k, o: self._on_output(stations, a, k, o) if self.acts else None, with_kwargs=True
            )
        self._stack.callback(handle.remove)

    def _hook_attention(self, path: str) -> None:
        """Families outside the registry: open the softmax around the whole attention module."""
        layer = self.binding.layer_of_attention[id(self.binding.module(path))]
        if self.binding.slots[layer].registry:
            return
        module = self.binding.module(path)
        before = module.register_forward_pre_hook(lambda m, a: self._open(path) if self.acts else None)
        after = module.register_forward_hook(lambda m, a, o: self._close(path) if self.acts else None)
        self._stack.callback(before.remove)
        self._stack.callback(after.remove)

    def _stop(self, module: nn.Module, args: Any) -> None:
        if self.acts:
            raise StopRun

    def _open(self, path: str) -> None:
        mode = self._softmax(self.by_place["attention", path], self.frame)
        mode.__enter__()
        self._modes.append(mode)

    def _close(self, path: str) -> None:
        mode = self._modes.pop()
        mode.__exit__(None, None, None)
        mode.finish(path)

    def _softmax(self, stations: list[_Station], frame: Frame) -> Softmax:
        def run(how: str) -> Callable[[Tensor], Tensor]:
            found = [s for s in stations if s.tap.how == how]

            def edit(raw: Tensor) -> Tensor:
                for station in found:
                    keys = self._keys or raw.shape[-1]
                    view, changed = station.visit(raw.transpose(1, 2)[..., :keys], frame)
                    if changed:
                        view = view.transpose(1, 2)
                        raw = torch.cat([view, raw[..., keys:]], -1) if keys < raw.shape[-1] else view
                return raw

            return edit

        return Softmax(self, run(where.SCORES), run(where.PATTERN))

    def attend(
        self,
        call: Callable[..., Any],
        module: nn.Module,
        qkv: tuple[Tensor, Tensor, Tensor],
        mask: Tensor | None,
        kwargs: dict[str, Any],
    ) -> Any:
        """The attention function of one layer, seen (called by the seam)."""
        path = self.binding.slots[self.binding.layer_of_attention[id(module)]].at("attn") or ""
        stations = self.by_place.get(("attention", path), [])
        q, k, v = self.edit_qkv(stations, qkv)
        square = [s for s in stations if s.tap.how in (where.SCORES, where.PATTERN)]
        if not square:
            return call(module, q, k, v, mask, **kwargs)
        self._keys = k.shape[2]
        mode = self._softmax(square, self.frame)
        with mode:
            out = call(module, q, k, v, mask, **kwargs)
        self._keys = 0
        mode.finish(path)
        return out

    def edit_qkv(
        self, stations: list[_Station], qkv: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values as attention uses them. Shapes: [batch, head, pos, d_head]."""
        out = list(qkv)
        for place, how in enumerate((where.QUERY, where.KEY, where.VALUE)):
            for station in stations:
                if station.tap.how != how:
                    continue
                raw = out[place]
                frame = self.frame
                if how != where.QUERY and not frame.packed:
                    frame = Frame(frame.batch, raw.shape[2], 0)
                view, changed = station.visit(raw.transpose(1, 2), frame)
                out[place] = view.transpose(1, 2) if changed else raw
        return out[0], out[1], out[2]

    def cached(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values on their way to the cache. Shapes: [batch, kv_head, pos, d_head]."""
        path = self.binding.slots[layer].at("attn") or ""
        pair = [key, value]
        for station in self.by_place.get(("cache", path), []):
            place = 0 if station.tap.how == where.CACHE_K else 1
            pair[place] = self._through(station, pair[place])
        return pair[0], pair[1]

    def _through(self, station: _Station, raw: Tensor) -> Tensor:
        batch, pos = self.frame.shape
        view, changed = station.visit(station.tap.layout.read(raw, batch, pos), self.frame)
        return station.tap.layout.write(raw, view, batch, pos) if changed else raw

    def _on_input(self, stations: list[_Station], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = next((n for n in ("hidden_states", "x", *kwargs) if n in kwargs), "")
        raw: Tensor = args[0] if args else kwargs[name]
        new = raw
        for station in stations:
            if station.tap.how == where.INPLACE:
                _inplace(station, new, self.frame)
            else:
                new = self._through(station, new)
        if new is raw:
            return None
        if args:
            return (new, *args[1:]), kwargs
        return args, {**kwargs, name: new}

    def _on_output(
        self, stations: list[_Station], args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        if hasattr(output, "logits"):
            output.logits = self._all_through(stations, output.logits, args, kwargs)
            return output
        raw: Tensor = output[0] if isinstance(output, tuple) else output
        new = self._all_through(stations, raw, args, kwargs)
        if new is raw:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else new

    def _all_through(
        self, stations: list[_Station], raw: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        for station in stations:
            if station.tap.how == where.NORM:
                raw = self._norm(station, args[0] if args else kwargs["hidden_states"], raw)
            elif station.tap.how == where.HEADS:
                raw = self._heads(station, args[0], raw)
            else:
                raw = self._through(station, raw)
        return raw

    def _norm(self, station: _Station, x: Tensor, out: Tensor) -> Tensor:
        norm = self.binding.norm(station.tap.module)
        old = norm.scale(x)
        batch, pos = self.frame.shape
        layout = station.tap.layout
        view = layout.read(old, batch, pos)
        new, changed = station.visit(view, self.frame)
        if not changed:
            return out
        bias = norm.bias.to(out.dtype)
        if layout.kind == "shared_heads":  # one norm over all heads: each head's part by its own factor
            factor = (view / new).to(out.dtype).expand(-1, -1, -1, out.shape[-1] // layout.n)
            factor = factor.reshape(out.shape)
        else:
            factor = (old / layout.write(old, new, batch, pos)).to(out.dtype)
        return out + (out - bias) * (factor - 1)  # exactly `out` wherever the divisor stays

    def _heads(self, station: _Station, z: Tensor, out: Tensor) -> Tensor:
        batch, pos = self.frame.shape
        view = station.tap.layout.read(z, batch, pos)
        weight, bias = (
            self.binding.module(station.tap.module).weight,
            self.binding.module(station.tap.module).bias,
        )
        assert isinstance(weight, Tensor)
        if type(self.binding.module(station.tap.module)).__name__ != "Conv1D":
            weight = weight.T
        per_head = torch.einsum("bphd,hdm->bphm", view, weight.view(view.shape[2], view.shape[3], -1))
        new, changed = station.visit(per_head, self.frame)
        if not changed:
            return out
        # not detached: what an edit takes away must also leave the gradient upstream
        whole = new.sum(2) + (bias if isinstance(bias, Tensor) else 0)
        beside = out.reshape(whole.shape) + (new - per_head).sum(2)
        # where heads were edited their sum, so that nothing of a removed head is left for a post-norm to blow up
        edited = (new != per_head).flatten(2).any(-1, keepdim=True)
        return whole.where(edited, beside).reshape(out.shape)


def _inplace(station: _Station, raw: Tensor, frame: Frame) -> None:
    """Edit an input that its caller goes on using: the change must land in the same tensor."""
    batch, pos = frame.shape
    view = raw.reshape(batch, pos, raw.shape[-1])
    for read in station.before:
        read.take(view, frame)
    for write in station.writes:
        view = write.apply(view, frame)
    if station.writes:
        raw.copy_(view.reshape(raw.shape))
    for read in station.after:
        if read.live:
            read.value = raw
        else:
            read.take(raw.reshape(batch, pos, raw.shape[-1]), frame)


def _order(station: _Station) -> tuple[bool, int]:
    """At one module: a norm's divisor acts before anything that reads the norm's output; then model order."""
    return station.tap.how != where.NORM, _ORDER[station.tap.point]


def _side(how: str) -> str:
    if how in (where.INPUT, where.INPLACE):
        return "input"
    if how in _ATTENTION:
        return "attention"
    return "cache" if how in (where.CACHE_K, where.CACHE_V) else "output"
