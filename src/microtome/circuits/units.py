"""What a circuit is chosen from: single edges, or all edges that leave a node; and the orders in which they are taken."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from microtome.circuits.question import Question
from microtome.errors import ControlError
from microtome.graph.nodes import Graph
from microtome.results.arguments import ArgumentError, suggest

SELECTIONS = ("top-n", "greedy")


@dataclass(frozen=True)
class Units:
    """The parts that are in or out as a whole. granularity "edge": every edge (of every span); "node": every writer.

    fixed: edges that every circuit has. Shapes: [span * edge].
    """

    graph: Graph
    spans: int
    granularity: str
    fixed: np.ndarray

    @classmethod
    def of(cls, question: Question) -> Units:
        """Those of a question's choices."""
        spans = max(1, len(question.runs.spans))
        return cls(question.graph, spans, question.choices.granularity, question.fixed.numpy())

    @property
    def edges(self) -> int:
        """Numbers in a mask."""
        return self.spans * len(self.graph.edges)

    @cached_property
    def of_edge(self) -> np.ndarray:
        """The unit of every edge. Shapes: [span * edge]."""
        if self.granularity == "edge":
            return np.arange(self.edges)
        span = np.repeat(np.arange(self.spans), len(self.graph.edges))
        return span * len(self.graph.writers) + np.tile(self.graph.writer_of, self.spans)

    def __len__(self) -> int:
        return self.edges if self.granularity == "edge" else self.spans * len(self.graph.writers)

    @cached_property
    def free(self) -> np.ndarray:
        """Units that may be left out. Shapes: [unit]."""
        out = np.zeros(len(self), dtype=bool)
        out[self.of_edge[~self.fixed]] = True
        return out

    @cached_property
    def _members(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.of_edge, kind="stable")
        return order, np.searchsorted(self.of_edge[order], np.arange(len(self) + 1))

    def members(self, unit: int) -> np.ndarray:
        """Numbers of a unit's edges."""
        if self.granularity == "edge":
            return np.array([unit])
        order, ends = self._members
        return order[ends[unit] : ends[unit + 1]]

    def mask(self, kept: np.ndarray) -> np.ndarray:
        """Edges of some units, and those that are fixed. Shapes: [..., unit] bool -> [..., edge]."""
        out: np.ndarray = kept[..., self.of_edge] | self.fixed
        return out

    def scores(self, values: np.ndarray) -> np.ndarray:
        """Scores of units: of their edges, added up. Shapes: [edge, ...] -> [unit, ...]."""
        if self.granularity == "edge":
            return values
        out = np.zeros((len(self), *values.shape[1:]))
        np.add.at(out, self.of_edge, values)
        return out

    def walk(self) -> np.ndarray:
        """Units from the logits to the embedding: readers from last to first, and each one's writers likewise."""
        per_span = len(self) // self.spans
        return (np.arange(self.spans)[::-1] * per_span + np.arange(per_span)[::-1, None]).reshape(-1)

    def block_of(self, unit: int) -> tuple[int, bool]:
        """The layer that a unit's edges go into (a node: come from), and whether it is its MLP's."""
        if self.granularity == "edge":
            reader = self.graph.readers[self.graph.reader_of[unit % len(self.graph.edges)]]
            return reader.layer, reader.kind == "mlp"
        writer = self.graph.writers[unit % len(self.graph.writers)]
        return writer.layer, writer.kind == "mlp"

    @cached_property
    def layers(self) -> np.ndarray:
        """The layer that a unit's edges go into (a node: come from). Shapes: [unit]."""
        parts = self.graph.readers if self.granularity == "edge" else self.graph.writers
        layers = np.array([part.layer for part in parts])
        each = layers[self.graph.reader_of] if self.granularity == "edge" else layers
        return np.tile(each, self.spans)

    @cached_property
    def kinds(self) -> list[str]:
        """What a unit is: "head->q", or "head". Shapes: [unit]."""
        if self.granularity == "node":
            return [w.kind for w in self.graph.writers] * self.spans
        to, of = ([part.kind for part in side] for side in (self.graph.readers, self.graph.writers))
        pairs = zip(self.graph.writer_of.tolist(), self.graph.reader_of.tolist(), strict=True)
        return [f"{of[w]}->{to[r]}" for w, r in pairs] * self.spans

    def name(self, unit: int, spans: tuple[str, ...] = ()) -> str:
        """A unit's name: "L0H1.z->L1.ln2_out", or "L0H1.z"; with spans "@" and its span."""
        per_span = len(self) // self.spans
        place = unit % per_span
        name = self.graph.name(place) if self.granularity == "edge" else self.graph.writers[place].name
        return f"{name}@{spans[unit // per_span]}" if spans else name


def ranked(units: Units, scores: np.ndarray, select: str, *, absolute: bool) -> np.ndarray:
    """Units that may be left out, in the order in which they join a circuit. Shapes: scores [unit] -> [free unit].

    "top-n": by score. "greedy": the best edge whose reader's node is already connected, from the logits on (Hanna et al.
    2024, `apply_greedy`); edges that nothing connects are not in it.

    Raises
    ------
    ArgumentError: an unknown selection, or greedy selection of nodes.
    """
    if select not in SELECTIONS:
        raise ArgumentError(f"select={select!r} is no selection", why="edges are taken by score alone or grown from the logits",
                            instead=suggest(select, SELECTIONS))  # fmt: skip
    value = np.abs(scores) if absolute else scores
    if select == "top-n":
        order = np.argsort(-value, kind="stable")
        return order[units.free[order]]
    if units.granularity != "edge":
        raise ArgumentError("select='greedy' of nodes", why="growing from the logits goes edge by edge",
                            instead="select='top-n', or granularity='edge'")  # fmt: skip
    return _grown(units, value)


def _grown(units: Units, value: np.ndarray) -> np.ndarray:
    graph, size = units.graph, len(units.graph.edges)
    feeders: list[list[int]] = [[] for _ in graph.writers]
    for reader, feeds in enumerate(graph.feeds):
        for writer in feeds:
            feeders[writer].append(reader)
    seen: set[tuple[int, int]] = set()
    heap: list[tuple[float, int]] = []

    def open_reader(span: int, reader: int) -> None:
        if (span, reader) in seen:
            return
        seen.add((span, reader))
        first = span * size + int(graph.offsets[reader])
        for edge in range(first, first + graph.readers[reader].reach):
            # what is fixed is in from the start and connects for nothing
            heapq.heappush(heap, (-np.inf if units.fixed[edge] else -float(value[edge]), edge))

    for span in range(units.spans):
        open_reader(span, len(graph.readers) - 1)
    out: list[int] = []
    while heap:
        edge = heapq.heappop(heap)[1]
        if not units.fixed[edge]:
            out.append(edge)
        span, writer = edge // size, int(graph.writer_of[edge % size])
        for reader in feeders[writer]:
            everywhere = graph.readers[reader].kind in ("k", "v")
            for there in range(units.spans) if everywhere else (span,):
                open_reader(there, reader)
    return np.array(out, dtype=np.int64)


def first(units: Units, order: np.ndarray, size: int) -> np.ndarray:
    """The first units of an order, as a mask of edges. Shapes: -> [edge] bool.

    Raises
    ------
    ControlError: more than there are.
    """
    what = "edges" if units.granularity == "edge" else "nodes"
    if not 0 < size <= len(order):
        raise ControlError(f"a circuit of {size:,} {what}", why=f"there are {len(order):,} that may be left out",
                           instead=f"a size from 1 to {len(order):,}")  # fmt: skip
    kept = np.zeros(len(units), dtype=bool)
    kept[order[:size]] = True
    return units.mask(kept)
