"""Exact effects of single edges by replay: each edge is a row that joins its recorded run where its reader reads.

A row's reader gets the value that it makes of the recorded stream with one writer's output exchanged for the donor's; the
layers below, the columns before the first difference, and whatever cannot reach a scored column, are not computed. Many
edges share each layer call. Edges into the unembedding are closed form: the final norm and the unembedding of one stream.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from microtome.errors import SiteError
from microtome.graph.nodes import Graph
from microtome.graph.patched import EdgeRuns, Recorded
from microtome.graph.reading import POINT
from microtome.graph.runs import Ground, taken
from microtome.replay.bench import Bench, columns_of, logits_of
from microtome.replay.call import Segment, call_layer
from microtome.replay.climb import Rows, climb, tokens_of
from microtome.replay.plan import Group
from microtome.replay.sweep import Interrupted, Outcome, Settings
from microtome.trace import seam
from microtome.trace.run import numerics_of
from microtome.trace.session import Read, Write

KINDS = ("q", "k", "v", "mlp", "logits")
LOCAL = (0, 3, 4)
"""Kinds of readers (their numbers in `KINDS`) whose change stays at its position within their layer."""


@torch.no_grad()
def exact_edges(
    runs: EdgeRuns, edges: Sequence[int] | Tensor, settings: Settings | None = None, *, skip: bool = True
) -> Outcome:
    """The effect of patching each edge alone, donor into base: `EdgeRuns.measure` with one-edge masks, minus the base.

    Parameters
    ----------
    edges: numbers of edges of `runs.graph`; settings: tokens per layer call, memory, progress (share, 1.0).
    skip: leave out what cannot matter (False computes every row on all columns, for tests).

    Returns an `Outcome` whose cells are the edges, in the order given: effects [edge, prompt, metric].

    Raises
    ------
    SiteError: a number that is no edge. Interrupted: on Ctrl-C, with the finished part.
    """
    chosen = _chosen(runs.graph, edges)
    settings = settings or Settings(memory=runs.memory)
    shape = (len(chosen), runs.n, len(runs.bench.metrics))
    out = Outcome(torch.full(shape, float("nan"), dtype=torch.float64), torch.zeros(shape[1:], dtype=torch.float64),
                  torch.zeros(shape[:2], dtype=torch.bool), torch.zeros(shape[:2], dtype=torch.bool), 0.0, 0, "", {})  # fmt: skip
    begun = time.perf_counter()
    try:
        for number, recorded in enumerate(runs.recorded()):
            _one_group(runs, recorded, chosen, settings, out, number, skip)
    except KeyboardInterrupt:
        out.seconds = time.perf_counter() - begun
        raise Interrupted(out) from None
    out.seconds = time.perf_counter() - begun
    return out


@torch.no_grad()
def edge_tokens(runs: EdgeRuns, edges: Sequence[int] | Tensor) -> int:
    """What `exact_edges` costs: tokens times layers of all its rows. Records base and donor runs where that is not done."""
    chosen = _chosen(runs.graph, edges)
    layers = len(runs.bench.binding.slots)
    total = 0
    for recorded in runs.recorded():
        planned = _plan(runs, recorded, chosen, True)
        total += int(tokens_of(planned.rows, layers).sum())
    return total


def _chosen(graph: Graph, edges: Sequence[int] | Tensor) -> Tensor:
    chosen = torch.as_tensor(edges, dtype=torch.long).reshape(-1)
    if len(chosen) and (int(chosen.min()) < 0 or int(chosen.max()) >= len(graph.edges)):
        wrong = int(chosen.min()) if int(chosen.min()) < 0 else int(chosen.max())
        raise SiteError(f"{wrong} is no edge", why=f"this graph has {len(graph.edges):,} edges, counted from 0",
                        instead="graph.number('L5H3.z->L9KV2.k') gives an edge's number")  # fmt: skip
    return chosen


@dataclass
class _Planned:
    """Rows of one group in the order in which they are run, and what each is. Shapes: [row]; zero [edge, prompt]."""

    rows: Rows
    edge: Tensor
    prompt: Tensor
    kind: Tensor
    writer: Tensor
    reader: Tensor
    zero: Tensor

    def take(self, which: Tensor) -> _Planned:
        """Some of the rows."""
        edge, prompt, kind = self.edge[which], self.prompt[which], self.kind[which]
        return _Planned(
            self.rows.take(which), edge, prompt, kind, self.writer[which], self.reader[which], self.zero
        )

    def __len__(self) -> int:
        return len(self.edge)


@dataclass
class _Span:
    """Where writers differ. Shapes: live, first, last [row, writer]: the columns of the first and the last difference."""

    live: Tensor
    first: Tensor
    last: Tensor


def _spans(runs: EdgeRuns, recorded: Recorded, skip: bool) -> tuple[_Span, _Span]:
    """Where writers differ between base and donor at columns that matter, and at scored columns."""
    ground, group = recorded.ground, recorded.group
    start, width = ground.start, ground.base.width
    scored = group.scored
    if not skip or ground.base.mode == "layers":
        shape = (ground.rows, ground.clean.shape[2])
        every = _Span(
            torch.ones(shape, dtype=torch.bool), torch.full(shape, start), torch.full(shape, width - 1)
        )
        return every, every
    columns = torch.arange(start, width)
    ends = scored.max(1).values + 1
    begins = torch.tensor(_begins(runs, group, start))
    inside = (columns >= begins[:, None]) & (columns < ends[:, None])
    differs = (ground.donor != ground.clean).any(-1).cpu() & inside[..., None]
    read = torch.zeros(ground.rows, width, dtype=torch.bool)
    read[torch.arange(ground.rows)[:, None], scored] = True
    return _span(differs, start), _span(differs & read[:, start:, None], start)


def _span(differs: Tensor, start: int) -> _Span:
    """Shapes: differs [row, pos, writer]."""
    whole = differs.to(torch.uint8)
    last = differs.shape[1] - 1 - whole.flip(1).argmax(1)
    return _Span(differs.any(1), start + whole.argmax(1), start + last)


def _begins(runs: EdgeRuns, group: Group, start: int) -> list[int]:
    """Per row, the first column in which its own prompt's donor may differ, from tokens alone."""
    out = [start] * len(group.scored)
    starts = runs.donor.starts(runs.bench)
    for i, prompt in enumerate(group.prompts):
        for row in group.rows_of[i]:
            out[row] = max(start, min(starts[prompt], int(group.scored[row].min())))
    return out


def _plan(runs: EdgeRuns, recorded: Recorded, chosen: Tensor, skip: bool) -> _Planned:
    """Rows for some edges, in order of the layer where they join; an edge's rows of one prompt stay together."""
    graph, ground, group = runs.graph, recorded.ground, recorded.group
    layers = len(runs.bench.binding.slots)
    writer = torch.as_tensor(graph.writer_of)[chosen]
    number = torch.as_tensor(graph.reader_of)[chosen]
    layer, kind, index = (torch.tensor(values)[number] for values in _readers(graph))
    every, scored = _spans(runs, recorded, skip)
    local = torch.isin(kind, torch.tensor(LOCAL))
    late = (local & (layer >= layers - 1))[None]
    live, first, last = (
        torch.where(late, getattr(scored, f)[:, writer], getattr(every, f)[:, writer])
        for f in ("live", "first", "last")
    )
    owner = torch.tensor([i for i, rows in enumerate(group.rows_of) for _ in rows])
    alive = torch.zeros(len(group.prompts), len(chosen)).index_add_(0, owner, live.float()) > 0
    causal = ground.base.mode != "layers"
    end = group.scored.max(1).values + 1 if causal and skip else torch.full((ground.rows,), ground.base.width)
    row, edge = alive[owner].nonzero(as_tuple=True)
    # a row without a difference whose prompt has another with one: its last column once more
    begin = torch.where(live, first, end[:, None] - 1)[row, edge]
    stop = torch.where(live, last + 1, end[:, None])[row, edge]
    rows = Rows(row, layer[edge], begin, stop, end[row], local[edge] & (layer[edge] < layers) & causal)
    found = _Planned(rows, edge, owner[row], kind[edge], writer[edge], index[edge], ~alive.T)
    return found.take(_order(found))


def _order(p: _Planned) -> Tensor:
    """By layer and kind, then writer: what the readers of a layer make of a writer's stream is made once for all of them."""
    keys = (p.rows.entry, p.kind, p.writer, p.reader, p.edge, p.prompt, p.rows.base)
    order = torch.arange(len(p))
    for key in reversed(keys):
        order = order[torch.argsort(key[order], stable=True)]
    return order


def _readers(graph: Graph) -> tuple[list[int], list[int], list[int]]:
    """Layer, kind and index of every reader."""
    r = graph.readers
    return [x.layer for x in r], [KINDS.index(x.kind) for x in r], [x.index for x in r]


def _one_group(
    runs: EdgeRuns,
    recorded: Recorded,
    chosen: Tensor,
    settings: Settings,
    out: Outcome,
    number: int,
    skip: bool,
) -> None:
    bench, ground, group = runs.bench, recorded.ground, recorded.group
    planned = _plan(runs, recorded, chosen, skip)
    prompts = torch.tensor(group.prompts)
    out.mode, out.numerics = ground.base.mode, numerics_of(bench.binding, ground.base.attention)
    out.base[prompts] = recorded.metrics
    out.zero[:, prompts] = planned.zero
    edge, prompt = planned.zero.nonzero(as_tuple=True)
    out.effects[edge, prompts[prompt]] = 0.0
    cost = tokens_of(planned.rows, len(bench.binding.slots))
    values = _Values(ground)
    for part in _chunks(planned, settings.chunk(bench.binding)):
        found = planned.take(part)
        hidden = _final(ground, group, found, values)
        items, measured = _metrics(bench, recorded, found, hidden)
        at = items[:, 0], prompts[items[:, 1]]
        out.effects[at] = measured - recorded.metrics[items[:, 1]]
        out.done[at] = True
        out.tokens += int(cost[part].sum())
        out.rows += len(part)
        if settings.progress is not None:
            share = float(cost[: int(part[-1]) + 1].sum()) / max(float(cost.sum()), 1.0)
            settings.progress((number + min(share, 1.0)) / len(runs.groups), 1.0)


def _chunks(p: _Planned, budget: int) -> Iterator[Tensor]:
    """Rows that climb together: at most `budget` tokens in a layer call; an edge's rows of one prompt stay together."""
    if not len(p):
        return
    new = torch.ones(len(p), dtype=torch.bool)
    new[1:] = (p.edge[1:] != p.edge[:-1]) | (p.prompt[1:] != p.prompt[:-1])
    first = new.nonzero()[:, 0]
    item = new.cumsum(0) - 1
    width = (p.rows.end - p.rows.start).cumsum(0)
    chunk = torch.div(width[first] - 1, budget, rounding_mode="floor")[item]
    sizes = torch.unique_consecutive(chunk, return_counts=True)[1].tolist()
    yield from torch.arange(len(p)).split(sizes)


def _final(ground: Ground, group: Group, p: _Planned, values: _Values) -> Tensor:
    """The final stream at the scored columns. Shapes: [row, step, d_model]."""
    layers = len(ground.base.binding.slots)
    inside = p.rows.entry < layers
    scored = group.scored.to(ground.clean.device)
    out = ground.clean.new_empty(len(p), scored.shape[1], ground.clean.shape[3])
    which = inside.nonzero()[:, 0]
    if len(which):
        some = p.take(which)
        places = torch.stack([some.rows.entry, some.kind], 1).unique(dim=0).tolist()
        writes = [values.write(layer, kind, some) for layer, kind in places]
        out[which] = climb(ground.base, some.rows, writes, group.scored)
    which = (~inside).nonzero()[:, 0]
    if len(which):
        some = p.take(which)
        row = some.rows.base.to(scored.device)[:, None]
        column = scored[row[:, 0]]
        change = values.change(row, column - ground.start, some.writer.to(scored.device)[:, None])
        out[which] = ground.base.resid[-1][row, column] + change
    return out


def _metrics(bench: Bench, recorded: Recorded, p: _Planned, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """(items [item, (edge, prompt)], metrics [item, metric]) of a chunk."""
    logits = logits_of(bench, hidden)
    items = torch.stack([p.edge, p.prompt], 1).unique_consecutive(dim=0)
    part = bench.scoring.select([recorded.group.prompts[i] for i in items[:, 1].tolist()])
    reference = recorded.logits[p.rows.base.to(recorded.logits.device)]
    found = [m(logits, part, columns_of(bench), reference) for m in bench.metrics]
    return items, torch.stack(found, -1).double().cpu()


class _Values:
    """What readers make of a recorded stream in which one writer's output is the donor's."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self._middle: dict[int, Tensor] = {}

    def change(self, row: Tensor, pos: Tensor, writer: Tensor) -> Tensor:
        """Donor minus base of some writers. Shapes: indices that broadcast -> [..., d_model]."""
        g = self.ground
        return g.donor[row, pos, writer] - g.clean[row, pos, writer]

    def write(self, layer: int, kind: int, p: _Planned) -> Write:
        """The write of all rows that join at one kind of readers of a layer."""
        mine = ((p.rows.entry == layer) & (p.kind == kind)).nonzero()[:, 0]
        width = (p.rows.stop - p.rows.start)[mine]
        number = mine.repeat_interleave(width)
        offset = torch.arange(len(number)) - (width.cumsum(0) - width).repeat_interleave(width)
        column = p.rows.start[number] + offset
        device = self.ground.clean.device
        made, index = self._read(KINDS[kind], layer, p, number, column)
        index = None if index is None else index.to(device)
        return Write(POINT[KINDS[kind]], layer, number.to(device), column.to(device), index, lambda old, keep: made if keep is None else made[keep])  # fmt: skip

    def _read(
        self, kind: str, layer: int, p: _Planned, number: Tensor, column: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """(values [pair, ...], readers [pair] or None where a value is the whole layer's)."""
        g, reading = self.ground, self.ground.reading
        writers = len(g.graph.writers)
        key = (p.rows.base[number] * writers + p.writer[number]) * g.base.width + column
        distinct, pair = key.unique(return_inverse=True)
        distinct, pair = distinct.to(g.clean.device), pair.to(g.clean.device)
        pos = distinct % g.base.width - g.start
        owner = torch.div(distinct, g.base.width, rounding_mode="floor")
        row = torch.div(owner, writers, rounding_mode="floor")
        base = self._stream(kind, layer)[row, pos]
        x = base + self.change(row, pos, owner % writers)
        if kind == "mlp":
            return reading.value(layer, kind, x[:, None])[pair, 0], None
        reader = p.reader[number].to(pair.device)
        if not reading.joint(layer, kind):
            return reading.head_normed(layer, kind, reading.raw(layer, kind, x))[pair, reader], reader.cpu()
        # one norm over all heads: the others' values change with this head's
        every = reading.raw(layer, kind, base)[pair]
        every[torch.arange(len(pair)), reader] = reading.raw(layer, kind, x)[pair, reader]
        return reading.head_normed(layer, kind, every), None

    def _stream(self, kind: str, layer: int) -> Tensor:
        """The recorded stream that readers of a kind see. Shapes: [row, pos, d_model], columns from the start on."""
        g = self.ground
        number = g.graph.readers_at(layer, kind).start
        if kind != "mlp" or g.graph.readers[number].reach == g.graph.written_before(layer):
            return g.base.resid[layer][:, g.start :]
        if layer not in self._middle:
            self._middle = {layer: self._between(layer)}  # rows come layer by layer
        return self._middle[layer]

    def _between(self, layer: int) -> Tensor:
        """The stream between a layer's halves, from one call of it."""
        g = self.ground
        read = Read("resid_mid", layer)
        rows = torch.arange(g.rows, device=g.clean.device)
        hidden = g.base.resid[layer][:, g.start :]
        with seam.implementation(g.base.binding.hf, g.base.attention):
            call_layer(
                g.base,
                layer,
                [Segment(g.start, g.base.width, rows, rows, hidden, g.base.width)],
                [],
                g.rows,
                [read],
            )
        return taken(read, (g.rows, hidden.shape[1]))
