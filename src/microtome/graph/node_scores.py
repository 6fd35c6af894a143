"""Attribution of a metric to nodes: the donor's change of a point times the gradient there, per head, neuron and position.

The ways are those of `scores.py`. "ig-activations" interpolates all of one point of one layer together (all its heads, all its
neurons), so a node's score does not depend on which others were asked for. "atp*" recomputes attention patterns for queries
and keys; other points keep their gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from microtome.graph.gradients import Pass, Start, differentiate, own_columns, value_of
from microtome.graph.node_runs import STREAM, NodeRuns, Point, RecordedNodes
from microtome.graph.scores import INTERPOLATED, check_how, gap_of, per_prompt
from microtome.graph.softmax import patterns
from microtome.replay.plan import Group
from microtome.trace.session import Read, whole

QUERIES, KEYS = ("q", "q_pre"), ("k", "k_pre")
Column = tuple[str, ...] | None
"""Spans that make one column of positions; None: all of the prompt's own tokens."""


@dataclass(frozen=True)
class Node:
    """One node as sweeps name it: a point of a layer, whole or one head or neuron of it."""

    point: str
    layer: int
    index: int | None = None

    @property
    def where(self) -> Point:
        """Its point and layer."""
        return self.point, self.layer


@dataclass
class NodeScores:
    """Scores: the estimated change of the first metric, donor patched in minus base.

    Shapes: values, weight (size of difference times size of gradient, mean over prompts) [node, column, prompt] and [node,
    column]; the rest as in `EdgeScores`.
    """

    values: Tensor
    base: Tensor
    end: Tensor
    steps: int
    gap: float
    passes: int
    weight: Tensor


def node_scores(
    runs: NodeRuns,
    nodes: Sequence[Node],
    columns: Sequence[Column] = (None,),
    how: str = "gradient",
    *,
    steps: int = 8,
    tolerance: float = 0.02,
    most: int = 64,
) -> NodeScores:
    """Scores of nodes at columns of positions, on all prompts; `runs.points` must hold the nodes' points.

    steps, tolerance, most: as in `edge_scores`.

    Raises
    ------
    TaskError: an unknown `how`, or a metric that has no gradient at the base runs.
    """
    check_how(how, runs.bench)
    asked = _Asked.of(nodes, columns)
    if how not in INTERPOLATED:
        return _scores(runs, asked, lambda recorded: _plain(runs, recorded, asked, how), 1)
    cuts = _embedding if how == "ig-inputs" else _own
    while True:
        found = _scores(runs, asked, partial(_interpolated, runs, asked, steps, cuts), steps)
        if found.gap <= tolerance or 2 * steps > most:
            return found
        steps *= 2


@dataclass(frozen=True)
class _Asked:
    """nodes: per point, (numbers of its nodes, their heads or neurons or None); columns as asked."""

    n: int
    nodes: dict[Point, tuple[list[int], list[int | None]]]
    columns: tuple[Column, ...]

    @classmethod
    def of(cls, nodes: Sequence[Node], columns: Sequence[Column]) -> _Asked:
        found: dict[Point, tuple[list[int], list[int | None]]] = {}
        for number, node in enumerate(nodes):
            numbers, index = found.setdefault(node.where, ([], []))
            numbers.append(number)
            index.append(node.index)
        return cls(len(nodes), found, tuple(columns))

    def places(self, group: Group, start: int, columns: int) -> Tensor:
        """Which positions make each column. Shapes: [column, row, pos] bool, `columns` positions from the start on."""
        out = torch.zeros(len(self.columns), len(group.scored), start + columns, dtype=torch.bool)
        for c, names in enumerate(self.columns):
            for i, rows in enumerate(group.rows_of):
                spans = (
                    [(0, group.lengths[i])] if names is None else [group.spans[i].get(name) for name in names]
                )
                for span in spans:
                    if span is not None:
                        out[c, list(rows), span[0] : span[1]] = True
        return out[:, :, start:]

    def at(self, layer: int, layers: int) -> dict[str, Read]:
        """Live reads of a layer."""
        return {
            p: Read(p, i, live=True) for p, i in self.nodes if i == layer and (p != STREAM) and i < layers
        }


@dataclass
class _Part:
    """One group. Shapes: values, weight [node, column, row]; base, end, cut [prompt]."""

    values: Tensor
    weight: Tensor
    base: Tensor
    end: Tensor
    cut: Tensor
    passes: int


def _scores(runs: NodeRuns, asked: _Asked, one: Callable[[RecordedNodes], _Part], steps: int) -> NodeScores:
    values = torch.zeros(asked.n, len(asked.columns), runs.n)
    weight = torch.zeros(asked.n, len(asked.columns))
    base, end, cut = (torch.full((runs.n,), float("nan"), dtype=torch.float64) for _ in range(3))
    passes = 0
    for done, recorded in enumerate(runs.recorded(), 1):
        part, group = one(recorded), recorded.run.group
        prompts = torch.tensor(group.prompts)
        values[..., prompts] = per_prompt(group, part.values.float().cpu())
        weight += part.weight.float().cpu().sum(-1) / runs.n
        for all_, piece in ((base, part.base), (end, part.end), (cut, part.cut)):
            all_[prompts] = piece.double().cpu()
        passes += part.passes
        if runs.progress is not None:
            runs.progress(done, len(runs.groups))
    return NodeScores(values, base, end, steps, gap_of(base, end, cut), passes, weight)


def _plain(runs: NodeRuns, recorded: RecordedNodes, asked: _Asked, how: str) -> _Part:
    run = recorded.run
    fixed = [p for p in asked.nodes if how == "atp*" and p[0] in (*QUERIES, *KEYS)]
    layers = len(runs.bench.binding.slots)

    def reads(layer: int) -> dict[str, Read]:
        more = {"pattern": Read("pattern", layer, live=True)} if any(i == layer for _, i in fixed) else {}
        return {**asked.at(layer, layers), **more}

    made = differentiate(runs.bench, run, Start(0, run.hidden(0)), reads, rules=how == "relp")
    values, weight = _contracted(
        recorded, asked, lambda point: _gradient(made, recorded, point), list(asked.nodes)
    )
    for point in fixed:
        _repair(recorded, asked, point, made, values)
    nothing = torch.full_like(made.values, float("nan"))
    return _Part(values, weight, made.values, nothing, nothing, 1)


def _gradient(made: Pass, recorded: RecordedNodes, point: Point) -> Tensor | None:
    """The gradient at a point; None where no path leads to the metric. Shapes: [row, pos, ...]."""
    if point[0] == STREAM:
        return made.stream_grads.get(point[1])
    grad = made.grads.get((point[1], point[0]))
    return None if grad is None else own_columns(grad, (recorded.run.base.n, recorded.run.columns))


def _contracted(
    recorded: RecordedNodes,
    asked: _Asked,
    gradient: Callable[[Point], Tensor | None],
    points: Sequence[Point],
) -> tuple[Tensor, Tensor]:
    """(change times gradient, size times size) of the nodes of some points. Shapes: [node, column, row]."""
    run = recorded.run
    places = asked.places(run.group, run.start, run.columns).to(run.base.ids.device)
    values = torch.zeros(asked.n, len(asked.columns), run.base.n, dtype=torch.float64, device=places.device)
    weight = torch.zeros_like(values)
    for point in points:
        grad = gradient(point)
        if grad is None:
            continue
        change = recorded.change(point)
        product, size = (
            _by_unit(grad * change),
            _by_unit(grad.square()).sqrt() * _by_unit(change.square()).sqrt(),
        )
        numbers, index = asked.nodes[point]
        for out, found in ((values, product), (weight, size)):
            each = torch.stack([found.sum(-1) if i is None else found[..., i] for i in index])
            out[numbers] = torch.einsum("nrp,crp->ncr", each, places.to(each))
    return values, weight


def _by_unit(product: Tensor) -> Tensor:
    """Sums over what a head or neuron holds. Shapes: [row, pos, unit, d] or [row, pos, unit] -> [row, pos, unit] float64."""
    return product.double().sum(-1) if product.dim() == 4 else product.double()


def _repair(recorded: RecordedNodes, asked: _Asked, point: Point, made: Pass, values: Tensor) -> None:
    """Recomputed terms of queries or keys. Shapes: values [node, column, row], changed in place."""
    name, layer = point
    run = recorded.run
    grad = made.grads.get((layer, "pattern"))
    if grad is None:
        return
    before = made.reads[layer, "pattern"]
    numbers, index = asked.nodes[point]
    places = asked.places(run.group, run.start, run.columns).to(before.device)
    rows = torch.arange(run.base.n, device=before.device)
    for c in range(len(asked.columns)):
        put = places[c] & recorded.own
        value = torch.where(put[..., None, None], recorded.donor[point], recorded.base[point])
        write = whole(name, layer, partial(_fitted, value))
        change = (patterns(run.base, layer, run.start, rows, [write]) - before) * grad
        found = change.double().sum((1, 3))
        units = value.shape[2]
        found = found.unflatten(1, (units, -1)).sum(2)
        for number, i in zip(numbers, index, strict=True):
            values[number, c] = found.sum(1) if i is None else found[:, i]


def _fitted(value: Tensor, old: Tensor) -> Tensor:
    """All values of a call: those behind a recorded prefix where the call shows that too."""
    if old.shape[0] == value.shape[0] and old.shape[1] > value.shape[1]:
        return torch.cat([old[:, : old.shape[1] - value.shape[1]], value.to(old)], 1)
    return value.reshape(old.shape)


Cut = tuple[list[Point], Point, Callable[[float], Start]]
"""The points scored along a cut, the point that is interpolated, and where a run between base (0) and donor (1) begins."""


def _embedding(recorded: RecordedNodes, asked: _Asked, layers: int) -> Iterator[Cut]:
    step, run = recorded.change((STREAM, 0)), recorded.run
    yield list(asked.nodes), (STREAM, 0), lambda a: Start(0, run.hidden(0) + a * step)


def _own(recorded: RecordedNodes, asked: _Asked, layers: int) -> Iterator[Cut]:
    run = recorded.run
    for point in sorted(asked.nodes, key=lambda p: p[1]):
        yield [point], point, partial(_between, run.hidden(point[1]), recorded, point)


def _between(hidden: Tensor, recorded: RecordedNodes, point: Point, a: float) -> Start:
    step = recorded.change(point)
    if point[0] == STREAM:
        return Start(point[1], hidden + a * step)
    return Start(
        point[1], hidden, whole(point[0], point[1], lambda old: _fitted(recorded.base[point] + a * step, old))
    )


def _interpolated(
    runs: NodeRuns, asked: _Asked, steps: int, cuts: Callable[..., Iterator[Cut]], recorded: RecordedNodes
) -> _Part:
    """Scores along each cut; the gap is that of the cut that misses most."""
    bench, run, layers = runs.bench, recorded.run, len(runs.bench.binding.slots)
    base = recorded.metrics[:, 0]
    out: _Part | None = None
    for points, through, at in cuts(recorded, asked, layers):
        mean: dict[Point, Tensor] = {}
        for k in range(steps):
            made = differentiate(bench, run, at((k + 0.5) / steps), partial(asked.at, layers=layers))
            for point in {*points, through}:
                if (grad := _gradient(made, recorded, point)) is not None:
                    mean[point] = mean[point] + grad / steps if point in mean else grad / steps
        values, weight = _contracted(recorded, asked, mean.get, points)
        end = value_of(bench, run, at(1.0)).double().cpu()
        total = (
            (mean[through].double() * recorded.change(through).double()).flatten(1).sum(1)
            if through in mean
            else torch.zeros(run.base.n)
        )
        found = _Part(values, weight, base, end, per_prompt(run.group, total.cpu()), steps)
        out = found if out is None else _joined(out, found)
    assert out is not None
    return out


def _joined(one: _Part, other: _Part) -> _Part:
    """Scores of both, ends of the cut that misses more."""
    worse = max(one, other, key=lambda p: abs(float((p.cut - (p.end - p.base)).mean())))
    return _Part(
        one.values + other.values,
        one.weight + other.weight,
        one.base,
        worse.end,
        worse.cut,
        one.passes + other.passes,
    )
