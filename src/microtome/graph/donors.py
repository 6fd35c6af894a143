"""What a patched edge carries: the writer's output in another run, its mean over reference runs, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from microtome.errors import TaskError
from microtome.graph.nodes import Graph
from microtome.graph.reading import Reading
from microtome.graph.runs import layer_reads, taken, written
from microtome.model.tokens import Tokens, pack
from microtome.replay.base import replay_attention
from microtome.replay.bench import Bench, rows_of_group
from microtome.replay.plan import Group
from microtome.results import seeds
from microtome.trace.run import forward
from microtome.trace.session import Read


class Donor(Protocol):
    """Gives what every writer wrote in the runs that patched edges carry."""

    def starts(self, bench: Bench) -> list[int]:
        """Per prompt, the first column in which the donor may differ from the base, from tokens alone."""

    def writes(self, graph: Graph, reading: Reading, bench: Bench, group: Group, start: int) -> Tensor:
        """What every writer wrote, per base row. Shapes: [row, pos, writer, d_model], columns `start` and later."""


def stack_reads(reading: Reading) -> list[dict[str, Read]]:
    """The reads that give what every writer of a run wrote, layer by layer (the embedding is the first stream)."""
    return [layer_reads(reading, layer) for layer in range(len(reading.binding.slots))]


def stacked(
    graph: Graph, reading: Reading, reads: list[dict[str, Read]], embed: Tensor, start: int
) -> Tensor:
    """What every writer wrote. Shapes: embed [row, pos, d_model] -> [row, pos, writer, d_model] from column `start`."""
    rows, width = embed.shape[:2]
    out = embed.new_empty(rows, width - start, len(graph.writers), embed.shape[2])
    out[:, :, 0] = embed[:, start:]
    begin = 1
    for layer, found in enumerate(reads):
        later = {name: _from(read, (rows, width), start) for name, read in found.items()}
        block = written(reading, layer, later, (rows, width - start))
        out[:, :, begin : begin + block.shape[2]] = block
        begin += block.shape[2]
        for read in found.values():
            read.value = None  # as large as the stack itself, all layers together
    return out


def _from(read: Read, shape: tuple[int, int], start: int) -> Read:
    return Read(read.point, read.layer, value=taken(read, shape)[:, start:])


@torch.no_grad()
def writes_of(graph: Graph, reading: Reading, rows: Sequence[Sequence[int]], start: int = 0) -> Tensor:
    """What every writer writes on some rows of tokens, under the replay's numerics. Shapes: [row, pos, writer, d_model]."""
    packed = pack(rows)
    tokens = Tokens(packed.ids, torch.ones_like(packed.mask), packed.padding)
    reads = stack_reads(reading)
    embed = Read("embed", None)
    flat = [embed, *(read for layer in reads for read in layer.values())]
    forward(reading.binding, tokens, flat, [], logits=None, attention=replay_attention(reading.binding))
    assert embed.value is not None
    return stacked(graph, reading, reads, embed.value, start)


@dataclass(frozen=True)
class Prompts:
    """The runs of other prompts, prompt i for prompt i, position by position. ids: each as long as its base."""

    ids: Sequence[Sequence[int]]

    def starts(self, bench: Bench) -> list[int]:
        """Where each pair parts."""
        return [_agree(own, base) for own, base in zip(self.ids, bench.ids, strict=True)]

    def writes(self, graph: Graph, reading: Reading, bench: Bench, group: Group, start: int) -> Tensor:
        """Run the donors once.

        Raises
        ------
        TaskError: a donor of another length.
        """
        for p, length in zip(group.prompts, group.lengths, strict=True):
            if len(self.ids[p]) != length:
                raise TaskError(f"donor {p} has {len(self.ids[p])} tokens, its base {length}", why="positions must align",
                                instead="use donors of equal length")  # fmt: skip
        return writes_of(graph, reading, rows_of_group(bench, group, self.ids), start)


def _agree(one: Sequence[int], other: Sequence[int]) -> int:
    """Where two prompts part; the last position where they never do."""
    parted = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return min(next(parted, len(one) - 1), len(one) - 1)


@dataclass(frozen=True)
class Zero:
    """Nothing: the writer is taken out of what the reader sees."""

    def starts(self, bench: Bench) -> list[int]:
        """Everything changes."""
        return [0] * len(bench.ids)

    def writes(self, graph: Graph, reading: Reading, bench: Bench, group: Group, start: int) -> Tensor:
        """Zeros."""
        rows = rows_of_group(bench, group)
        weight = next(bench.binding.hf.parameters())
        width = max(len(r) for r in rows)
        return weight.new_zeros(len(rows), width - start, len(graph.writers), bench.binding.facts.d_model)


@dataclass(frozen=True)
class Reference:
    """The mean of each writer over reference prompts aligned with the base, position by position, or one of them.

    ids: the reference prompts; fits: per prompt of the task those aligned with it (`tasks.alignment.match`), else those of
    its length. how="resample" takes one at random per prompt, from the seed.
    """

    ids: Sequence[Sequence[int]]
    how: Literal["mean", "resample"]
    fits: Sequence[Sequence[int]] = ()
    seed: int = 0

    def starts(self, bench: Bench) -> list[int]:
        """Nothing is known of where they differ."""
        return [0] * len(bench.ids)

    def writes(self, graph: Graph, reading: Reading, bench: Bench, group: Group, start: int) -> Tensor:
        """Run the references that fit.

        Raises
        ------
        TaskError: a prompt that no reference fits, or continuations of several tokens (the references have none).
        """
        if bench.scoring.steps != 1:
            raise TaskError("a reference has no continuation", why="this metric scores several tokens behind the prompt",
                            instead='ablation="corrupt" or "zero"')  # fmt: skip
        known: dict[tuple[int, ...], Tensor] = {}
        out = []
        for p, length in zip(group.prompts, group.lengths, strict=True):
            found = self._fitting(p, length)
            if self.how == "resample":
                found = (found[int(seeds.rng(self.seed, f"resample {p}").integers(len(found)))],)
            if found not in known:
                known[found] = self._mean(graph, reading, found)[start:]
            out.append(known[found])
        width = max(len(value) for value in out)
        return torch.stack([torch.nn.functional.pad(v, (0, 0, 0, 0, 0, width - len(v))) for v in out])

    def _mean(self, graph: Graph, reading: Reading, found: tuple[int, ...]) -> Tensor:
        """Mean over some references, a few at a time. Shapes: [pos, writer, d_model]."""
        total: Tensor | None = None
        for begin in range(0, len(found), 8):
            part = writes_of(graph, reading, [self.ids[i] for i in found[begin : begin + 8]]).sum(0)
            total = part if total is None else total + part
        assert total is not None
        return total / len(found)

    def _fitting(self, prompt: int, length: int) -> tuple[int, ...]:
        found = (
            tuple(self.fits[prompt])
            if self.fits
            else tuple(i for i, row in enumerate(self.ids) if len(row) == length)
        )
        if not found:
            raise TaskError(f"no reference prompt fits prompt {prompt} of {length} tokens", why="positions of unaligned prompts are not averaged",
                            instead="give reference prompts of the same lengths, e.g. task.reference(64, seed=0)")  # fmt: skip
        return found
