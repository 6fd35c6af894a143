"""Where patched values come from: other prompts, zeros, reference means or draws, given tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor

from microtome.errors import TaskError
from microtome.model.binding import Binding
from microtome.model.tokens import Tokens, pack
from microtome.points import POINTS
from microtome.replay.base import replay_attention
from microtome.replay.plan import Group, Source
from microtome.results import seeds
from microtome.trace.run import device_of, forward
from microtome.trace.session import Read

Point = tuple[str, int]


@dataclass(frozen=True)
class Wanted:
    """What a sweep asks of a source: values of these points for one group of prompts.

    base_ids: the token ids of every prompt of the task; eager: under the numerics that show scores and patterns.
    """

    binding: Binding
    group: Group
    base_ids: Sequence[Sequence[int]]
    points: set[Point]
    eager: bool

    def capture(self, rows: Sequence[Sequence[int]]) -> dict[Point, Tensor]:
        """The wanted points on other prompts."""
        return capture(self.binding, rows, self.points, self.eager)


class SourceSpec(Protocol):
    """Builds a source for one group of prompts."""

    def agree(self, group: Group, base_ids: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """Per prompt of the group, the first position at which source and base may differ, from tokens alone."""

    def build(self, wanted: Wanted) -> Source:
        """Values for the group's prompts."""


def capture(
    binding: Binding, rows: Sequence[Sequence[int]], points: set[Point], eager: bool
) -> dict[Point, Tensor]:
    """Whole points under the sweep's numerics. Shapes: [row, pos, ...]; behind a shorter prompt's end, anything.

    Pads come last and carry no mask: in a causal model they change nothing before them.
    """
    packed = pack(rows)
    tokens = Tokens(packed.ids, torch.ones_like(packed.mask), packed.padding) if binding.causal else packed
    reads = [Read(*_name(point, layer, binding)) for point, layer in sorted(points)]
    with torch.no_grad():
        forward(binding, tokens, reads, [], logits=None, attention=replay_attention(binding, eager))
    return {key: r.value for key, r in zip(sorted(points), reads, strict=True) if r.value is not None}


def _name(point: str, layer: int, binding: Binding) -> tuple[str, int | None]:
    """Sweeps call the final stream `resid_pre` of layer n_layers."""
    return ("final_resid", None) if point == "resid_pre" and layer == len(binding.slots) else (point, layer)


def _gather(
    store: Mapping[Point, Tensor], point: str, layer: int, rows: Tensor, cols: Tensor, heads: Tensor | None
) -> Tensor:
    value = store[point, layer]
    rows, cols = rows.to(value.device), cols.to(value.device)
    return value[rows, cols] if heads is None else value[rows, cols, heads.to(value.device)]


@dataclass(frozen=True)
class Prompts:
    """Values of other prompts, prompt i from prompt i, position by position.

    ids: one row of token ids per prompt of the task, each as long as the prompt it is patched into.
    """

    ids: Sequence[Sequence[int]]

    def build(self, wanted: Wanted) -> Source:
        """Run the donors once.

        Raises
        ------
        TaskError: a donor of another length.
        """
        group = wanted.group
        rows = [list(self.ids[p]) for p in group.prompts]
        for p, row, length in zip(group.prompts, rows, group.lengths, strict=True):
            if len(row) != length:
                raise TaskError(
                    f"donor {p} has {len(row)} tokens, its base {length}",
                    why="positions must align",
                    instead="use donors of equal length",
                )
        return Source(partial(_gather, wanted.capture(rows)), self.agree(group, wanted.base_ids))

    def agree(self, group: Group, base_ids: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """Where base and donor tokens part."""
        return tuple(_agree(self.ids[p], base_ids[p]) for p in group.prompts)


def _agree(one: Sequence[int], other: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))


class _Anywhere:
    """A source of which nothing is known: it may differ from the base at every position."""

    def agree(self, group: Group, base_ids: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """From the first position on."""
        return (0,) * len(group.prompts)


@dataclass(frozen=True)
class OtherModel(_Anywhere):
    """Values of the same prompts in another model of the same shape.

    binding: of that model. A cell whose value is the same in both is swept like any other: nothing is known from tokens.
    """

    binding: Binding

    def build(self, wanted: Wanted) -> Source:
        """Run the other model once on the group's prompts."""
        rows = [list(wanted.base_ids[p]) for p in wanted.group.prompts]
        store = capture(self.binding, rows, wanted.points, wanted.eager)
        return Source(partial(_gather, store), self.agree(wanted.group, wanted.base_ids))


@dataclass(frozen=True)
class Zero(_Anywhere):
    """Zeros."""

    def build(self, wanted: Wanted) -> Source:
        """Zeros that broadcast to any value."""
        device = device_of(wanted.binding)

        def values(point: str, layer: int, prompt: Tensor, col: Tensor, head: Tensor | None) -> Tensor:
            inner = inner_shape(wanted.binding, point, layer, head, wanted.group.width)
            return torch.zeros((len(prompt), *inner), device=device)

        return Source(values, self.agree(wanted.group, wanted.base_ids))


def inner_shape(binding: Binding, point: str, layer: int, head: Tensor | None, width: int) -> tuple[int, ...]:
    """Shape of one place's value."""
    f = binding.facts
    s = f.layers[min(layer, f.n_layers - 1)]
    sizes = {"d_model": f.d_model, "head": s.n_heads, "kv_head": s.n_kv_heads, "neuron": s.d_mlp, "one": 1, "key": width,
             "d_head": s.d_value if point in ("z", "v") else s.d_head}  # fmt: skip
    axes = [a for a in POINTS[point].axes if a not in ("prompt", "pos", "query")]
    if head is not None:
        axes = [a for a in axes if a not in ("head", "kv_head", "neuron")]
    return tuple(sizes[a] for a in axes)


@dataclass(frozen=True)
class Reference(_Anywhere):
    """The mean over reference prompts that are aligned, position by position, or one of them at random.

    fits: per prompt of the task, the reference prompts aligned with it (`tasks.alignment.match`); without it those of the
    same length. A prompt that none fits is an error: positions of unaligned prompts are not averaged.
    """

    ids: Sequence[Sequence[int]]
    how: Literal["mean", "resample"]
    seed: int = 0
    fits: Sequence[Sequence[int]] = ()

    def build(self, wanted: Wanted) -> Source:
        """Run the reference prompts once per group.

        Raises
        ------
        TaskError: no reference prompt fits.
        """
        group = wanted.group
        stores: list[dict[Point, Tensor]] = []
        place = torch.zeros(len(group.prompts), dtype=torch.long)
        fitting = [self._fitting(prompt, n) for prompt, n in zip(group.prompts, group.lengths, strict=True)]
        for kind in sorted(set(fitting)):
            store = wanted.capture([list(self.ids[i]) for i in kind])
            if self.how == "mean":
                store = {key: value.mean(0, keepdim=True) for key, value in store.items()}
            before = sum(next(iter(s.values())).shape[0] for s in stores)
            for at in [i for i, one in enumerate(fitting) if one == kind]:
                place[at] = before + (
                    self._drawn(group.prompts[at], len(kind)) if self.how == "resample" else 0
                )
            stores.append(store)
        joined = {key: _stacked([store[key] for store in stores]) for key in stores[0]}
        return Source(
            lambda point, layer, prompt, col, head: _gather(joined, point, layer, place[prompt], col, head),
            self.agree(group, wanted.base_ids),
        )

    def _fitting(self, prompt: int, length: int) -> tuple[int, ...]:
        """Reference prompts for one prompt of the task."""
        if self.fits:
            return tuple(self.fits[prompt])
        found = tuple(i for i, row in enumerate(self.ids) if len(row) == length)
        if not found:
            raise TaskError(f"no reference prompt has {length} tokens", why="positions of unaligned prompts are not averaged",
                            instead="give reference prompts of the same lengths, e.g. task.reference(64, seed=0)")  # fmt: skip
        return found

    def _drawn(self, prompt: int, n: int) -> int:
        """Which of its n references a prompt gets: by its number in the task, not by what it is recorded with."""
        return int(seeds.rng(self.seed, f"resample {prompt}").integers(n))


def _stacked(values: list[Tensor]) -> Tensor:
    """Values of several lengths one under the other, zeros behind the shorter ones' positions (and keys)."""
    if len(values) == 1:
        return values[0]
    shape = [max(v.shape[d] for v in values) for d in range(1, values[0].dim())]
    out = values[0].new_zeros(sum(len(v) for v in values), *shape)
    start = 0
    for v in values:
        out[(slice(start, start + len(v)), *(slice(0, size) for size in v.shape[1:]))] = v
        start += len(v)
    return out


@dataclass(frozen=True)
class Given(_Anywhere):
    """Values from a function of (point, layer, task prompt [pair], column [pair], head [pair] or None)."""

    fn: Callable[[str, int, Tensor, Tensor, Tensor | None], Tensor]

    def build(self, wanted: Wanted) -> Source:
        """The function, with prompts numbered as in the task."""
        numbers = torch.tensor(wanted.group.prompts)
        return Source(
            lambda point, layer, prompt, col, head: self.fn(point, layer, numbers[prompt], col, head),
            self.agree(wanted.group, wanted.base_ids),
        )
