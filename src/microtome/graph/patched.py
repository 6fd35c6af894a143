"""All edge-patched runs of one task: recorded once, then measured under any number of masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from microtome.errors import SiteError
from microtome.graph.donors import Donor, Zero, stack_reads, stacked
from microtome.graph.nodes import Graph, graph_of
from microtome.graph.reading import POINT, Reading
from microtome.graph.runs import Ground, run_patched
from microtome.replay.base import Base
from microtome.replay.bench import Bench, base_metrics, columns_of, groups_of, logits_of, record_group
from microtome.replay.plan import Group
from microtome.trace import seam
from microtome.trace.run import check_runnable
from microtome.trace.session import Read

Progress = Callable[[float, float], None]


@dataclass
class Recorded:
    """One group of prompts, recorded: base and donor runs and the unedited metrics; spans: how many masks have parts for.

    Shapes: metrics [prompt, metric]; logits [row, step, column].
    """

    group: Group
    ground: Ground
    metrics: Tensor
    logits: Tensor
    spans: int = 0


@dataclass
class EdgeRuns:
    """Edge-patched runs of some base prompts. Build once per question: base and donor are run once for all masks.

    bench: the base prompts and what is measured on them; donor: what patched edges carry; memory: bytes for recorded runs
    (a third) and for the runs under way (a third); prompts beyond the budget are recorded anew each time. spans: names of
    the bench's spans; masks then have one part per span, "rest" being what no other covers. eager: run under the attention
    that shows its patterns. `forwards` counts patched runs (mask x prompt rows), `calls` the batched passes they were made in.
    """

    bench: Bench
    donor: Donor
    memory: int = 1 << 30
    progress: Progress | None = None
    spans: tuple[str, ...] = ()
    eager: bool = False
    forwards: int = 0
    calls: int = 0
    _kept: dict[int, Recorded] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        check_runnable(self.bench.binding)
        self.graph: Graph = graph_of(self.bench.binding)
        self.reading = Reading(self.bench.binding)
        facts = self.bench.binding.facts
        size = next(self.bench.binding.hf.parameters()).element_size()
        self._per_token = 3 * len(self.graph.writers) * facts.d_model * size
        starts = self.donor.starts(self.bench)
        columns = [
            len(ids) + self.bench.scoring.steps - start
            for ids, start in zip(self.bench.ids, starts, strict=True)
        ]
        self.groups = groups_of(
            self.bench, self.memory // 3, eager=self.eager, more=[n * self._per_token for n in columns]
        )

    @property
    def n(self) -> int:
        """Prompts."""
        return len(self.bench.ids)

    @property
    def edges(self) -> int:
        """Numbers in a mask: the graph's edges, once per span."""
        return len(self.graph.edges) * max(1, len(self.spans))

    def recorded(self) -> Iterator[Recorded]:
        """Every group, recorded; those that fit the budget are kept."""
        for number, group in enumerate(self.groups):
            if number in self._kept:
                yield self._kept[number]
                continue
            made = self._record(group)
            if made.ground.nbytes() + sum(r.ground.nbytes() for r in self._kept.values()) <= self.memory // 3:
                self._kept[number] = made
            yield made

    @torch.no_grad()
    def _record(self, group: Group) -> Recorded:
        reads = stack_reads(self.reading)
        first = not self._kept
        checks = _check_reads(self.reading) if first else []
        flat = [read for layer in reads for read in layer.values()]
        base = record_group(self.bench, group, 0, eager=self.eager, reads=[*flat, *checks])
        _check(self.reading, checks, base.resid)
        starts = self.donor.starts(self.bench)
        start = 0 if base.mode == "layers" else min(starts[p] for p in group.prompts)
        start = min(start, int(group.scored.min()))
        clean = stacked(self.graph, self.reading, reads, base.resid[0], start)
        donor = self.donor.writes(self.graph, self.reading, self.bench, group, start)
        metrics, logits = base_metrics(self.bench, group, base)
        size = clean.abs().amax((2, 3)) if isinstance(self.donor, Zero) else None
        span = self._span(group, base, start)
        ground = Ground(self.graph, self.reading, base, start, clean, donor.to(clean), span, size)
        return Recorded(group, ground, metrics, logits, len(self.spans))

    def _span(self, group: Group, base: Base, start: int) -> Tensor | None:
        """The span of every position; a position in none belongs to "rest". Shapes: [row, pos]."""
        if not self.spans:
            return None
        rest = self.spans.index("rest") if "rest" in self.spans else len(self.spans)
        out = torch.full(base.ids.shape, rest)
        for place, rows in enumerate(group.rows_of):
            for number, name in reversed(list(enumerate(self.spans))):
                found = group.spans[place].get(name)
                if found is not None:
                    out[list(rows), found[0] : found[1]] = number
        return out[:, start:].to(base.resid[0].device)

    def base(self) -> Tensor:
        """Metrics of the unedited base runs. Shapes: [prompt, metric]."""
        out = torch.zeros(self.n, len(self.bench.metrics), dtype=torch.float64)
        for recorded in self.recorded():
            out[list(recorded.group.prompts)] = recorded.metrics
        return out

    @torch.no_grad()
    def measure(self, patched: Tensor) -> Tensor:
        """Metrics of the base runs with some edges patched.

        Shapes: patched [mask, edge] bool -> [mask, prompt, metric].

        Raises
        ------
        SiteError: masks of another size than the graph.
        """
        check_masks(self, patched)
        out = torch.zeros(len(patched), self.n, len(self.bench.metrics), dtype=torch.float64)
        for done, recorded in enumerate(self.recorded()):
            for which in self._batches(recorded, len(patched)):
                values = measured(self.bench, recorded, patched[which])
                out[which[:, None], torch.tensor(recorded.group.prompts)[None]] = values
                self.calls += 1
                self.forwards += len(which) * recorded.ground.rows
                if self.progress is not None:
                    self.progress(done + (int(which[-1]) + 1) / len(patched), len(self.groups))
        return out

    def _batches(self, recorded: Recorded, masks: int) -> Iterator[Tensor]:
        """Masks that go together: as many as the memory for runs under way holds."""
        ground = recorded.ground
        each = (
            ground.rows * ground.columns * (self._per_token // 3 + 64 * self.bench.binding.facts.d_model * 4)
        )
        size = max(1, min(masks, (self.memory // 3) // max(each, 1)))
        for begin in range(0, masks, size):
            yield torch.arange(begin, min(begin + size, masks))


def check_masks(runs: EdgeRuns, patched: Tensor) -> None:
    """Refuse masks that are not [mask, edge] of this graph."""
    if patched.dim() != 2 or patched.shape[1] != runs.edges:
        raise SiteError(f"masks of shape {tuple(patched.shape)} do not fit", why=f"this graph has {len(runs.graph.edges):,} edges{f' in {len(runs.spans)} spans' if runs.spans else ''}, and a mask one number for each",
                        instead="make masks of shape [mask, edge]")  # fmt: skip


def measured(bench: Bench, recorded: Recorded, patched: Tensor) -> Tensor:
    """Metrics of one group under some masks. Shapes: [mask, edge] -> [mask, prompt, metric]."""
    ground, group = recorded.ground, recorded.group
    with seam.implementation(bench.binding.hf, ground.base.attention):
        hidden = run_patched(ground, patched.to(ground.clean.device), group.scored)
    logits = logits_of(bench, hidden.flatten(0, 1))
    masks, prompts = len(patched), len(group.prompts)
    part = bench.scoring.select([p for _ in range(masks) for p in group.prompts])
    reference = recorded.logits.repeat(masks, 1, 1)
    values = torch.stack([m(logits, part, columns_of(bench), reference) for m in bench.metrics], -1)
    return values.double().cpu().view(masks, prompts, -1)


def _check_reads(reading: Reading) -> list[Read]:
    """What the model's own readers made of the stream, for `Reading.check`; the MLP's needs the stream in the middle."""
    out = []
    for layer, slots in enumerate(reading.binding.slots):
        out += [Read(POINT[kind], layer) for kind in "qkv"]
        if slots.mlp_kind != "none":
            middle = reading.binding.lacking("resid_mid", layer) is None
            out += ([Read("resid_mid", layer)] if middle else []) + [Read("ln2_out", layer)]
    return out


def _check(reading: Reading, reads: list[Read], resid: tuple[Tensor, ...]) -> None:
    """Every reader of the first prompt against what the graph makes of the stream."""
    kinds = {point: kind for kind, point in POINT.items()}
    middle: dict[int, Tensor] = {}
    for read in reads:
        assert read.value is not None and read.layer is not None
        if read.point == "resid_mid":
            middle[read.layer] = read.value[0]
        else:
            kind = kinds[read.point]
            stream = middle.get(read.layer, resid[read.layer][0]) if kind == "mlp" else resid[read.layer][0]
            reading.check(read.layer, kind, stream, read.value[0])
