"""Which edges of a circuit lie on a path from the embedding to the logits.

A reader passes on what it reads through the writers that it feeds: its head, the heads of its key/value group, its MLP. An
edge counts when its writer is reached from the embedding and its reader leads to the logits. Masks with one part per span:
queries and MLPs pass on within their span, keys and values to every span (a superset of what causal order allows).
"""

from __future__ import annotations

import numpy as np

from microtome.errors import ControlError
from microtome.graph.nodes import Graph

__all__ = ["all_on_paths", "connected", "leading", "live_readers", "mixes", "reached", "require_path"]


def mixes(graph: Graph, reader: int) -> bool:
    """True where attention carries what is read to other positions."""
    return graph.readers[reader].kind in ("k", "v")


def _by_span(graph: Graph, kept: np.ndarray) -> np.ndarray:
    return np.asarray(kept, dtype=bool).reshape(-1, len(graph.edges))


def reached(graph: Graph, kept: np.ndarray) -> np.ndarray:
    """Writers that the embedding reaches through kept edges. Shapes: kept [span * edge] -> [span, writer]."""
    mask = _by_span(graph, kept)
    out = np.zeros((len(mask), len(graph.writers)), dtype=bool)
    out[:, 0] = True
    for i, feeds in enumerate(graph.feeds):
        reach = graph.readers[i].reach
        first = int(graph.offsets[i])
        hit = (mask[:, first : first + reach] & out[:, :reach]).any(1)
        if len(feeds) and hit.any():
            spans = np.full(len(mask), True) if mixes(graph, i) else hit
            out[np.ix_(spans, feeds)] = True
    return out


def live_readers(graph: Graph, leads: np.ndarray, reader: int) -> np.ndarray:
    """Spans in which a reader leads to the logits, given which writers do. Shapes: leads [span, writer] -> [span]."""
    feeds = graph.feeds[reader]
    if not len(feeds):
        return np.ones(len(leads), dtype=bool)
    here = np.asarray(leads[:, feeds].any(1))
    if mixes(graph, reader):
        return np.full(len(leads), bool(here.any()))
    return here


def leading(graph: Graph, kept: np.ndarray) -> np.ndarray:
    """Writers from which kept edges lead to the logits. Shapes: kept [span * edge] -> [span, writer]."""
    mask = _by_span(graph, kept)
    out = np.zeros((len(mask), len(graph.writers)), dtype=bool)
    for i in reversed(range(len(graph.readers))):
        live = live_readers(graph, out, i)
        reach, first = graph.readers[i].reach, int(graph.offsets[i])
        out[:, :reach] |= mask[:, first : first + reach] & live[:, None]
    return out


def connected(graph: Graph, kept: np.ndarray) -> np.ndarray:
    """The kept edges on a path from the embedding to the logits. Shapes: [span * edge] bool -> same."""
    mask = _by_span(graph, kept)
    sources, leads = reached(graph, kept), leading(graph, kept)
    live = np.stack([live_readers(graph, leads, i) for i in range(len(graph.readers))], 1)
    out: np.ndarray = mask & sources[:, graph.writer_of] & live[:, graph.reader_of]
    return out.reshape(-1)


def all_on_paths(graph: Graph, edges: np.ndarray) -> bool:
    """Whether each of a few edges lies on a path through them. As `connected`, at the cost of these edges only.

    Shapes: edges [kept], numbers in a mask of [span * edge].
    """
    size, feeds = len(graph.edges), graph.feeds
    rows = sorted((int(e) % size, int(e) // size) for e in edges)
    parts = [(int(graph.writer_of[e]), int(graph.reader_of[e]), span) for e, span in rows]
    seen: set[tuple[int, int]] = set()  # (writer, span); span -1: in all of them
    for writer, reader, span in parts:
        if writer and (writer, span) not in seen and (writer, -1) not in seen:
            return False
        seen.update((int(w), -1 if mixes(graph, reader) else span) for w in feeds[reader])
    leads: set[tuple[int, int]] = set()
    anywhere: set[int] = set()
    for writer, reader, span in reversed(parts):
        fed = feeds[reader]
        if len(fed) and not any(int(w) in anywhere if mixes(graph, reader) else (int(w), span) in leads for w in fed):  # fmt: skip
            return False
        leads.add((writer, span))
        anywhere.add(writer)
    return bool(parts)


def require_path(graph: Graph, kept: np.ndarray) -> None:
    """Refuse to score a circuit in which nothing goes from the embedding to the logits.

    Shapes: kept [span * edge] bool.

    Raises
    ------
    ControlError: no path.
    """
    if connected(graph, kept).any():
        return
    count = int(np.asarray(kept).sum())
    raise ControlError(f"this circuit of {count:,} edges has no path from the embedding to the logits",
                       why="nothing that it keeps can carry a difference between prompts to the output",
                       instead="a larger circuit, or select='greedy', which grows from the logits")  # fmt: skip
