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

from microtome.circuits.links import Links, spans_of
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
    """A walk over linked circuits. pool: numbers of the edges that may be in; strata: of the pool; start: indices in the pool.

    The start itself has to be linked.
    """

    graph: Graph
    pool: np.ndarray
    strata: Strata
    start: np.ndarray
    seed: int
    _place: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._place = {int(edge): i for i, edge in enumerate(self.pool)}
        self._edges: list[int] = self.pool.tolist()
        self._codes: list[int] = self.strata.codes.tolist()
        self._begin()

    def _begin(self) -> None:
        """Stand at the start."""
        self._here = np.sort(self.start)
        self._inside = set(self._here.tolist())
        self._links = Links(self.graph, self.pool[self.start], spans_of(self.graph, self.pool))

    def sets(self, draws: int) -> list[np.ndarray]:
        """Up to so many different circuits, none of them the start. -> [draw][index in the pool], sorted."""
        rng = seeds.rng(self.seed, f"circuit evaluation/linked/{len(self.strata.names)}")
        self._begin()  # asked twice, it gives the same circuits
        seen, out = {self._here.tobytes()}, []
        moves = max(MOVES, 4 * len(self._here))
        for step in range(3 * draws + 10):
            for _ in range(10 * moves if step == 0 else moves):
                self._try(self._swapped(rng) if rng.random() < 0.5 else self._exchanged(rng))
            found = np.sort(self._here)
            if found.tobytes() not in seen:
                seen.add(found.tobytes())
                out.append(found)
            if len(out) == draws:
                break
        return out

    def _try(self, moved: dict[int, int] | None) -> None:
        """Take a move, place in `here` -> index in the pool, where it leaves a linked circuit."""
        if moved is None:
            return
        new = set(moved.values())
        old = [int(self._here[place]) for place in moved]
        if len(new) < len(moved) or new & (self._inside - set(old)):
            return  # one edge twice
        if self._links.change([self._edges[i] for i in old], [self._edges[i] for i in moved.values()]):
            self._inside.difference_update(old)
            self._inside |= new
            for place, i in moved.items():
                self._here[place] = i

    @cached_property
    def _same(self) -> list[np.ndarray]:
        return [np.flatnonzero(self.strata.codes == code) for code in range(len(self.strata.names))]

    def _exchanged(self, rng: np.random.Generator) -> dict[int, int]:
        """A few edges for others of their strata."""
        out = {}
        for place in rng.integers(len(self._here), size=1 + int(rng.integers(EXCHANGED))).tolist():
            same = self._same[self._codes[int(self._here[place])]]
            out[place] = int(same[rng.integers(len(same))])
        return out

    @cached_property
    def _blocks(self) -> tuple[list[Block], list[Block]]:
        heads = [(i, g) for i, (_, groups, _, _) in enumerate(self.graph.shape) for g in range(groups)]
        return heads, [(i, -1) for i, (_, _, mlp, _) in enumerate(self.graph.shape) if mlp]

    @cached_property
    def _ends(self) -> np.ndarray:
        """The number of the part at each end of every edge of the graph, -1 the embedding or logits. Shapes: [2, edge]."""
        number = {block: i for i, block in enumerate(self._blocks[0] + self._blocks[1])}
        writers = [number.get(self._of_writer(w), -1) for w in range(len(self.graph.writers))]
        readers = [number.get(self._of_reader(r), -1) for r in range(len(self.graph.readers))]
        return np.stack([np.array(writers)[self.graph.writer_of], np.array(readers)[self.graph.reader_of]])

    def _swapped(self, rng: np.random.Generator) -> dict[int, int] | None:
        """Two parts in each other's roles; None where an edge would go backwards, out of the pool or to another stratum."""
        which = int(rng.integers(2))
        kind, before = self._blocks[which], len(self._blocks[0]) if which else 0
        if len(kind) < 2:
            return None
        a, b = (int(i) for i in rng.choice(len(kind), size=2, replace=False))
        one, other = kind[a], kind[b]
        turn, size = int(rng.integers(64)), len(self.graph.edges)
        edges = self.pool[self._here]
        ends = self._ends[:, edges % size]
        places = np.flatnonzero(((ends == before + a) | (ends == before + b)).any(0)).tolist()
        out = {}
        for place in places:
            edge = int(edges[place])
            writer = self._writer(int(self.graph.writer_of[edge % size]), one, other, turn)
            reader = self._reader(int(self.graph.reader_of[edge % size]), one, other, turn)
            if writer is None or reader is None or writer >= self.graph.readers[reader].reach:
                return None
            out[place] = self._place.get(edge - edge % size + int(self.graph.offsets[reader]) + writer, -1)
            if out[place] < 0:
                return None
        old = sorted(self._codes[int(self._here[place])] for place in places)
        return out if sorted(self._codes[i] for i in out.values()) == old else None

    def _of_writer(self, number: int) -> Block:
        w = self.graph.writers[number]
        return (w.layer, w.index // self._share(w.layer) if w.kind == "head" else -1)

    def _of_reader(self, number: int) -> Block:
        r = self.graph.readers[number]
        if r.kind in ("mlp", "logits"):
            return (r.layer, -1)
        return (r.layer, r.index // self._share(r.layer) if r.kind == "q" else r.index)

    def _share(self, layer: int) -> int:
        heads, groups, _, _ = self.graph.shape[layer]
        return heads // groups

    def _target(self, block: Block, one: Block, other: Block) -> Block:
        return other if block == one else one if block == other else block

    def _writer(self, number: int, one: Block, other: Block, turn: int) -> int | None:
        w = self.graph.writers[number]
        if w.kind == "embed":
            return number
        block = self._of_writer(number)
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
        block = self._of_reader(number)
        target = self._target(block, one, other)
        if target == block:
            return number
        index = {"mlp": 0, "q": self._head(r.index, block, target, one, turn)}.get(r.kind, target[1])
        there = self.graph.readers_at(target[0], r.kind)
        return there[index] if index < len(there) else None
