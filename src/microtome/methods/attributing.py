"""Estimated maps of nodes and of edges, each with the means to verify any of its cells exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from microtome.errors import TaskError
from microtome.graph.donors import Prompts as DonorRuns
from microtome.graph.exact import exact_edges
from microtome.graph.node_runs import STREAM, NodeRuns
from microtome.graph.node_scores import KEYS, QUERIES, Node, NodeScores, node_scores
from microtome.graph.nodes import Graph
from microtome.graph.patched import EdgeRuns
from microtome.graph.scores import INTERPOLATED, EdgeScores, edge_scores
from microtome.graph.softmax import saturation
from microtome.methods.setting import Column, Label, Setting, cell, columns, settings
from microtome.replay.plan import Cell, as_stream
from microtome.replay.sources import Prompts
from microtome.replay.sweep import measure, sweep
from microtome.results.technique import progress
from microtome.sites import Site

if TYPE_CHECKING:
    import pandas as pd

BOOST = 4.0
"""How many times the even share of the sample goes to queries and keys of saturated heads."""
OFTEN = 0.5
"""A head is saturated where this share of its queries is."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Saturated:
    """How saturated attention is. heads: share per [layer, head] (NaN: no pattern); share: over all of them; n: (head, query) pairs."""

    heads: Floats
    n: int

    @property
    def share(self) -> float:
        """Over all heads; NaN where this family shows no pattern."""
        known = self.heads[np.isfinite(self.heads)]
        return float(known.mean()) if known.size else float("nan")

    def often(self, layer: int, heads: Sequence[int]) -> bool:
        """Whether any of these heads is saturated at most of its queries."""
        found = self.heads[layer, list(heads)]
        return bool((found[np.isfinite(found)] > OFTEN).any())


@dataclass(frozen=True)
class Attributed:
    """An estimated map and how to verify it.

    labels: of every cell; shape: of the cells, [site] or [site, position], with the coordinates of each axis. Shapes: estimate
    [cell, prompt]; weight, boost [cell]: see `controls.missed.draw_verified`. exact: cells -> [cell, prompt]; joint: the flagged
    cells -> (effect of patching all others together, donor minus base), each [prompt].
    """

    labels: list[str]
    coords: dict[str, tuple[Label, ...]]
    estimate: Floats
    weight: Floats
    boost: Floats
    gap: float
    steps: int
    passes: int
    saturated: Saturated
    exact: Callable[[Sequence[int]], Floats]
    joint: Callable[[Sequence[int]], tuple[Floats, Floats]]
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths along the cells' axes."""
        return tuple(len(labels) for labels in self.coords.values())

    def keys(self) -> pd.DataFrame:
        """Site, and position where there is one, of every cell."""
        import pandas as pd

        grid = np.indices(self.shape).reshape(len(self.shape), -1)
        return pd.DataFrame(
            {d: [labels[i] for i in at] for (d, labels), at in zip(self.coords.items(), grid, strict=True)}
        )


def saturated_heads(s: Setting) -> Saturated:
    """Shares of saturated attention in the base runs, from the first token in which each pair differs."""
    starts = []
    for base, donor in zip(s.base.ids, s.donor.ids, strict=True):
        parted = (i for i, (a, b) in enumerate(zip(base, donor, strict=False)) if a != b)
        starts.append(min(next(parted, len(base) - 1), len(base) - 1))
    heads = saturation(s.bench, starts).double().numpy()
    queries = sum(len(ids) - start for ids, start in zip(s.base.ids, starts, strict=True))
    return Saturated(heads, int(np.isfinite(heads).sum()) * queries)


def attribute_nodes(
    s: Setting, named: Sequence[Site], positions: Sequence[Label] | str | None, how: str
) -> Attributed:
    """Estimates of sites at columns of positions.

    Raises
    ------
    SiteError, TaskError: sites that sweeps do not cover, positions that these prompts lack; as `node_scores`.
    """
    found: list[Column] | list[None]
    if isinstance(positions, str) and positions != "all":
        raise TaskError(f"positions={positions!r}", why="it is a list of positions, or all of them together", instead='"all", or a list such as ["subject", -1]')  # fmt: skip
    found, s = ([None], s) if isinstance(positions, str) else columns(s, positions)
    layers = len(s.model.binding.slots)
    nodes = [_node(site, layers) for site in named]
    runs = NodeRuns(_first(s).bench, s.donor.ids, {n.where for n in nodes}, eager=how == "atp*" and _attends(nodes), progress=_told("attributing"))  # fmt: skip
    scores = node_scores(runs, nodes, [None if c is None else c.names for c in found], how)
    cells = [cell(site, column) for site in named for column in found]
    sharp = saturated_heads(s)
    boost = np.repeat([BOOST if _sharp(n, sharp, s) else 1.0 for n in nodes], len(found))
    coords: dict[str, tuple[Label, ...]] = {"site": tuple(map(str, named))}
    if not isinstance(positions, str):
        coords["position"] = tuple(c.label for c in found if c is not None)
    return _of_nodes(_first(s), cells, coords, scores, boost, sharp)


def _first(s: Setting) -> Setting:
    """Only the first metric: it alone is estimated."""
    return replace(s, bench=replace(s.bench, metrics=s.bench.metrics[:1]))


def _node(site: Site, layers: int) -> Node:
    """A site as sweeps name it."""
    stream = as_stream(site, layers)
    assert isinstance(stream.layer, int)
    return Node(stream.point, stream.layer, stream.index if isinstance(stream.index, int) else None)


def _attends(nodes: Sequence[Node]) -> bool:
    return any(n.point in (*QUERIES, *KEYS) for n in nodes)


def _sharp(node: Node, sharp: Saturated, s: Setting) -> bool:
    """Whether a node works through the softmax of a saturated head."""
    if node.point not in (*QUERIES, *KEYS, "scores") or node.layer >= len(s.model.facts.layers):
        return False
    facts = s.model.facts.layers[node.layer]
    share = facts.n_heads // facts.n_kv_heads if node.point in KEYS else 1
    heads = (
        range(facts.n_heads) if node.index is None else range(node.index * share, (node.index + 1) * share)
    )
    return sharp.often(node.layer, heads)


def _of_nodes(s: Setting, cells: Sequence[Cell], coords: dict[str, tuple[Label, ...]], scores: NodeScores, boost: Floats,
              sharp: Saturated) -> Attributed:  # fmt: skip
    donor = {"donor": Prompts(s.donor.ids)}

    def exact(which: Sequence[int]) -> Floats:
        out = sweep(s.bench, [cells[i] for i in which], donor, settings("verifying"))
        return out.effects[..., 0].numpy().astype(np.float64)

    def joint(flagged: Sequence[int]) -> tuple[Floats, Floats]:
        inside = set(flagged)
        rest = Cell(
            tuple(change for i, c in enumerate(cells) if i not in inside for change in c.changes),
            "not flagged",
        )
        total = (measure(s.donor_bench()) - measure(s.bench))[:, 0].numpy().astype(np.float64)
        if not rest.changes:
            return np.zeros_like(total), total
        out = sweep(s.bench, [rest], donor, settings("everything not flagged"))
        return out.effects[0, :, 0].numpy().astype(np.float64), total

    values = scores.values.flatten(0, 1).double().numpy()
    weight = scores.weight.flatten().double().numpy()
    return Attributed([c.label for c in cells], coords, values, weight, boost, scores.gap, scores.steps, scores.passes, sharp, exact, joint)  # fmt: skip


def attribute_edges(s: Setting, how: str) -> Attributed:
    """Estimates of all edges of the model's graph.

    Raises
    ------
    SiteError: a family without a graph. TaskError: as `edge_scores`.
    """
    s = _first(s)
    runs = EdgeRuns(s.bench, DonorRuns(s.donor.ids), progress=_told("attributing"))
    scores: EdgeScores = edge_scores(runs, how)
    runs.progress = None
    sharp, graph = saturated_heads(s), runs.graph
    of_reader = []
    for reader in graph.readers:
        heads, groups = graph.shape[reader.layer][:2] if reader.kind in "qkv" else (1, 1)
        share = 1 if reader.kind == "q" else heads // groups
        mine = range(reader.index * share, (reader.index + 1) * share)
        of_reader.append(BOOST if reader.kind in ("q", "k") and sharp.often(reader.layer, mine) else 1.0)
    edges = list(graph.edges)

    def exact(which: Sequence[int]) -> Floats:
        out = exact_edges(runs, which, settings("verifying"))
        return out.effects[..., 0].numpy().astype(np.float64)

    def joint(flagged: Sequence[int]) -> tuple[Floats, Floats]:
        masks = torch.ones(2, len(edges), dtype=torch.bool)
        masks[0, list(flagged)] = False
        found = (runs.measure(masks) - runs.base())[..., 0].numpy().astype(np.float64)
        return found[0], found[1]

    return Attributed(edges, {"site": tuple(edges)}, scores.values.double().numpy(), scores.weight.double().numpy(), np.array(of_reader)[graph.reader_of],
                      scores.gap, scores.steps, scores.passes, sharp, exact, joint, {"writers": _writers(s, runs.graph, scores, how)})  # fmt: skip


def _writers(s: Setting, graph: Graph, scores: EdgeScores, how: str) -> pd.DataFrame:
    """What the edges of every writer add up to, beside its own estimate as a node.

    They agree for the gradient; the difference is what a way does to edges and not to nodes. Interpolations would take all
    their passes again for it: there the node's own estimate is left out (NaN).
    """
    import pandas as pd

    total = torch.zeros(len(graph.writers), dtype=torch.float64)
    total.index_add_(0, torch.as_tensor(graph.writer_of), scores.values.double().mean(1))
    own = np.full(len(graph.writers), np.nan)
    if how not in INTERPOLATED:
        point = {"embed": STREAM, "head": "z", "mlp": "mlp_out"}
        nodes = [
            Node(point[w.kind], max(w.layer, 0), w.index if w.kind == "head" else None) for w in graph.writers
        ]
        runs = NodeRuns(s.bench, s.donor.ids, {n.where for n in nodes})
        own = node_scores(runs, nodes, how=how).values[:, 0].double().mean(1).numpy()
    outgoing = total.numpy()
    return pd.DataFrame({"site": [w.name for w in graph.writers], "outgoing": outgoing, "own": own, "difference": outgoing - own})  # fmt: skip


def _told(note: str) -> Callable[[float, float], None]:
    return lambda done, total: progress(min(done, total), total, "groups", note)
