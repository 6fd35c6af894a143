"""Path patching: a sender's change carried to receivers along chosen paths only, everything else as on the base run.

First every path is walked: each mediator is computed again from its base stream plus the changes of the sender and of
earlier mediators, and what it then writes, minus what it wrote on the base run, is its own change. A receiver reads its base
stream plus the changes that reach it. Then the base run goes on with the receivers' values set, and everything behind them
runs freely; or only what the receivers' own heads and MLPs write straight to the logits changes. (Wang et al. 2023,
Goldowsky-Dill et al. 2023. Several receivers are set together, each to the value it has when the others are not, as there.)
Layers below the first change and columns before the first difference are never computed again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from microtome.graph.nodes import ATTENTION_KINDS, Graph
from microtome.graph.reading import POINT, Reading
from microtome.graph.runs import Ground, heads_written, layer_reads, taken
from microtome.replay.call import Segment, call_layer
from microtome.trace.session import Read, Receipt, Whole, whole

SCALES = ("ln1_scale", "ln1_post_scale", "ln2_post_scale")
Carried = dict[tuple[int, str], Tensor]
"""(layer, kind) of receivers -> the change of what they read. Shapes: [path, row, pos, d_model]."""


@dataclass(frozen=True)
class Paths:
    """Which paths carry a change. receivers, mediators: numbers of readers and of writers.

    norms: the divisors of the norms through which mediators and receivers read, and mediators write, stay those of the base
    run. patterns: mediating heads keep the base run's attention pattern, so that only their values pass something on.
    onwards: what is behind the receivers runs freely; False: only their own heads and MLPs, straight to the logits.
    """

    receivers: tuple[int, ...]
    mediators: tuple[int, ...] = ()
    norms: bool = False
    patterns: bool = False
    onwards: bool = True

    def reach(self, graph: Graph) -> int:
        """How many writers can begin a path: those that a receiver sees (mediators only lengthen the way)."""
        return max(graph.readers[r].reach for r in self.receivers)

    def between(self, graph: Graph) -> tuple[int, ...]:
        """The mediators that some receiver sees."""
        return tuple(w for w in sorted(self.mediators) if w < self.reach(graph))

    def groups(self, graph: Graph) -> dict[tuple[int, str], list[int]]:
        """Receivers by layer and kind, as their indices among the readers of that kind."""
        out: dict[tuple[int, str], list[int]] = {}
        for r in sorted(self.receivers):
            reader = graph.readers[r]
            out.setdefault((reader.layer, reader.kind), []).append(
                r - graph.readers_at(reader.layer, reader.kind).start
            )
        return out


@dataclass
class Count:
    """Patched runs and writes inside layer calls that were to happen, and those that were made or left a receipt."""

    planned: int = 0
    fired: int = 0


@dataclass
class Way:
    """One group of recorded prompts on which paths are walked; what its layers read on the base run is kept."""

    ground: Ground
    paths: Paths
    count: Count
    kept: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def graph(self) -> Graph:
        """The graph of the recorded runs."""
        return self.ground.graph

    @property
    def reading(self) -> Reading:
        """What readers make of streams."""
        return self.ground.reading

    def stream(self, layer: int) -> Tensor:
        """What a layer received on the base run. Shapes: [row, pos, d_model]."""
        return self.ground.base.resid[layer][:, self.ground.start :]

    def read_by(self, layer: int, kind: str) -> Tensor:
        """The base stream that readers of a kind see. Shapes: [row, pos, d_model]."""
        if kind == "mlp" and not self.graph.shape[layer][3]:
            return self.base(layer)["resid_mid"]
        return self.stream(layer)

    def base(self, layer: int) -> dict[str, Tensor]:
        """Points of a layer on the base run, from one call of it. Shapes: [row, pos, ...]."""
        if layer not in self.kept:
            points = ["z", "resid_mid", *SCALES] + (["q_pre", "k_pre"] if self.paths.patterns else [])
            reads = [Read(p, layer) for p in points if self.reading.binding.lacking(p, layer) is None]
            hidden = self.stream(layer)
            self.call(layer, hidden, [], reads)
            shape = (hidden.shape[0], hidden.shape[1])
            self.kept[layer] = {read.point: taken(read, shape) for read in reads}
        return self.kept[layer]

    def call(self, layer: int, hidden: Tensor, writes: list[Whole], reads: list[Read]) -> Tensor:
        """One layer on rows that continue the recorded ones. Shapes: hidden [path * row, pos, d_model] -> same."""
        ground = self.ground
        receipts = []
        for write in writes:
            write.receipt = Receipt(write.point)
            receipts.append(write.receipt)
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        segment = Segment(ground.start, ground.base.width, rows, rows % ground.rows, hidden, ground.base.width)  # fmt: skip
        out = call_layer(ground.base, layer, [segment], list(writes), len(rows), reads)[0]
        self.count.planned += len(writes)
        self.count.fired += sum(receipt.times for receipt in receipts)
        return out

    def fixed(self, layer: int, point: str) -> list[Whole]:
        """A write that keeps a point as on the base run; none where the layer lacks it."""
        value = self.base(layer).get(point)
        return [] if value is None else [whole(point, layer, lambda old: _repeated(value, old))]

    def post_scales(self, layer: int) -> list[Whole]:
        """Post-norms kept at their base divisors, where norms are frozen."""
        return [w for p in SCALES[1:] for w in self.fixed(layer, p)] if self.paths.norms else []

    def values(self, layer: int, kind: str, stream: Tensor, change: Tensor, which: list[int]) -> Tensor:
        """What all readers of a kind make of their streams when some of them see a changed base stream.

        Shapes: stream [path * row, pos, d_model], what the others see; change [path, row, pos, d_model]
        -> [token, reader, d_head], or [token, 1, d_model] of an MLP.
        """
        reading, graph = self.reading, self.graph
        own = self.read_by(layer, kind)
        x = stream.flatten(0, 1)[:, None].repeat(1, len(graph.readers_at(layer, kind)), 1)
        changed = (own + change).flatten(0, 2)[:, None]
        path = reading.norm_path(layer, kind)
        if not self.paths.norms or path is None:
            x[:, which] = changed
            return reading.value(layer, kind, x)
        norm = reading.binding.norm(path)
        moved = reading.normed(layer, kind, own) + norm.linear(change, norm.scale(own)).to(own.dtype)
        x = reading.normed(layer, kind, x)
        x[:, which] = moved.flatten(0, 2)[:, None]
        return x if kind == "mlp" else reading.projected(layer, kind, x)


def _repeated(value: Tensor, old: Tensor) -> Tensor:
    """A base value for every path's rows, however the call has them."""
    return value.repeat(old.numel() // value.numel(), *[1] * (value.dim() - 1)).reshape(old.shape)


def carried(way: Way, senders: Tensor) -> Carried:
    """Walk the paths: the changes that arrive at the receivers.

    Shapes: senders [path, writer] bool, in the order of their first sender.
    """
    ground, graph, paths = way.ground, way.graph, way.paths
    groups, between = paths.groups(graph), set(paths.between(graph))
    first = senders.int().argmax(1)
    change = _sent(senders, ground, 0, 1)
    out: Carried = {}
    for layer, (heads, _, has_mlp, parallel) in enumerate(graph.shape):
        begin = graph.written_before(layer)
        for kind in (*ATTENTION_KINDS, *(["mlp"] if parallel else [])):
            if (layer, kind) in groups:
                out[layer, kind] = change
        if begin >= paths.reach(graph):
            return out
        mlp = begin + heads
        mediating = between & set(range(begin, mlp + int(has_mlp)))
        active = int((first < (mlp if not parallel and mlp in mediating else begin)).sum())
        after, more = change + _sent(senders, ground, begin, mlp), None
        if mediating and active:
            part = _Mediating(way, layer, senders[:active], sorted(mediating))
            by_heads, more = part.run(change[:active], (change if parallel else after)[:active])
            after[:active] += by_heads
        if (layer, "mlp") in groups and not parallel:
            out[layer, "mlp"] = after
        change = after + (_sent(senders, ground, mlp, mlp + 1) if has_mlp else 0)
        if more is not None:
            change[:active] += more
    out[len(graph.shape), "logits"] = change
    return out


def _sent(senders: Tensor, ground: Ground, begin: int, end: int) -> Tensor:
    """What senders among some writers change. Shapes: [path, row, pos, d_model]."""
    here = senders[:, begin:end]
    if not bool(here.any()):
        return ground.clean.new_zeros(len(senders), ground.rows, ground.columns, ground.clean.shape[-1])
    delta = ground.donor[:, :, begin:end] - ground.clean[:, :, begin:end]
    return torch.einsum("nw,rpwm->nrpm", here.to(delta), delta)


class _Mediating:
    """The mediators of one layer, computed again from changed streams. A sender's own change is never recomputed."""

    def __init__(self, way: Way, layer: int, senders: Tensor, writers: list[int]) -> None:
        self.way, self.layer, self.n = way, layer, len(senders)
        begin = way.graph.written_before(layer)
        n_heads = way.graph.shape[layer][0]
        self.begin, self.mlp = begin, begin + n_heads
        self.heads = [w - begin for w in writers if w < self.mlp]
        self.has_mlp = self.mlp in writers
        self.counts = ~senders
        self.reads = layer_reads(way.reading, layer)
        self._by_heads: Tensor | None = None

    def run(self, change: Tensor, seen_by_mlp: Tensor) -> tuple[Tensor, Tensor | None]:
        """(change by the mediating heads, change by the MLP). Shapes: [path, row, pos, d_model] -> same."""
        way, layer = self.way, self.layer
        base = way.stream(layer)
        # without mediating heads attention is that of the base run
        hidden = (base + change).flatten(0, 1) if self.heads else base.repeat(self.n, 1, 1)
        self.shape = (hidden.shape[0], hidden.shape[1])
        writes = self._frozen() if self.heads else way.post_scales(layer)
        if self.has_mlp:
            writes.append(whole("ln2_out", layer, self._read_by_mlp(seen_by_mlp)))
        way.call(layer, hidden, writes, list(self.reads.values()))
        by_heads = self._heads_change() if self.heads else torch.zeros_like(change)
        if not self.has_mlp:
            return by_heads, None
        made = taken(self.reads["mlp_out"], self.shape).unflatten(0, (self.n, -1))
        moved = made - way.ground.clean[:, :, self.mlp]
        return by_heads, moved * self._free([self.mlp])[..., 0]

    def _frozen(self) -> list[Whole]:
        """What the layer keeps from the base run: divisors, patterns, heads that are no mediators."""
        way, layer = self.way, self.layer
        writes = []
        if way.paths.norms:
            writes += way.fixed(layer, "ln1_scale") + way.post_scales(layer)
        if way.paths.patterns:
            writes += way.fixed(layer, "q_pre") + way.fixed(layer, "k_pre")
        others = [h for h in range(self.mlp - self.begin) if h not in self.heads]
        if others and way.reading.post_norm(layer):  # one divisor for all heads
            value = way.base(layer)["z"]

            def mixed(old: Tensor) -> Tensor:
                new = old.reshape(self.n, *value.shape).clone()
                new[..., others, :] = value[..., others, :]
                return new.reshape(old.shape)

            writes.append(whole("z", layer, mixed))
        return writes

    def _heads_change(self) -> Tensor:
        """Shapes: [path, row, pos, d_model]."""
        if self._by_heads is None:
            present = heads_written(self.way.reading, self.layer, self.reads, self.shape)[:, :, self.heads]
            writers = [self.begin + h for h in self.heads]
            moved = present.unflatten(0, (self.n, -1)) - self.way.ground.clean[:, :, writers]
            self._by_heads = (moved * self._free(writers)).sum(-2)
        return self._by_heads

    def _free(self, writers: list[int]) -> Tensor:
        """1 where a writer is no sender. Shapes: [path, 1, 1, writer, 1]."""
        return self.counts[:, None, None, writers, None].to(self.way.ground.clean)

    def _read_by_mlp(self, change: Tensor) -> Callable[[Tensor], Tensor]:
        """What the MLP reads; where heads of its layer mediate and write before it, known only once they have written."""
        way, layer = self.way, self.layer
        way.read_by(layer, "mlp")  # recorded now: the function below runs inside a call

        def value(change: Tensor) -> Tensor:
            return way.values(layer, "mlp", change.flatten(0, 1), change, [0])

        if self.heads and not way.graph.shape[layer][3]:
            return lambda old: value(change + self._heads_change())
        made = value(change)
        return lambda old: made


def behind(way: Way, arrived: Carried, n: int) -> tuple[Tensor, Tensor | None]:
    """(final stream, a change that the unembedding reads on top). Shapes: [path, row, pos, d_model]."""
    last = len(way.graph.shape)
    if (last, "logits") in arrived and (last, "logits") in way.paths.groups(way.graph):
        return way.stream(last)[None].expand(n, -1, -1, -1), arrived[last, "logits"]
    if way.paths.onwards:
        return _onwards(way, arrived, n), None
    return way.stream(last)[None].expand(n, -1, -1, -1), _straight(way, arrived, n)


def _onwards(way: Way, arrived: Carried, n: int) -> Tensor:
    """The base run with the receivers' values set. Shapes: [path, row, pos, d_model]."""
    groups = way.paths.groups(way.graph)
    first = min(layer for layer, _ in groups)
    hidden = way.stream(first).repeat(n, 1, 1)
    for layer in range(first, len(way.graph.shape)):
        writes = [_set(way, layer, kind, hidden, arrived[layer, kind], which)
                  for (at, kind), which in groups.items() if at == layer]  # fmt: skip
        hidden = way.call(layer, hidden, writes, [])
    return hidden.unflatten(0, (n, -1))


def _set(way: Way, layer: int, kind: str, hidden: Tensor, change: Tensor, which: list[int]) -> Whole:
    """A write of the receivers' values; readers of a joint query or key norm share it, so all of them are written."""
    value = way.values(layer, kind, hidden, change, which)
    fn: Callable[[Tensor], Tensor]
    if kind == "mlp" or way.reading.joint(layer, kind):
        fn = lambda old: value  # noqa: E731
    else:

        def fn(old: Tensor) -> Tensor:
            new = old.reshape(value.shape).clone()
            new[:, which] = value[:, which].to(new.dtype)
            return new.reshape(old.shape)

    return whole(POINT[kind], layer, fn)


def _straight(way: Way, arrived: Carried, n: int) -> Tensor:
    """What the receivers' own heads and MLPs write differently. Shapes: [path, row, pos, d_model]."""
    graph, ground = way.graph, way.ground
    groups = way.paths.groups(graph)
    total: Tensor | None = None
    for layer in sorted({at for at, _ in groups}):
        mine = {kind: which for (at, kind), which in groups.items() if at == layer}
        hidden = way.stream(layer).repeat(n, 1, 1)
        writes = [*way.post_scales(layer)]
        writes += [_set(way, layer, k, hidden, arrived[layer, k], which) for k, which in mine.items()]
        reads = layer_reads(way.reading, layer)
        way.call(layer, hidden, writes, list(reads.values()))
        shape = (hidden.shape[0], hidden.shape[1])
        begin, heads = graph.written_before(layer), graph.shape[layer][0]
        numbers = [graph.readers_at(layer, kind).start + i for kind, which in mine.items() for i in which]
        fed = sorted({w for number in numbers for w in graph.fed_by(number)})
        in_heads = [w for w in fed if w < begin + heads]
        parts = []
        if in_heads:
            present = heads_written(way.reading, layer, reads, shape)[:, :, [w - begin for w in in_heads]]
            parts.append((present.unflatten(0, (n, -1)) - ground.clean[:, :, in_heads]).sum(-2))
        if len(fed) > len(in_heads):
            present = taken(reads["mlp_out"], shape).unflatten(0, (n, -1))
            parts.append(present - ground.clean[:, :, begin + heads])
        moved = torch.stack(parts).sum(0)
        total = moved if total is None else total + moved
    assert total is not None
    return total
