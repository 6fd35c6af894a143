"""Attribution of a metric to every edge: what a writer changes between base and donor, times the gradient at the reader.

"gradient": edge attribution patching (Syed et al. 2023), one forward and backward. "ig-inputs": the gradient averaged over
runs whose embedding lies between base and donor (EAP-IG, Hanna et al. 2024), here by the midpoint rule, so that the scores of
the embedding's edges add up to the metric's change. "ig-activations": the same along each layer's own outputs. "relp": the
gradient under the rules of `rules.py`. "atp*": the gradient, with attention patterns recomputed for edges into queries and
keys (`softmax.py`; AtP* of Kramar et al. 2024 without its GradDrop).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from microtome.errors import TaskError
from microtome.graph.gradients import (
    Pulled,
    Start,
    at_readers,
    gradient_pass,
    played,
    reader_pass,
    value_of,
)
from microtome.graph.nodes import Graph
from microtome.graph.patched import EdgeRuns, Recorded
from microtome.graph.pulling import Sum
from microtome.graph.softmax import repair_edges
from microtome.replay.bench import Bench
from microtome.replay.plan import Group
from microtome.trace.session import whole

HOWS = ("gradient", "ig-inputs", "ig-activations", "relp", "atp*")
INTERPOLATED = ("ig-inputs", "ig-activations")


@dataclass
class EdgeScores:
    """Scores per edge and prompt: the estimated change of the first metric (donor patched in, minus base).

    Shapes: values [edge, prompt] float32; base, end [prompt]: the metric at both ends of the interpolation (`end` is NaN where
    there is none). steps: gradient passes per path; gap: |sum over the cut - change of the metric| / |change|, of the means.
    """

    values: Tensor
    base: Tensor
    end: Tensor
    steps: int
    gap: float
    passes: int
    weight: Tensor = field(default_factory=lambda: torch.zeros(0))


def edge_scores(
    runs: EdgeRuns, how: str = "gradient", *, steps: int = 8, tolerance: float = 0.02, most: int = 64
) -> EdgeScores:
    """Scores of all edges on all prompts.

    steps: of the midpoint rule, doubled until the gap is at most `tolerance` or `most` are reached (interpolations only).

    Raises
    ------
    TaskError: an unknown `how`, or a metric that has no gradient at the base runs.
    """
    check_how(how, runs.bench)
    if how == "atp*":
        eager = runs if runs.eager else replace(runs, eager=True, _kept={})
        return _scores(eager, lambda recorded: _plain(eager, recorded, how), 1)
    if how not in INTERPOLATED:
        return _scores(runs, lambda recorded: _plain(runs, recorded, how), 1)
    cuts = _embedding if how == "ig-inputs" else _all_cuts
    while True:
        found = _scores(runs, partial(_interpolated, runs, steps, cuts), steps)
        if found.gap <= tolerance or 2 * steps > most:
            return found
        steps *= 2


def check_how(how: str, bench: Bench) -> None:
    """Refuse what cannot be estimated.

    Raises
    ------
    TaskError: an unknown `how`; a metric at its minimum at the base runs, where every gradient is 0.
    """
    if how not in HOWS:
        raise TaskError(f"how={how!r} is no way to attribute", why="each is an approximation with its own faults",
                        instead=", ".join(f'"{name}"' for name in HOWS))  # fmt: skip
    if bench.metrics[0].name == "kl" and how not in INTERPOLATED:
        raise TaskError("the metric kl is flat at every prompt", why="it is the distance from the base runs, and there it is 0, its minimum: the gradient vanishes",
                        instead='how="ig-inputs", or a metric such as logit_diff')  # fmt: skip


@dataclass
class _Part:
    """One group's scores.

    Shapes: values [edge, row]; base, end [prompt]; cut [prompt]: what the cut's scores add up to; weight [edge]: summed over rows.
    """

    values: Tensor
    base: Tensor
    end: Tensor
    cut: Tensor
    passes: int
    weight: Tensor


def _scores(runs: EdgeRuns, one: Callable[[Recorded], _Part], steps: int) -> EdgeScores:
    values = torch.zeros(runs.edges, runs.n)
    weight = torch.zeros(runs.edges)
    base, end, cut = (torch.full((runs.n,), float("nan"), dtype=torch.float64) for _ in range(3))
    passes = 0
    for done, recorded in enumerate(runs.recorded(), 1):
        part = one(recorded)
        prompts = torch.tensor(recorded.group.prompts)
        values[:, prompts] = per_prompt(recorded.group, part.values.float().cpu())
        # with spans each part of an edge counts with the size of the whole
        weight += part.weight.float().cpu().repeat(runs.edges // len(runs.graph.edges)) / runs.n
        for whole_, piece in ((base, part.base), (end, part.end), (cut, part.cut)):
            whole_[prompts] = piece.double().cpu()
        passes += part.passes
        if runs.progress is not None:
            runs.progress(done, len(runs.groups))
    return EdgeScores(values, base, end, steps, gap_of(base, end, cut), passes, weight)


def per_prompt(group: Group, values: Tensor) -> Tensor:
    """Rows of a group summed to its prompts. Shapes: [..., row] -> [..., prompt]."""
    owner = torch.tensor([i for i, rows in enumerate(group.rows_of) for _ in rows], device=values.device)
    return values.new_zeros(*values.shape[:-1], len(group.prompts)).index_add_(-1, owner, values)


def gap_of(base: Tensor, end: Tensor, cut: Tensor) -> float:
    """What an interpolation misses of the metric's change, as a share of it; NaN where nothing was interpolated."""
    change = float((end - base).mean())
    return abs(float(cut.mean()) - change) / abs(change) if change else float("nan")


def _plain(runs: EdgeRuns, recorded: Recorded, how: str) -> _Part:
    start = Start(0, _hidden(recorded, 0))
    made, pulled = gradient_pass(runs.bench, recorded, start, rules=how == "relp", patterns=how == "atp*")
    nothing = torch.full_like(made.values, float("nan"))
    values = contract(recorded, pulled)
    if how == "atp*":
        repair_edges(recorded, made, values)
    return _Part(values, made.values, nothing, nothing, 1, sizes(recorded, pulled))


def _hidden(recorded: Recorded, layer: int) -> Tensor:
    ground = recorded.ground
    return ground.base.resid[layer][:, ground.start :]


Cut = tuple[range, Callable[[float], Start]]
"""The writers that are interpolated, and where a run with them at a point between base (0) and donor (1) begins."""


def _embedding(recorded: Recorded) -> Iterator[Cut]:
    ground = recorded.ground
    step = ground.donor[:, :, 0] - ground.clean[:, :, 0]
    yield range(len(ground.graph.writers)), lambda a: Start(0, _hidden(recorded, 0) + a * step)


def _all_cuts(recorded: Recorded) -> Iterator[Cut]:
    """Embedding, then every layer's heads together, then its MLP."""
    ground = recorded.ground
    step = ground.donor[:, :, 0] - ground.clean[:, :, 0]
    yield range(1), lambda a: Start(0, _hidden(recorded, 0) + a * step)
    for layer, (heads, _, mlp, _) in enumerate(ground.graph.shape):
        first = ground.graph.written_before(layer)
        yield _heads_cut(recorded, layer, range(first, first + heads))
        if mlp:
            yield _mlp_cut(recorded, layer, range(first + heads, first + heads + 1))


def _heads_cut(recorded: Recorded, layer: int, writers: range) -> Cut:
    step = _step(recorded, writers)
    return writers, lambda a: Start(
        layer,
        _hidden(recorded, layer),
        whole("attn_out", layer, lambda old: old + (a * step).reshape(old.shape)),
    )


def _mlp_cut(recorded: Recorded, layer: int, writers: range) -> Cut:
    step = _step(recorded, writers)
    return writers, lambda a: Start(layer + 1, _hidden(recorded, layer + 1) + a * step)


def _step(recorded: Recorded, writers: range) -> Tensor:
    ground = recorded.ground
    here = slice(writers.start, writers.stop)
    return (ground.donor[:, :, here] - ground.clean[:, :, here]).sum(2)


def _interpolated(
    runs: EdgeRuns, steps: int, cuts: Callable[[Recorded], Iterator[Cut]], recorded: Recorded
) -> _Part:
    """Scores along each cut; the gap is that of the first, or the worst of all by size."""
    total: Tensor | None = None
    weight: Tensor | None = None
    ends, sums, passes = None, None, 0
    for writers, at in cuts(recorded):
        total_of = Sum(recorded.ground.reading)
        for k in range(steps):
            for layer, kind, stream, grad in at_readers(
                reader_pass(runs.bench, recorded, at((k + 0.5) / steps))
            ):
                total_of.add(layer, kind, stream, grad, 1 / steps)
            passes += 1
        mean = total_of.pulled((recorded.ground.rows, recorded.ground.columns))
        part = contract(recorded, mean, writers)
        total = part if total is None else total + part
        size = sizes(recorded, mean, writers)
        weight = size if weight is None else weight + size
        end = value_of(runs.bench, played(recorded), at(1.0))
        cut = _cut_sum(
            recorded, part, writers if len(writers) < len(recorded.ground.graph.writers) else range(1)
        )
        base = recorded.metrics[:, 0].to(end)
        if ends is None or _gap(cut, end, base) > _gap(sums, ends, base):
            ends, sums = end, cut
    assert total is not None and weight is not None and ends is not None and sums is not None
    return _Part(total, recorded.metrics[:, 0], ends, sums, passes, weight)


def _gap(cut: Tensor | None, end: Tensor | None, base: Tensor) -> float:
    """What a cut's sum misses, in metric units."""
    assert cut is not None and end is not None
    return abs(float((cut.to(end) - (end - base)).mean()))


def _cut_sum(recorded: Recorded, part: Tensor, writers: range) -> Tensor:
    """Sum of the scores of some writers' edges, per prompt."""
    chosen = torch.as_tensor(recorded.ground.graph.writer_of).repeat(max(1, recorded.spans))
    inside = (chosen >= writers.start) & (chosen < writers.stop)
    return per_prompt(recorded.group, part[inside.to(part.device)].sum(0))


def contract(recorded: Recorded, pulled: Pulled, writers: range | None = None) -> Tensor:
    """Writers' differences times readers' gradients, summed over positions (with spans: over each span's).

    Shapes: [edge, row]; 0 for other writers.
    """
    span = recorded.ground.span
    if span is None:
        return _contract(recorded, pulled, writers, None)
    parts = [_contract(recorded, pulled, writers, span == number) for number in range(recorded.spans)]
    return torch.cat(parts)


def _contract(recorded: Recorded, pulled: Pulled, writers: range | None, where: Tensor | None) -> Tensor:
    """The same at some positions. Shapes: where [row, pos] or None -> [edge, row]."""
    ground = recorded.ground
    graph: Graph = ground.graph
    some = range(len(graph.writers)) if writers is None else writers
    out = ground.clean.new_zeros(len(graph.edges), ground.rows)
    difference = ground.donor[:, :, some.start : some.stop] - ground.clean[:, :, some.start : some.stop]
    if where is not None:
        difference = difference * where[..., None, None]
    flat = difference.transpose(1, 2).flatten(2)
    for (layer, kind), grad in pulled.items():
        numbers = graph.readers_at(layer, kind)
        reach = graph.readers[numbers.start].reach
        n = min(some.stop, reach) - some.start
        if n <= 0:
            continue
        block = torch.bmm(grad.to(flat).transpose(1, 2).flatten(2), flat[:, :n].transpose(1, 2))
        first, last = int(graph.offsets[numbers.start]), int(graph.offsets[numbers.stop])
        view = out[first:last].view(len(numbers), reach, -1)
        view[:, some.start : some.start + n] = block.permute(1, 2, 0)
    return out


def sizes(recorded: Recorded, pulled: Pulled, writers: range | None = None) -> Tensor:
    """Size of writers' differences times size of readers' gradients, summed over rows and positions. Shapes: [edge]."""
    ground = recorded.ground
    graph: Graph = ground.graph
    some = range(len(graph.writers)) if writers is None else writers
    out = ground.clean.new_zeros(len(graph.edges))
    difference = (
        ground.donor[:, :, some.start : some.stop] - ground.clean[:, :, some.start : some.stop]
    ).norm(dim=-1)
    flat = difference.flatten(0, 1)
    for (layer, kind), grad in pulled.items():
        numbers = graph.readers_at(layer, kind)
        reach = graph.readers[numbers.start].reach
        n = min(some.stop, reach) - some.start
        if n <= 0:
            continue
        first, last = int(graph.offsets[numbers.start]), int(graph.offsets[numbers.stop])
        view = out[first:last].view(len(numbers), reach)
        view[:, some.start : some.start + n] = grad.norm(dim=-1).flatten(0, 1).to(flat).T @ flat[:, :n]
    return out
