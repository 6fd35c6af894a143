"""Random circuits whose edges all lie on paths, by a walk of exchanges.

Drawing edges at random hardly ever gives a linked circuit, so one circuit is turned into the next by small moves that keep
the shape (so many edges of each stratum) and the links. Two kinds of moves: some edges for others of their strata; and two
parts (MLPs, or the heads of two key/value groups) change roles with all their edges, without which a chain of edges through a
head could be left only all at once. Both are as likely backwards as forwards, so that in the long run every linked circuit of
the shape is as likely as any other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from microtome.circuits.connect import all_on_paths
from microtome.controls.sampling import Strata
from microtome.graph.nodes import Graph
from microtome.results import seeds

MOVES = 60
"""Proposed moves between two circuits of the walk, or four per edge where that is more."""
EXCHANGED = 3
"""Most edges exchanged in one move."""

Block = tuple[int, int]  # (layer, key/value group), or (layer, -1): its MLP


@dataclass
class Walk:
    """A walk over linked circuits. pool: numbers of the edges that may be in; strata: of the pool; start: indices in the pool."""

    graph: Graph
    pool: np.ndarray
    strata: Strata
    start: np.ndarray
    seed: int
    _place: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._place = {int(edge): i for i, edge in enumerate(self.pool)}

    def sets(self, draws: int) -> list[np.ndarray]:
        """Up to so many different circuits, none of them the start. -> [draw][index in the pool], sorted."""
        rng = seeds.rng(self.seed, f"circuit evaluation/linked/{len(self.strata.names)}")
        here = np.sort(self.start)
        seen, out = {here.tobytes()}, []
        moves = max(MOVES, 4 * len(here))
        for step in range(3 * draws + 10):
            for _ in range(10 * moves if step == 0 else moves):
                new = self._swapped(here, rng) if rng.random() < 0.5 else self._exchanged(here, rng)
                if new is not None and all_on_paths(self.graph, self.pool[new]):
                    here = new
            if here.tobytes() not in seen:
                seen.add(here.tobytes())
                out.append(here)
            if len(out) == draws:
                break
        return out

    @cached_property
    def _same(self) -> list[np.ndarray]:
        return [np.flatnonzero(self.strata.codes == code) for code in range(len(self.strata.names))]

    def _exchanged(self, here: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
        """A few edges for others of their strata; None where one would be in twice."""
        new = here.copy()
        for place in rng.integers(len(here), size=1 + int(rng.integers(EXCHANGED))):
            same = self._same[self.strata.codes[here[place]]]
            new[place] = same[rng.integers(len(same))]
        new = np.sort(new)
        return None if (new[1:] == new[:-1]).any() else new

    @cached_property
    def _blocks(self) -> tuple[list[Block], list[Block]]:
        heads = [(i, g) for i, (_, groups, _, _) in enumerate(self.graph.shape) for g in range(groups)]
        return heads, [(i, -1) for i, (_, _, mlp, _) in enumerate(self.graph.shape) if mlp]

    def _swapped(self, here: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
        """Two parts in each other's roles; None where an edge would go backwards, out of the pool or to another stratum."""
        kind = self._blocks[int(rng.integers(2))]
        if len(kind) < 2:
            return None
        one, other = (kind[int(i)] for i in rng.choice(len(kind), size=2, replace=False))
        turn, size = int(rng.integers(64)), len(self.graph.edges)
        new = []
        for edge in self.pool[here].tolist():
            writer = self._writer(int(self.graph.writer_of[edge % size]), one, other, turn)
            reader = self._reader(int(self.graph.reader_of[edge % size]), one, other, turn)
            if writer is None or reader is None or writer >= self.graph.readers[reader].reach:
                return None
            new.append(self._place.get(edge - edge % size + int(self.graph.offsets[reader]) + writer, -1))
        out = np.sort(np.array(new))
        kept = out[0] >= 0 and bool(
            (np.sort(self.strata.codes[out]) == np.sort(self.strata.codes[here])).all()
        )
        return out if kept else None

    def _share(self, layer: int) -> int:
        heads, groups, _, _ = self.graph.shape[layer]
        return heads // groups

    def _target(self, block: Block, one: Block, other: Block) -> Block:
        return other if block == one else one if block == other else block

    def _writer(self, number: int, one: Block, other: Block, turn: int) -> int | None:
        w = self.graph.writers[number]
        if w.kind == "embed":
            return number
        block = (w.layer, -1) if w.kind == "mlp" else (w.layer, w.index // self._share(w.layer))
        layer, group = self._target(block, one, other)
        if (layer, group) == block:
            return number
        if w.kind == "mlp":
            return self.graph.writer_number[f"L{layer}.mlp_out"]
        return self.graph.writer_number.get(
            f"L{layer}H{self._head(w.index, block, (layer, group), one, turn)}.z"
        )

    def _head(self, index: int, block: Block, target: Block, one: Block, turn: int) -> int:
        """The head of a block that takes a head's role: turned one way going, the other way coming."""
        share, mine = self._share(target[0]), self._share(block[0])
        shift = turn if block == one else -turn
        return target[1] * share + (index % mine + shift) % share

    def _reader(self, number: int, one: Block, other: Block, turn: int) -> int | None:
        r = self.graph.readers[number]
        if r.kind == "logits":
            return number
        group = -1 if r.kind == "mlp" else r.index // self._share(r.layer) if r.kind == "q" else r.index
        target = self._target((r.layer, group), one, other)
        if target == (r.layer, group):
            return number
        index = {"mlp": 0, "q": self._head(r.index, (r.layer, group), target, one, turn)}.get(
            r.kind, target[1]
        )
        there = self.graph.readers_at(target[0], r.kind)
        return there[index] if index < len(there) else None
