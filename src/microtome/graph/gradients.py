"""Gradients of a metric on recorded runs, layer by layer: at any points, and at what every reader of the graph sees.

The forward is the model's own, from the recorded base on: columns before the first difference are never run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from microtome.errors import ModelError, TaskError
from microtome.graph.nodes import ATTENTION_KINDS
from microtome.graph.patched import Recorded
from microtome.graph.reading import POINT, Reading
from microtome.graph.rules import RuleWrites, frozen_unembed, rule_writes
from microtome.graph.runs import taken
from microtome.replay.base import Base
from microtome.replay.bench import Bench, columns_of, logits_of
from microtome.replay.call import Segment, call_layer
from microtome.replay.plan import Group
from microtome.trace import seam
from microtome.trace.grad import rooted
from microtome.trace.session import Read, Whole

Pulled = dict[tuple[int, str], Tensor]
"""(layer, kind) -> gradient at what each reader sees. Shapes: [row, pos, reader, d_model]."""


@dataclass
class Played:
    """A recorded base run and its question. start: the first column computed again; logits: the unedited ones."""

    reading: Reading
    base: Base
    start: int
    group: Group
    logits: Tensor

    def hidden(self, layer: int) -> Tensor:
        """The recorded stream that a layer receives (n_layers: the final norm), from the start on. Shapes: [row, pos, d_model]."""
        return self.base.resid[layer][:, self.start :]

    @property
    def columns(self) -> int:
        """Columns computed again."""
        return self.base.width - self.start


def played(recorded: Recorded) -> Played:
    """The base run of a recorded group of the graph."""
    ground = recorded.ground
    return Played(ground.reading, ground.base, ground.start, recorded.group, recorded.logits)


@dataclass
class Start:
    """Where a gradient pass begins. layer: the first one run; hidden [row, pos, d_model]: its stream; write: an edit there."""

    layer: int
    hidden: Tensor
    write: Whole | None = None


@dataclass
class Pass:
    """One forward and backward.

    values [prompt]: the first metric. reads, grads: (layer, name) -> value and gradient, as the layer's call has its rows;
    streams, stream_grads: (layer) -> the stream that a layer receives (n_layers: the final norm) [row, pos, d_model].
    """

    values: Tensor
    reads: dict[tuple[int, str], Tensor]
    grads: dict[tuple[int, str], Tensor]
    streams: dict[int, Tensor]
    stream_grads: dict[int, Tensor]


def differentiate(
    bench: Bench,
    run: Played,
    start: Start,
    reads: Callable[[int], Mapping[str, Read]],
    *,
    rules: bool = False,
) -> Pass:
    """The first metric of a run from some layer on, and its gradient at each layer's live reads and at every stream.

    reads: a layer's reads by name, those that are not live only read. rules: MLPs and norms by the rules of `rules.py`
    instead of their derivatives.

    Raises
    ------
    ModelError: gradients that are not finite. TaskError: a prompt on which the metric does not depend on the run at all.
    """
    binding = bench.binding
    found: dict[tuple[int, str], Read] = {}
    streams: dict[int, Tensor] = {}
    with rooted(binding), seam.implementation(binding.hf, run.base.attention):
        hidden = start.hidden.detach().requires_grad_()
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        for layer in range(start.layer, len(binding.slots)):
            streams[layer] = hidden
            here = reads(layer)
            found.update({(layer, name): read for name, read in here.items()})
            changes = rule_writes(run.reading, layer) if rules else RuleWrites()
            if start.write is not None and layer == start.layer:
                changes.append(start.write)
            segment = Segment(run.start, run.base.width, rows, rows, hidden, run.base.width)
            own = [*changes.reads, *here.values()]
            hidden = call_layer(run.base, layer, [segment], list(changes), len(rows), own)[0]
        streams[len(binding.slots)] = hidden
        values = _metric(bench, run, hidden, rules)
        live = {key: read.value for key, read in found.items() if read.live and read.value is not None}
        at = [*live.values(), *streams.values()]
        grads = iter(torch.autograd.grad(values.sum(), at, allow_unused=True))
    of_reads = {key: grad for key, grad in zip(live, grads, strict=False) if grad is not None}
    of_streams = {layer: grad for layer, grad in zip(streams, grads, strict=True) if grad is not None}
    kept = {key: read.value.detach() for key, read in found.items() if read.value is not None}
    made = Pass(values.detach(), kept, of_reads, {k: v.detach() for k, v in streams.items()}, of_streams)
    _finite({**of_reads, **{(layer, "stream"): grad for layer, grad in of_streams.items()}})
    _moves(run, of_streams.get(len(binding.slots)))
    return made


@torch.no_grad()
def value_of(bench: Bench, run: Played, start: Start) -> Tensor:
    """The first metric of a run from some layer on. Shapes: [prompt]."""
    hidden = start.hidden
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    with seam.implementation(bench.binding.hf, run.base.attention):
        for layer in range(start.layer, len(bench.binding.slots)):
            writes = [start.write] if start.write is not None and layer == start.layer else []
            segment = Segment(run.start, run.base.width, rows, rows, hidden, run.base.width)
            hidden = call_layer(run.base, layer, [segment], list(writes), len(rows))[0]
    return _metric(bench, run, hidden, False)


def gradient_pass(
    bench: Bench, recorded: Recorded, start: Start, *, rules: bool = False, patterns: bool = False
) -> tuple[Pass, Pulled]:
    """One pass, and the gradient at what every reader of the layers from `start` on sees.

    rules: as `differentiate`. patterns: also read and differentiate attention patterns.

    Raises
    ------
    ModelError, TaskError: as `differentiate`.
    """
    reading = recorded.ground.reading
    made = differentiate(
        bench, played(recorded), start, lambda layer: _reads(reading, layer, patterns), rules=rules
    )
    pulled: Pulled = {}
    for layer, kind, stream, grad in at_readers(made):
        at_stream = grad if kind == "logits" else pull_back(reading, layer, kind, stream, grad, frozen=rules)
        pulled[layer, kind] = at_stream.view(*start.hidden.shape[:2], *at_stream.shape[1:])
    return made, pulled


def at_readers(made: Pass) -> Iterator[tuple[int, str, Tensor, Tensor]]:
    """(layer, kind, stream that they read, gradient at their values) of every kind of readers.

    Shapes: stream [token, d_model]; grad [token, reader, d_head], of an MLP and the unembedding [token, 1, d_model].
    """
    for (layer, kind), grad in made.grads.items():
        if kind == "pattern":
            continue
        middle = made.reads.get((layer, "resid_mid")) if kind == "mlp" else None
        stream = made.streams[layer].flatten(0, 1)
        stream = stream if middle is None else middle.reshape(stream.shape)
        yield layer, kind, stream, grad.reshape(len(stream), -1, grad.shape[-1])
    last = max(made.streams)
    stream = made.streams[last].flatten(0, 1)
    yield last, "logits", stream, made.stream_grads[last].flatten(0, 1)[:, None]


def reader_pass(bench: Bench, recorded: Recorded, start: Start) -> Pass:
    """One pass, with what `at_readers` needs. Raises as `differentiate`."""
    reading = recorded.ground.reading
    return differentiate(bench, played(recorded), start, lambda layer: _reads(reading, layer, False))


def _reads(reading: Reading, layer: int, patterns: bool) -> dict[str, Read]:
    """Live reads of a layer's readers by kind, and the stream in its middle."""
    out = {kind: Read(POINT[kind], layer, live=True) for kind in ATTENTION_KINDS}
    if patterns:
        out["pattern"] = Read("pattern", layer, live=True)
    if reading.binding.slots[layer].mlp_kind != "none":
        if reading.binding.lacking("resid_mid", layer) is None:
            out["resid_mid"] = Read("resid_mid", layer)
        out["mlp"] = Read(POINT["mlp"], layer, live=True)
    return out


def own_columns(value: Tensor, shape: tuple[int, int]) -> Tensor:
    """A value or gradient as a call had it. Shapes: [1, token, ...], [token, ...] or [row, pos or longer, ...] -> [row, pos, ...]."""
    if value.dim() > 2 and value.shape[0] == shape[0] and value.shape[1] > shape[1]:
        return value[:, value.shape[1] - shape[1] :]  # keys or values behind a recorded prefix
    return taken(Read("", None, value=value), shape)


def _metric(bench: Bench, run: Played, final: Tensor, rules: bool) -> Tensor:
    """The first metric per prompt of the group. Shapes: final [row, pos, d_model] -> [prompt]."""
    at = (run.group.scored.to(final.device) - run.start)[..., None].expand(-1, -1, final.shape[-1])
    hidden = final.gather(1, at)
    columns = columns_of(bench)
    logits = frozen_unembed(bench.binding, hidden, columns) if rules else logits_of(bench, hidden)
    return bench.metrics[0](logits, bench.scoring.select(run.group.prompts), columns, run.logits)


def _moves(run: Played, grad: Tensor | None) -> None:
    """Refuse prompts on which the metric has no gradient at all: their attributions would be zeros that mean nothing."""
    flat = torch.zeros(run.base.n, dtype=torch.bool) if grad is None else (grad != 0).flatten(1).any(1).cpu()
    still = [
        p
        for p, rows in zip(run.group.prompts, run.group.rows_of, strict=True)
        if not bool(flat[list(rows)].any())
    ]
    if still:
        raise TaskError(f"the metric is flat at prompt {', '.join(map(str, still[:4]))}{' and others' if len(still) > 4 else ''}",
                        why="its gradient at the final stream is exactly 0 there, so that every estimate would be 0",
                        instead='metric "logit_diff" or "logprob_diff", whose gradients do not vanish, or how="ig-inputs"')  # fmt: skip


def pull_back(
    reading: Reading, layer: int, kind: str, x: Tensor, g: Tensor, *, frozen: bool = False
) -> Tensor:
    """Vector-Jacobian product of `Reading.value` at one stream for every reader.

    frozen: the norm's divisor counts as a constant. Shapes: x [token, d_model]; g [token, reader, d] -> [token, reader, d_model].
    """
    with torch.no_grad():
        if kind != "mlp":
            g = before_head_norm(reading, layer, kind, x, g)
            g = torch.einsum("trd,rmd->trm", g, reading.weight(layer, kind)[0])
        path = reading.norm_path(layer, kind)
        if path is None:
            return g
        norm = reading.binding.norm(path)
        x = x.to(norm.gain.dtype) if norm.gain.dtype == torch.float64 else x.float()
        centred = x - x.mean(-1, keepdim=True) if norm.centred else x
        scale = norm.scale(x)
        g = g.to(x.dtype) * norm.gain / scale[:, None]
        if not frozen:
            along = torch.einsum("trm,tm->tr", g, centred) / (x.shape[-1] * scale.square())
            g = g - along[..., None] * centred[:, None]
        return g - g.mean(-1, keepdim=True) if norm.centred else g


def before_head_norm(reading: Reading, layer: int, kind: str, x: Tensor, g: Tensor) -> Tensor:
    """Through the derivative of a query or key norm, where there is one. Shapes: [token, reader, d_head] -> same."""
    slots = reading.binding.slots[layer]
    if kind not in "qk" or not slots.block.qk_norm:
        return g
    weight, bias = reading.weight(layer, kind)
    out = torch.einsum("tm,rmd->trd", reading.normed(layer, kind, x), weight)
    out = out if bias is None else out + bias
    with torch.enable_grad():
        out = out.detach().requires_grad_()
        return torch.autograd.grad(reading.head_normed(layer, kind, out), out, g.to(out))[0]


def _finite(pulled: Pulled) -> None:
    for (layer, kind), value in pulled.items():
        if not bool(torch.isfinite(value).all()):
            raise ModelError(f"the gradient at the {kind} readers of layer {layer} is not finite", why="the model's numbers left the range of its dtype",
                             instead="load it with dtype=torch.float32")  # fmt: skip
