"""Whether a circuit whose edges all lie on paths still is one after a few of them change, at the cost of those few.

All edges of a circuit lie on paths exactly when each is linked at both ends: its writer is the embedding or is fed by a
reader with a kept edge, and its reader is the unembedding or feeds a writer with a kept edge. (Layers order the graph, so
following the links downwards ends at the embedding, and upwards at the logits.) Counts at writers and readers tell both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from microtome.circuits.connect import mixes
from microtome.graph.nodes import Graph


class Links:
    """Counts of kept edges; the last entry of every row is over all spans. As in `connect`, keys and values pass on to all.

    edges: numbers in a mask of [span * edge], all on paths; spans: how many parts masks have.
    """

    def __init__(self, graph: Graph, edges: Iterable[int], spans: int) -> None:
        self.size, self.spans = len(graph.edges), spans
        self.writer, self.reader = graph.writer_of.tolist(), graph.reader_of.tolist()
        self.feeds = [feeds.tolist() for feeds in graph.feeds]
        self.mixes = [mixes(graph, r) for r in range(len(graph.readers))]
        self.feeders: list[list[int]] = [[] for _ in graph.writers]
        for r, feeds in enumerate(self.feeds):
            for w in feeds:
                self.feeders[w].append(r)
        self.out = [[0] * (spans + 1) for _ in graph.writers]
        self.into = [[0] * (spans + 1) for _ in graph.readers]
        self.supply = [[0] * (spans + 1) for _ in graph.writers]
        for edge in edges:
            self._count(int(edge), 1)

    def _count(self, edge: int, by: int) -> None:
        span, number = divmod(edge, self.size)
        w, r = self.writer[number], self.reader[number]
        for row in (self.out[w], self.into[r]):
            row[span] += by
            row[-1] += by
        at = -1 if self.mixes[r] else span
        for fed in self.feeds[r]:
            self.supply[fed][at] += by

    def _fed(self, w: int, span: int) -> bool:
        """A writer with kept edges in a span is reached."""
        return not w or not self.out[w][span] or self.supply[w][span] > 0 or self.supply[w][-1] > 0

    def _leads(self, r: int, span: int) -> bool:
        """A reader with kept edges in a span leads on."""
        feeds = self.feeds[r]
        if not feeds or not self.into[r][span]:
            return True
        at = -1 if self.mixes[r] else span
        return any(self.out[w][at] for w in feeds)

    def change(self, removed: Sequence[int], added: Sequence[int]) -> bool:
        """Exchange some edges if all are on paths afterwards; else leave everything as it was."""
        for edge in removed:
            self._count(edge, -1)
        for edge in added:
            self._count(edge, 1)
        if all(map(self._linked, added)) and all(map(self._missed_by_none, removed)):
            return True
        for edge in removed:
            self._count(edge, 1)
        for edge in added:
            self._count(edge, -1)
        return False

    def _linked(self, edge: int) -> bool:
        span, number = divmod(edge, self.size)
        return self._fed(self.writer[number], span) and self._leads(self.reader[number], span)

    def _missed_by_none(self, edge: int) -> bool:
        """Nothing that hung on a removed edge is left without a link."""
        span, number = divmod(edge, self.size)
        r = self.reader[number]
        spans = range(self.spans) if self.mixes[r] else (span,)
        if not all(self._fed(w, s) for w in self.feeds[r] for s in spans):
            return False
        return all(self._leads(f, -1 if self.mixes[f] else span) for f in self.feeders[self.writer[number]])


def spans_of(graph: Graph, pool: np.ndarray) -> int:
    """How many parts masks have, from the largest number of an edge."""
    return 1 + int(pool.max()) // len(graph.edges) if len(pool) else 1
