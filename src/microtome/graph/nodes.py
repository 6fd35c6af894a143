"""Nodes and edges of the residual-stream computation, for any family.

Writers add to the stream: `embed`, every head (`L5H3.z`), every MLP (`L5.mlp_out`). Readers take from it: queries per head
(`L9H6.q`), keys and values per key/value head (`L9KV2.k`), MLPs (`L5.ln2_out`) and the unembedding (`logits`). Writers are in
the order in which they write, so what a reader can see is a prefix of them, and an edge is a pair (reader, number of a
writer). GPT-2 small's shape has 32,491 edges (as published with split q, k, v); grouped-query attention has fewer than its
ungrouped copy, because a key/value head is one reader.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from microtome.errors import SiteError
from microtome.model.binding import Binding
from microtome.model.facts import Facts
from microtome.model.family import POST, SANDWICH

ATTENTION_KINDS = ("q", "k", "v")


@dataclass(frozen=True)
class Writer:
    """What adds to the stream. kind: "embed", "head" or "mlp"; name: its address."""

    kind: str
    layer: int
    index: int
    name: str


@dataclass(frozen=True)
class Reader:
    """What reads the stream. kind: "q", "k", "v", "mlp" or "logits"; reach: it sees the first `reach` writers."""

    kind: str
    layer: int
    index: int
    name: str
    reach: int


@dataclass(frozen=True)
class Graph:
    """Writers and readers in model order; edges are numbered reader by reader.

    shape: what makes two graphs the same: per layer (heads, key/value heads, MLP, parallel).
    """

    writers: tuple[Writer, ...]
    readers: tuple[Reader, ...]
    shape: tuple[tuple[int, int, bool, bool], ...]

    @property
    def edges(self) -> Edges:
        """All edges as a sequence of names, `writer->reader`."""
        return Edges(self)

    @cached_property
    def offsets(self) -> np.ndarray:
        """Number of the first edge of every reader, and the number of edges. Shapes: [reader + 1]."""
        return np.concatenate([[0], np.cumsum([r.reach for r in self.readers])])

    @cached_property
    def reader_of(self) -> np.ndarray:
        """The reader of every edge. Shapes: [edge]."""
        return np.repeat(np.arange(len(self.readers)), [r.reach for r in self.readers])

    @cached_property
    def writer_of(self) -> np.ndarray:
        """The writer of every edge. Shapes: [edge]."""
        return np.concatenate([np.arange(r.reach) for r in self.readers])

    @cached_property
    def writer_number(self) -> dict[str, int]:
        """Writers by name."""
        return {w.name: i for i, w in enumerate(self.writers)}

    @cached_property
    def reader_number(self) -> dict[str, int]:
        """Readers by name."""
        return {r.name: i for i, r in enumerate(self.readers)}

    @cached_property
    def feeds(self) -> tuple[np.ndarray, ...]:
        """The writers that each reader feeds (`fed_by`), by reader."""
        return tuple(np.array(self.fed_by(i), dtype=np.int64) for i in range(len(self.readers)))

    def readers_at(self, layer: int, kind: str) -> range:
        """Numbers of the readers of one kind in a layer; they lie side by side and see the same writers."""
        return self._blocks[layer, kind]

    @cached_property
    def _blocks(self) -> dict[tuple[int, str], range]:
        out: dict[tuple[int, str], range] = {}
        for i, r in enumerate(self.readers):
            known = out.get((r.layer, r.kind), range(i, i))
            out[r.layer, r.kind] = range(known.start, i + 1)
        return out

    def written_before(self, layer: int) -> int:
        """How many writers have written when a layer begins."""
        return next((i for i, w in enumerate(self.writers) if w.layer >= layer), len(self.writers))

    def number(self, edge: str) -> int:
        """The number of an edge.

        Raises
        ------
        SiteError: no such writer or reader, or the writer writes after the reader has read.
        """
        writer, arrow, reader = edge.partition("->")
        for name, known, what in (
            (writer, self.writer_number, "writer"),
            (reader, self.reader_number, "reader"),
        ):
            if not arrow or name not in known:
                near = difflib.get_close_matches(name, known, n=2, cutoff=0.4)
                raise SiteError(f'"{edge}" is no edge of this graph', why=f'there is no {what} "{name}"',
                                instead=f"did you mean {' or '.join(near)}?" if near else "edges look like L5H3.z->L9H6.q")  # fmt: skip
        w, r = self.writer_number[writer], self.reader_number[reader]
        if w >= self.readers[r].reach:
            raise SiteError(f'"{edge}" is no edge of this graph', why=f"{reader} reads the stream before {writer} writes to it",
                            instead="edges go from earlier parts to later ones")  # fmt: skip
        return int(self.offsets[r]) + w

    def name(self, number: int) -> str:
        """The name of an edge."""
        return f"{self.writers[self.writer_of[number]].name}->{self.readers[self.reader_of[number]].name}"

    def owner(self, reader: int) -> str:
        """The writer whose value a reader's input goes into: a head for q, an MLP; k and v go into several heads."""
        r = self.readers[reader]
        return {"mlp": f"L{r.layer}.mlp_out", "q": f"L{r.layer}H{r.index}.z"}.get(r.kind, "")

    def fed_by(self, reader: int) -> tuple[int, ...]:
        """Numbers of the writers that use what a reader reads: its head, the heads of its key/value group, its MLP."""
        r = self.readers[reader]
        if r.kind == "logits":
            return ()
        if r.kind == "mlp":
            return (self.writer_number[f"L{r.layer}.mlp_out"],)
        heads, groups = self.shape[r.layer][:2]
        share = heads // groups
        mine = [r.index] if r.kind == "q" else range(r.index * share, (r.index + 1) * share)
        return tuple(self.writer_number[f"L{r.layer}H{h}.z"] for h in mine)

    def __repr__(self) -> str:
        return f"<Graph: {len(self.writers)} writers, {len(self.readers)} readers, {len(self.edges):,} edges>"


class Edges(Sequence[str]):
    """The names of all edges of a graph, made when asked for."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def __len__(self) -> int:
        return int(self._graph.offsets[-1])

    def __getitem__(self, number):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        if isinstance(number, slice):
            return [self._graph.name(i) for i in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        return self._graph.name(number % len(self))

    def __iter__(self) -> Iterator[str]:
        writers = [w.name for w in self._graph.writers]
        return (f"{writers[i]}->{r.name}" for r in self._graph.readers for i in range(r.reach))

    def __contains__(self, edge: object) -> bool:
        try:
            self._graph.number(str(edge))
        except SiteError:
            return False
        return True


def nodes_of(facts: Facts) -> Graph:
    """The graph of a model of this shape (no model is touched).

    Raises
    ------
    SiteError: the stream is not additive.
    """
    if not facts.additive:
        raise SiteError("this model has no graph of edges", why=facts.not_additive,
                        instead="patch its residual stream: activation_patching(..., sites='L*.resid_pre')")  # fmt: skip
    writers = [Writer("embed", -1, 0, "embed")]
    readers: list[Reader] = []
    for layer in facts.layers:
        i = layer.index
        before = len(writers)
        letter = "KV" if layer.n_kv_heads != layer.n_heads else "H"
        for kind in ATTENTION_KINDS:
            n, unit = (layer.n_heads, "H") if kind == "q" else (layer.n_kv_heads, letter)
            readers += [Reader(kind, i, h, f"L{i}{unit}{h}.{kind}", before) for h in range(n)]
        writers += [Writer("head", i, h, f"L{i}H{h}.z") for h in range(layer.n_heads)]
        if layer.mlp != "none":
            readers.append(Reader("mlp", i, 0, f"L{i}.ln2_out", before if layer.parallel else len(writers)))
            writers.append(Writer("mlp", i, 0, f"L{i}.mlp_out"))
    readers.append(Reader("logits", facts.n_layers, 0, "logits", len(writers)))
    shape = tuple((x.n_heads, x.n_kv_heads, x.mlp != "none", x.parallel) for x in facts.layers)
    return Graph(tuple(writers), tuple(readers), shape)


def graph_of(binding: Binding) -> Graph:
    """The graph of a model, refused where it lacks a point that edges need.

    Raises
    ------
    SiteError: a point that this family lacks, with its reason; a stream that is not additive.
    """
    for i, s in enumerate(binding.slots):
        needed = ["q_pre", "k_pre", "v", "z"] + (["ln2_out", "mlp_out"] if s.mlp_kind != "none" else [])
        for point in needed:
            if (reason := binding.lacking(point, i)) is not None:
                raise SiteError(f"this model has no graph of edges: it has no L{i}.{point}", why=reason,
                                instead="patch its residual stream: activation_patching(..., sites='L*.resid_pre')")  # fmt: skip
        bias = getattr(binding.module(s.at("o") or ""), "bias", None)
        if s.style in (SANDWICH, POST) and bias is not None:
            raise SiteError("this model has no graph of edges", why=f"layer {i} norms its attention output together with a bias: heads do not add up",
                            instead="patch its residual stream: activation_patching(..., sites='L*.resid_pre')")  # fmt: skip
    return nodes_of(binding.facts)
