"""Sweeps: many small interventions on the same prompts, each exact, none computed twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from microtome.model.binding import Binding
from microtome.points import POINTS
from microtome.replay.base import Base, make_base
from microtome.replay.bench import Bench, base_metrics, columns_of, groups_of, logits_of, record_group
from microtome.replay.call import Segment, call_layer
from microtome.replay.check import mode_of
from microtome.replay.climb import Rows, climb, tokens_of
from microtome.replay.plan import Cell, Group, Planned, Source, as_stream, plan
from microtome.replay.sources import Point, SourceSpec, Wanted, Zero
from microtome.trace import seam
from microtome.trace.run import check_runnable, numerics_of
from microtome.trace.session import Receipt, Write

Progress = Callable[[float, float], None]


@dataclass
class Outcome:
    """What a sweep measured.

    Shapes: effects [cell, prompt, metric], patched minus base in metric units; base [prompt, metric]; zero, done
    [cell, prompt]. `tokens` counts layer-tokens computed; `numerics` names kernel and dtype; `fired` of `planned`
    (row, position, head) places were written.
    """

    effects: Tensor
    base: Tensor
    zero: Tensor
    done: Tensor
    seconds: float
    tokens: int
    mode: str
    numerics: dict[str, str]
    rows: int = 0
    fired: int = 0
    planned: int = 0

    @property
    def complete(self) -> bool:
        """True when every cell is measured or an exact zero."""
        return bool((self.done | self.zero).all())


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in the middle of a sweep; `outcome` holds the finished part (unfinished cells are NaN)."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__("interrupted; the finished part is kept")
        self.outcome = outcome


@dataclass
class Settings:
    """How a sweep runs; none of it changes a number beyond rounding.

    tokens: most tokens in one layer call; memory: bytes beside the model, a third each for the recorded runs of one
    group of prompts, for runs kept for later sweeps, and for the layer calls; skip: leave out what cannot have changed.
    """

    tokens: int = 2048
    memory: int = 1 << 30
    skip: bool = True
    progress: Progress | None = None

    @property
    def share(self) -> int:
        """Bytes for each of the three."""
        return self.memory // 3

    def chunk(self, binding: Binding) -> int:
        """Tokens per layer call that fit."""
        layers = binding.facts.layers
        widest = (
            max(4 * (s.d_mlp or 0) + 4 * s.n_heads * s.d_head for s in layers) + 8 * binding.facts.d_model
        )
        size = next(binding.hf.parameters()).element_size()
        return max(64, min(self.tokens, self.share // (widest * size)))


def sweep(
    bench: Bench, cells: Sequence[Cell], sources: Mapping[str, SourceSpec], settings: Settings | None = None
) -> Outcome:
    """Measure every cell on every prompt.

    Raises
    ------
    Interrupted: on Ctrl-C, with the finished part.
    SiteError, TaskError: a cell that a prompt or the model lacks.
    """
    settings = settings or Settings()
    check_runnable(bench.binding)
    eager = any(POINTS[c.site.point].square for cell in cells for c in cell.changes)
    shape = (len(cells), len(bench.ids), len(bench.metrics))
    begun = time.perf_counter()
    out = Outcome(torch.full(shape, float("nan"), dtype=torch.float64), torch.zeros(shape[1:], dtype=torch.float64), torch.zeros(shape[:2], dtype=torch.bool),
                  torch.zeros(shape[:2], dtype=torch.bool), 0.0, 0, "", {})  # fmt: skip
    groups = groups_of(bench, settings.share, eager=eager)
    meter = _Meter(settings.progress, len(groups))
    try:
        for group in groups:
            _one_group(bench, group, cells, sources, settings, eager, out, meter)
    except KeyboardInterrupt:
        out.seconds = time.perf_counter() - begun
        raise Interrupted(out) from None
    out.seconds = time.perf_counter() - begun
    return out


def measure(bench: Bench, settings: Settings | None = None) -> Tensor:
    """The metrics of unedited prompts under the sweep's numerics. Shapes: [prompt, metric]."""
    settings = settings or Settings()
    check_runnable(bench.binding)
    out = torch.zeros(len(bench.ids), len(bench.metrics), dtype=torch.float64)
    for group in groups_of(bench, settings.share):
        base = record_group(bench, group, settings.share, eager=False)
        out[list(group.prompts)] = base_metrics(bench, group, base)[0]
    return out


def estimate(
    bench: Bench,
    cells: Sequence[Cell],
    sources: Mapping[str, SourceSpec] | None = None,
    settings: Settings | None = None,
) -> float:
    """Seconds a sweep will take, from its layer-tokens and this machine's measured rate (donor runs included).

    Sources that are not given count as differing everywhere.
    """
    settings, n_layers = settings or Settings(), len(bench.binding.slots)
    recorded = sum(g.width * sum(map(len, g.rows_of)) for g in groups_of(bench, settings.share))
    total = 2 * n_layers * recorded + layer_tokens(bench, cells, sources, settings)
    return total * _rate(bench, settings.tokens)


def layer_tokens(
    bench: Bench,
    cells: Sequence[Cell],
    sources: Mapping[str, SourceSpec] | None = None,
    settings: Settings | None = None,
) -> int:
    """Tokens times layers that the patched rows of a sweep take; sources not given count as differing everywhere."""
    settings, n_layers = settings or Settings(), len(bench.binding.slots)
    names = {c.source for cell in cells for c in cell.changes}
    specs = {name: (sources or {}).get(name, Zero()) for name in names}
    total = 0
    for group in groups_of(bench, settings.share):
        free = {name: Source(_not_needed, spec.agree(group, bench.ids)) for name, spec in specs.items()}
        planned = plan(bench.binding, group, cells, free, causal=bench.binding.causal, skip=settings.skip)
        total += int(tokens_of(planned.rows, n_layers).sum())
    return total


def _not_needed(point: str, layer: int, prompt: Tensor, col: Tensor, head: Tensor | None) -> Tensor:
    raise AssertionError("an estimate reads no values")


def _one_group(bench: Bench, group: Group, cells: Sequence[Cell], specs: Mapping[str, SourceSpec], settings: Settings, eager: bool,
               out: Outcome, meter: _Meter) -> None:  # fmt: skip
    base = record_group(bench, group, settings.share, eager=eager)
    out.mode, out.numerics = base.mode, numerics_of(bench.binding, base.attention)
    sources = {
        name: spec.build(Wanted(bench.binding, group, bench.ids, points, eager))
        for name, spec in specs.items()
        if (points := _points(cells, name, bench))
    }
    prompts = torch.tensor(group.prompts)
    metrics, base_logits = base_metrics(bench, group, base)
    out.base[prompts] = metrics
    planned = plan(bench.binding, group, cells, sources, causal=base.mode != "layers", skip=settings.skip)
    out.zero[:, prompts] = planned.zero
    zeros = torch.zeros(int(planned.zero.sum()), len(bench.metrics), dtype=torch.float64)
    c, p = planned.zero.nonzero(as_tuple=True)
    out.effects[c, prompts[p]] = zeros
    cost = tokens_of(planned.rows, len(bench.binding.slots))
    meter.group(int(cost.sum()))
    for which in _chunks(planned, base, cost, settings.chunk(bench.binding)):
        values = _measure_rows(bench, group, base, planned, which, base_logits, out)
        items = torch.stack([planned.cell[which], planned.prompt[which]], 1).unique_consecutive(dim=0)
        out.effects[items[:, 0], prompts[items[:, 1]]] = values - metrics[items[:, 1]]
        out.done[items[:, 0], prompts[items[:, 1]]] = True
        out.tokens += int(cost[which].sum())
        out.rows += len(which)
        meter.tick(int(cost[which].sum()))


def _points(cells: Sequence[Cell], name: str, bench: Bench) -> set[Point]:
    sites = [
        as_stream(c.site, len(bench.binding.slots))
        for cell in cells
        for c in cell.changes
        if c.source == name
    ]
    return {(s.point, s.layer) for s in sites if isinstance(s.layer, int)}


def _chunks(planned: Planned, base: Base, cost: Tensor, budget: int) -> Iterator[Tensor]:
    """Rows in order of the layer where they join, at most `budget` tokens in any layer call; items stay whole."""
    rows = planned.rows
    if not len(rows):
        return
    order = sorted(
        range(len(rows)), key=lambda r: (int(rows.entry[r]), int(planned.cell[r]), int(planned.prompt[r]))
    )
    chunk: list[int] = []
    size = 0
    last = None
    for r in order:
        item = (int(planned.cell[r]), int(planned.prompt[r]))
        width = int(rows.end[r] - rows.start[r])
        if chunk and size + width > budget and item != last:
            yield torch.tensor(chunk)
            chunk, size = [], 0
        chunk.append(r)
        size += width
        last = item
    yield torch.tensor(chunk)


def _measure_rows(
    bench: Bench, group: Group, base: Base, planned: Planned, which: Tensor, base_logits: Tensor, out: Outcome
) -> Tensor:
    """Metrics of each (cell, prompt) of a chunk. Shapes: [item, metric]."""
    number = torch.full((len(planned.rows),), -1, dtype=torch.long)
    number[which] = torch.arange(len(which))
    writes = [w for write in planned.writes if (w := _subset(write, number)) is not None]
    rows = planned.rows.take(which)
    receipt = Receipt("sweep", measured=False)
    for write in writes:
        write.receipt = receipt
    hidden = climb(base, rows, writes, group.scored)
    out.fired, out.planned = out.fired + receipt.places, out.planned + sum(len(w.rows) for w in writes)
    with torch.no_grad():
        logits = logits_of(bench, hidden)
    items = torch.stack([planned.cell[which], planned.prompt[which]], 1).unique_consecutive(dim=0)
    part = bench.scoring.select([group.prompts[p] for p in items[:, 1].tolist()])
    reference = base_logits[rows.base.to(base_logits.device)]
    return (
        torch.stack([m(logits, part, columns_of(bench), reference) for m in bench.metrics], -1).double().cpu()
    )


def _subset(write: Write, number: Tensor) -> Write | None:
    mapped = number[write.rows]
    keep = (mapped >= 0).nonzero()[:, 0]
    if not len(keep):
        return None
    index = None if write.index is None else write.index[keep]
    whole = write.fn
    return Write(write.point, write.layer, mapped[keep], write.cols[keep], index,
                 lambda old, which: whole(old, keep if which is None else keep[which.cpu()]))  # fmt: skip


_rates: dict[tuple[int, int], float] = {}


def _rate(bench: Bench, tokens: int) -> float:
    """Seconds per token and layer at a call of that size, measured once per model."""
    key = (id(bench.binding), tokens)
    if key not in _rates:
        ids = torch.tensor([list(bench.ids[0])])
        base = make_base(bench.binding, ids, [], mode=mode_of(bench.binding, ids))
        n = max(1, tokens // base.width)
        middle = len(bench.binding.slots) // 2
        times = []
        for _ in range(3):
            segment = Segment(
                0,
                base.width,
                torch.arange(n),
                torch.zeros(n, dtype=torch.long),
                base.resid[middle].expand(n, -1, -1),
                base.width,
            )
            begun = time.perf_counter()
            with torch.no_grad(), seam.implementation(bench.binding.hf, base.attention):
                call_layer(base, middle, [segment], [], n)
            times.append(time.perf_counter() - begun)
        _rates[key] = min(times[1:]) / (n * base.width)
    return _rates[key]


@dataclass
class _Meter:
    """Progress over groups of unequal work."""

    report: Progress | None
    groups: int
    begun: int = 0
    total: int = 0
    done: int = field(default=0)

    def group(self, cost: int) -> None:
        self.begun += 1
        self.total += cost
        self.tick(0)

    def tick(self, cost: int) -> None:
        self.done += cost
        if self.report is not None:
            share = self.done / max(self.total, 1)
            self.report((self.begun - 1 + share) / self.groups if self.begun else 0.0, 1.0)


__all__ = [
    "Bench",
    "Interrupted",
    "Outcome",
    "Rows",
    "Settings",
    "estimate",
    "groups_of",
    "layer_tokens",
    "measure",
    "sweep",
]
