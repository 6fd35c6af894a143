"""Recorded base and donor values of any points: what attribution to nodes is computed from, on every family that replays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from microtome.errors import TaskError
from microtome.graph.gradients import Played, own_columns
from microtome.graph.reading import Reading
from microtome.model.binding import Binding
from microtome.model.tokens import Tokens, pack
from microtome.points import POINTS
from microtome.replay.base import replay_attention
from microtome.replay.bench import Bench, base_metrics, groups_of, record_group, rows_of_group
from microtome.replay.plan import Group
from microtome.replay.sources import inner_shape
from microtome.trace.run import check_runnable, forward
from microtome.trace.session import Read

Point = tuple[str, int]
STREAM = "resid_pre"
"""The stream that a layer receives; of layer n_layers what the final norm receives."""


@dataclass
class RecordedNodes:
    """One group, recorded.

    base, donor: point -> [row, pos, ...] from the start on; own [row, pos]: the prompt's own tokens there (not its
    continuation, not a pad); metrics [prompt, metric].
    """

    run: Played
    base: dict[Point, Tensor]
    donor: dict[Point, Tensor]
    own: Tensor
    metrics: Tensor

    def change(self, point: Point) -> Tensor:
        """Donor minus base at the prompt's own tokens, 0 elsewhere and where a mask hides. Shapes: [row, pos, ...]."""
        base, donor = self.base[point], self.donor[point]
        out = donor - base
        if POINTS[point[0]].square:
            least = torch.finfo(base.dtype).min / 2
            out = out.masked_fill((base < least) | (donor < least), 0)
        return out * self.own.view(*self.own.shape, *[1] * (out.dim() - 2)).to(out)

    def nbytes(self) -> int:
        """Memory held, in bytes."""
        mine = [*self.base.values(), *self.donor.values()]
        return self.run.base.nbytes() + sum(t.numel() * t.element_size() for t in mine)


@dataclass
class NodeRuns:
    """Base runs with donor values of some points. Build once per question: both are run once for all passes.

    points: (point, layer) as sweeps name them; donor: token ids per prompt, as long as the base's; eager: under the
    attention that shows its patterns (asked for by square points too); memory: bytes, a third of it for recorded runs.
    """

    bench: Bench
    donor: Sequence[Sequence[int]]
    points: set[Point]
    eager: bool = False
    memory: int = 1 << 30
    progress: Callable[[float, float], None] | None = None
    _kept: dict[int, RecordedNodes] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        check_runnable(self.bench.binding)
        self.reading = Reading(self.bench.binding)
        self.eager = self.eager or any(POINTS[name].square for name, _ in self.points)
        self.points = {*self.points, (STREAM, 0)}
        for i, (base, donor) in enumerate(zip(self.bench.ids, self.donor, strict=True)):
            if len(base) != len(donor):
                raise TaskError(f"donor {i} has {len(donor)} tokens, its base {len(base)}", why="positions must align",
                                instead="use donors of equal length")  # fmt: skip
        more = [(len(ids) + self.bench.scoring.steps) * self._per_token() for ids in self.bench.ids]
        self.groups = groups_of(self.bench, self.memory // 3, eager=self.eager, more=more)

    @property
    def n(self) -> int:
        """Prompts."""
        return len(self.bench.ids)

    def _per_token(self) -> int:
        """Bytes of both runs' points, and of what a backward pass keeps."""
        facts = self.bench.binding.facts
        size = next(self.bench.binding.hf.parameters()).element_size()
        width = max(len(row) for row in self.bench.ids)
        held = 2 * sum(_entries(self.bench.binding, point, width) for point in self.points)
        tape = sum(12 * facts.d_model + 6 * (s.d_mlp or 0) + 4 * s.n_heads * s.d_head for s in facts.layers)
        return (held + tape) * size

    def recorded(self) -> Iterator[RecordedNodes]:
        """Every group, recorded; those that fit the budget are kept."""
        for number, group in enumerate(self.groups):
            if number not in self._kept:
                made = self._record(group)
                held = sum(r.nbytes() for r in self._kept.values())
                if made.nbytes() + held > self.memory // 3:
                    yield made
                    continue
                self._kept[number] = made
            yield self._kept[number]

    @torch.no_grad()
    def _record(self, group: Group) -> RecordedNodes:
        binding = self.bench.binding
        reads = self._reads()
        base = record_group(self.bench, group, 0, eager=self.eager, reads=list(reads.values()))
        metrics, logits = base_metrics(self.bench, group, base)
        start = 0 if base.mode == "layers" else min(self._parts(p) for p in group.prompts)
        start = min(start, int(group.scored.min()))
        before = _taken(reads, dict(enumerate(base.resid)), (base.n, base.width), start)
        rows = pack(rows_of_group(self.bench, group, self.donor))
        reads, ends = self._reads(), {0: Read("embed", None), len(binding.slots): Read("final_resid", None)}
        tokens = Tokens(rows.ids, torch.ones_like(rows.mask), rows.padding)
        forward(
            binding,
            tokens,
            [*reads.values(), *ends.values()],
            [],
            logits=None,
            attention=replay_attention(binding, self.eager),
        )
        streams = {layer: read.value for layer, read in ends.items()}
        after = _taken(reads, streams, (base.n, base.width), start)
        own = torch.zeros(base.n, base.width - start, dtype=torch.bool)
        for length, mine in zip(group.lengths, group.rows_of, strict=True):
            own[list(mine), : length - start] = True
        run = Played(self.reading, base, start, group, logits)
        before, after = ({p: made[p] for p in self.points} for made in (before, after))
        return RecordedNodes(run, before, after, own.to(base.ids.device), metrics)

    def _reads(self) -> dict[Point, Read]:
        """Reads of the points; the streams at both ends are recorded anyway."""
        last = len(self.bench.binding.slots)
        return {(p, i): Read(p, i) for p, i in sorted(self.points) if p != STREAM or 0 < i < last}

    def _parts(self, prompt: int) -> int:
        """Where a prompt and its donor part; the last position where they never do."""
        pairs = zip(self.bench.ids[prompt], self.donor[prompt], strict=True)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), len(self.donor[prompt]) - 1)


def _entries(binding: Binding, point: Point, width: int) -> int:
    """Numbers per token of a point."""
    out = 1
    for size in inner_shape(binding, point[0], point[1], None, width):
        out *= size
    return out


def _taken(
    reads: Mapping[Point, Read], streams: Mapping[int, Tensor | None], shape: tuple[int, int], start: int
) -> dict[Point, Tensor]:
    """Values of reads and of streams, from the start on (copies: the rest of a prefix is not kept). Shapes: [row, pos, ...]."""
    found = {
        **{(STREAM, layer): value for layer, value in streams.items()},
        **{p: r.value for p, r in reads.items()},
    }
    return {p: own_columns(v, shape)[:, start:].clone() for p, v in found.items() if v is not None}
