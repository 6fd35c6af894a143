"""Edge-patched runs: any number of edges at once in one forward of the untouched model.

A reader of a patched edge sees the stream with that writer's present output replaced by its value in the donor run (or by
zero, or by a mean). Everything else is the model's own computation: each layer is called as it was on the base run, and
only what its heads and its MLP read is overwritten. Layers below the first patched edge, and positions before the first
token in which base and donor differ, are never computed again: they are those of the recorded base run. (One forward for
any number of edges: Li et al. 2023; auto-circuit.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from microtome.graph.nodes import ATTENTION_KINDS, Graph
from microtome.graph.reading import POINT, Reading
from microtome.graph.stack import Stack, Streams
from microtome.replay.base import Base
from microtome.replay.call import Segment, call_layer
from microtome.trace.session import Read, Whole, whole


@dataclass
class Ground:
    """One recorded base run with what every writer wrote in it, and what each writes in the donor run.

    Shapes: clean, donor [row, pos, writer, d_model] for columns `start` and later; earlier ones are the same in both. span
    [row, pos]: the number of the span that a position belongs to, where masks have one part per span (None: one for all).
    size [row, pos]: with donors that are nothing, the largest number that any writer wrote (None: other donors).
    """

    graph: Graph
    reading: Reading
    base: Base
    start: int
    clean: Tensor
    donor: Tensor
    span: Tensor | None = None
    size: Tensor | None = None

    @cached_property
    def spans_here(self) -> frozenset[int]:
        """Spans that have a column that a patch can change (0 where masks have no parts)."""
        return frozenset((0,) if self.span is None else self.span.unique().tolist())

    @cached_property
    def difference(self) -> Tensor:
        """Donor minus clean, writers first. Shapes: [writer, row, pos, d_model]."""
        return (self.donor - self.clean).permute(2, 0, 1, 3).contiguous()

    @property
    def rows(self) -> int:
        """Recorded rows."""
        return self.base.n

    @property
    def columns(self) -> int:
        """Columns that a patch can change."""
        return self.base.width - self.start

    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return self.base.nbytes() + 3 * self.clean.numel() * self.clean.element_size()


def layer_reads(reading: Reading, layer: int, *, middle: bool = False) -> dict[str, Read]:
    """The reads that give what a layer writes; `middle`: also the stream between its halves."""
    slots = reading.binding.slots[layer]
    points = ["z"] + (["ln1_post_scale"] if reading.post_norm(layer) else [])
    points += ["mlp_out"] if slots.mlp_kind != "none" else []
    points += ["resid_mid"] if middle and reading.binding.lacking("resid_mid", layer) is None else []
    return {point: Read(point, layer) for point in points}


def written(reading: Reading, layer: int, reads: dict[str, Read], shape: tuple[int, int]) -> Tensor:
    """What a layer's heads and MLP wrote. Shapes: shape (row, pos) -> [row, pos, writer, d_model]."""
    out = [heads_written(reading, layer, reads, shape)]
    if "mlp_out" in reads:
        out.append(taken(reads["mlp_out"], shape)[:, :, None])
    return torch.cat(out, 2)


def heads_written(reading: Reading, layer: int, reads: dict[str, Read], shape: tuple[int, int]) -> Tensor:
    """What a layer's heads wrote. Shapes: [row, pos, head, d_model]."""
    scale = taken(reads["ln1_post_scale"], shape) if "ln1_post_scale" in reads else None
    return reading.writes_of_heads(layer, taken(reads["z"], shape), scale)


def taken(read: Read, shape: tuple[int, int]) -> Tensor:
    """A read's value, however the call had its rows. Shapes: [row, pos, ...]."""
    assert read.value is not None
    inner = read.value.shape[2 if read.value.dim() > 2 else 1 :]  # some families flatten their tokens
    return read.value.reshape(*shape, *inner)


def run_patched(ground: Ground, patched: Tensor, scored: Tensor) -> Tensor:
    """The final stream, as the unembedding reads it, of the base run with some edges patched.

    Parameters
    ----------
    patched: which edges carry the donor's value, [mask, edge] ([mask, span * edge] where the ground has spans), bool or
        between 0 and 1; the runs of all masks are one batch. Gradients pass to it where it asks for them.
    scored: columns to read, [row, step], none of them before `ground.start`.

    Shapes: -> [mask, row, step, d_model].
    """
    graph, base = ground.graph, ground.base
    masks, n_layers = patched.shape[0], len(base.binding.slots)
    first = _first_layer(graph, patched)
    stack = Stack(ground, first, masks, grad=patched.requires_grad)
    rows = torch.arange(base.n, device=base.ids.device).repeat(masks)
    hidden = base.resid[first][rows, ground.start :]
    for layer in range(first, n_layers):
        hidden = _layer(ground, layer, hidden, patched, stack)
    final = hidden.view(masks, base.n, *hidden.shape[1:])
    found = stack.streams(_block(graph, patched, n_layers, ("logits",)), hidden)
    if found is not None:
        final = found.x[0] if found.shared is None else found.shared
    at = (scored.to(final.device) - ground.start)[None, :, :, None].expand(masks, -1, -1, final.shape[-1])
    return final.gather(2, at)


def _first_layer(graph: Graph, patched: Tensor) -> int:
    """The first layer that reads a patched edge (the number of layers where only the unembedding does)."""
    if patched.requires_grad:
        return 0
    touched = patched.detach().view(-1, len(graph.edges)).any(0).nonzero()[:, 0]
    if not len(touched):
        return graph.readers[-1].layer
    return graph.readers[int(graph.reader_of[int(touched[0])])].layer


def _block(graph: Graph, patched: Tensor, layer: int, kinds: Sequence[str]) -> Tensor:
    """The mask of neighbouring kinds of readers in a layer. Shapes: [mask, span, reader, writer]."""
    first, last = graph.readers_at(layer, kinds[0]).start, graph.readers_at(layer, kinds[-1]).stop
    low, high = int(graph.offsets[first]), int(graph.offsets[last])
    by_span = patched.view(patched.shape[0], -1, len(graph.edges))
    return by_span[..., low:high].unflatten(2, (last - first, -1))


def _layer(ground: Ground, layer: int, hidden: Tensor, patched: Tensor, stack: Stack) -> Tensor:
    """One layer with its readers' own streams. Shapes: hidden [mask * row, pos, d_model] -> same."""
    reading, base = ground.reading, ground.base
    writes = _attention_writes(ground, layer, hidden, patched, stack)
    has_mlp = reading.binding.slots[layer].mlp_kind != "none"
    mlp = _block(ground.graph, patched, layer, ("mlp",)) if has_mlp else None
    touched = mlp is not None and (mlp.requires_grad or bool(mlp.any()))
    reads = layer_reads(reading, layer, middle=touched)
    for read in reads.values():
        read.live = stack.grad
    shape = (hidden.shape[0], hidden.shape[1])
    if touched:
        assert mlp is not None
        writes.append(whole("ln2_out", layer, _mlp_reads(ground, layer, hidden, mlp, stack, reads)))
    rows = torch.arange(shape[0], device=hidden.device)
    segment = Segment(ground.start, base.width, rows, rows % base.n, hidden, base.width)
    before = stack.size
    out = call_layer(base, layer, [segment], list(writes), shape[0], list(reads.values()))[0]
    if stack.size == before:  # else the MLP's readers have asked for the heads already
        stack.add(heads_written(reading, layer, reads, shape))
    if has_mlp:
        stack.add(taken(reads["mlp_out"], shape)[:, :, None])
    return out


def _attention_writes(
    ground: Ground, layer: int, hidden: Tensor, patched: Tensor, stack: Stack
) -> list[Whole]:
    """Queries, keys and values from streams of their own, where an edge into them is patched."""
    graph = ground.graph
    found = stack.streams(_block(graph, patched, layer, ATTENTION_KINDS), hidden)
    if found is None:
        return []
    first = graph.readers_at(layer, "q").start
    writes = []
    for kind in ATTENTION_KINDS:
        if not (patched.requires_grad or bool(_block(graph, patched, layer, (kind,)).any())):
            continue
        numbers = graph.readers_at(layer, kind)
        mine = found.part(numbers.start - first, numbers.stop - first)
        writes.append(whole(POINT[kind], layer, _constant(_read_values(ground, layer, kind, mine))))
    return writes


def _constant(value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda old: value


def _read_values(ground: Ground, layer: int, kind: str, streams: Streams) -> Tensor:
    """What readers of a kind make of their streams. Shapes: -> [token, reader, d]."""
    x = streams.x.flatten(1, 3)
    if streams.shared is None:
        return ground.reading.by_reader(layer, kind, x)
    return ground.reading.mostly(layer, kind, streams.shared.flatten(0, 2), x, streams.own)


def _mlp_reads(
    ground: Ground, layer: int, hidden: Tensor, mlp: Tensor, stack: Stack, reads: dict[str, Read]
) -> Callable[[Tensor], Tensor]:
    """What the MLP reads, computed when its layer's heads have written."""
    parallel = mlp.shape[3] == stack.size

    def fn(old: Tensor) -> Tensor:
        shape = (hidden.shape[0], hidden.shape[1])
        stream = hidden
        if not parallel:
            stream = taken(reads["resid_mid"], shape)
            stack.add(heads_written(ground.reading, layer, reads, shape))
        found = stack.streams(mlp, stream)
        return old if found is None else _read_values(ground, layer, "mlp", found)

    return fn
