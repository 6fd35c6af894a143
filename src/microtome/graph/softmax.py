"""What a gradient cannot see through a saturated softmax: attention patterns recomputed with the donor's query or key.

The change of the pattern that patching a query (or a key) causes, computed by the family's own attention, times the gradient
at the pattern, in place of the query's (key's) own first-order term (AtP*: Kramar et al. 2024, arXiv:2403.00745).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import torch
from torch import Tensor

from microtome.graph.gradients import Pass
from microtome.graph.patched import Recorded
from microtome.graph.reading import POINT
from microtome.graph.runs import Ground
from microtome.model.tokens import pack
from microtome.replay.base import Base, make_base
from microtome.replay.bench import Bench, groups_of, rows_of_group
from microtome.replay.call import Segment, call_layer
from microtome.replay.check import mode_of
from microtome.trace import seam
from microtome.trace.frame import Frame
from microtome.trace.session import Read, StopRun, Write, whole

TOKENS = 2048
SATURATED = 0.99


class _Last(Read):
    """A read behind which nothing of the layer is needed."""

    def take(self, view: Tensor, frame: Frame) -> None:
        """Copy, and stop."""
        super().take(view, frame)
        raise StopRun


class _Peak(Read):
    """The largest pattern of every query, not the pattern itself: [row, query, head]."""

    def take(self, view: Tensor, frame: Frame) -> None:
        """Reduce and keep."""
        self.value = view.amax(-1)


def patterns(base: Base, layer: int, start: int, rows: Tensor, writes: list[Write]) -> Tensor:
    """A layer's attention patterns under some writes, on copies of the recorded rows.

    rows: the recorded row of each copy; writes: of whole points, as the call has its rows. Shapes: -> [copy, query, head, key].
    """
    read = _Last("pattern", layer)
    hidden = base.resid[layer][rows, start:]
    segment = Segment(
        start, base.width, torch.arange(len(rows), device=rows.device), rows, hidden, base.width
    )
    with torch.no_grad(), seam.implementation(base.binding.hf, base.attention), suppress(StopRun):
        call_layer(base, layer, [segment], writes, len(rows), [read])
    assert read.value is not None
    return read.value


@torch.no_grad()
def repair_edges(recorded: Recorded, made: Pass, values: Tensor) -> None:
    """Put the recomputed terms of all edges into queries and keys in the place of their first-order ones.

    made: a pass with patterns and their gradients. Shapes: values [edge, row], changed in place.
    """
    ground = recorded.ground
    graph = ground.graph
    for layer, (heads, groups, _, _) in enumerate(graph.shape):
        base = made.reads[layer, "pattern"]
        grad = made.grads.get((layer, "pattern"))
        for kind in "qk":
            numbers = graph.readers_at(layer, kind)
            first, last = int(graph.offsets[numbers.start]), int(graph.offsets[numbers.stop])
            view = values[first:last].view(len(numbers), graph.readers[numbers.start].reach, -1)
            if grad is None:
                view.zero_()
                continue
            for writers, change in _changes(ground, layer, kind, base, grad):
                # heads of one key/value group read one key
                share = 1 if kind == "q" else heads // groups
                view[:, writers] = change.unflatten(2, (-1, share)).sum(3).permute(2, 0, 1).to(view)


def _changes(
    ground: Ground, layer: int, kind: str, base: Tensor, grad: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """(writers, what patching each into the readers of a kind does by the pattern [writer, row, head])."""
    reading, reach = ground.reading, ground.graph.written_before(layer)
    rows, columns = ground.rows, ground.columns
    stream = ground.base.resid[layer][:, ground.start :]
    readers = len(ground.graph.readers_at(layer, kind))
    each = max(1, TOKENS // (rows * columns))
    for begin in range(0, reach, each):
        writers = torch.arange(begin, min(begin + each, reach), device=stream.device)
        here = slice(begin, begin + len(writers))
        change = (ground.donor[:, :, here] - ground.clean[:, :, here]).movedim(2, 0)
        raw = reading.raw(layer, kind, (stream + change).reshape(-1, stream.shape[-1]))
        if not reading.joint(layer, kind):
            yield (
                writers,
                _effect(
                    ground.base, layer, kind, ground.start, reading.head_normed(layer, kind, raw), base, grad
                ),
            )
            continue
        # one norm over all heads: each reader alone, and what it does to all
        own = reading.raw(layer, kind, stream.reshape(-1, stream.shape[-1])).repeat(len(writers), 1, 1)
        share = base.shape[2] // readers
        out = stream.new_zeros(len(writers), rows, base.shape[2])
        for reader in range(readers):
            mixed = own.clone()
            mixed[:, reader] = raw[:, reader]
            value = reading.head_normed(layer, kind, mixed)
            out[:, :, reader * share] = _effect(
                ground.base, layer, kind, ground.start, value, base, grad
            ).sum(2)
        yield writers, out


def _effect(
    base: Base, layer: int, kind: str, start: int, value: Tensor, pattern: Tensor, grad: Tensor
) -> Tensor:
    """Change of the patterns times their gradient. Shapes: value [copy * pos, reader, d] -> [writer, row, head]."""
    copies = len(value) // (base.width - start)
    rows = torch.arange(base.n, device=value.device).repeat(copies // base.n)
    put = whole(POINT[kind], layer, lambda old: value)
    found = patterns(base, layer, start, rows, [put]).view(-1, *pattern.shape)
    return ((found - pattern) * grad).sum((2, 4))


@torch.no_grad()
def saturation(bench: Bench, starts: list[int], memory: int = 1 << 28) -> Tensor:
    """How often a head's attention lies almost wholly (above `SATURATED`) on one token: there its softmax passes no gradient.

    starts: per prompt, the first position that counts. Shapes: -> [layer, head], shares of queries; NaN where a layer has no
    pattern.
    """
    binding = bench.binding
    layers = [i for i in range(len(binding.slots)) if binding.lacking("pattern", i) is None]
    out = torch.full((len(binding.slots), max(s.n_heads for s in binding.facts.layers)), float("nan"))
    if not layers:
        return out
    count, total = torch.zeros_like(out), 0
    peaks = [(len(ids) + bench.scoring.steps) * out.shape[1] * 4 * len(layers) for ids in bench.ids]
    for group in groups_of(bench, memory, eager=True, more=peaks):
        ids = pack(rows_of_group(bench, group)).ids
        reads: list[Read] = [_Peak("pattern", layer) for layer in layers]
        make_base(binding, ids, reads, mode=mode_of(binding, ids, eager=True), eager=True)
        query = torch.arange(ids.shape[1])
        ends = group.scored.max(1).values
        first = torch.tensor(
            [starts[p] for p, rows in zip(group.prompts, group.rows_of, strict=True) for _ in rows]
        )
        seen = (query >= first[:, None]) & (query <= ends[:, None])
        total += int(seen.sum())
        for layer, read in zip(layers, reads, strict=True):
            assert read.value is not None
            sharp = (read.value > SATURATED).cpu() & seen[..., None]
            count[layer, : sharp.shape[2]] += sharp.sum((0, 1))
    for layer in layers:
        heads = binding.facts.layers[layer].n_heads
        out[layer, :heads] = count[layer, :heads] / max(total, 1)
    return out
