"""Deletion curves: tokens removed in order of their attribution, beside random orders and the reverse.

Removing is putting the baseline's embedding in a token's place; the sweep recomputes from the first removed position on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from microtome.methods.setting import settings
from microtome.replay.plan import Cell, Change
from microtome.replay.sources import SourceSpec
from microtome.replay.sweep import Bench, sweep
from microtome.results import seeds
from microtome.sites import At, parse

Floats = NDArray[np.float64]
STEPS = 8
RANDOM, LEAST = "random", "least first"


@dataclass(frozen=True)
class Curves:
    """Metric change at each share of removed tokens.

    shares [step]; curves: name of an order -> [order, prompt, step], minus the whole prompt's metric; `areas` are means over
    steps. fired of planned places were written.
    """

    shares: tuple[float, ...]
    curves: Mapping[str, Floats]
    fired: int
    planned: int

    def area(self, name: str) -> Floats:
        """[order, prompt]: the mean change along the curve."""
        return np.asarray(self.curves[name].mean(axis=2))


def orders_of(
    values: Mapping[str, Sequence[Floats]], places: Sequence[Sequence[int]], n_random: int, seed: int
) -> dict[str, list[list[list[int]]]]:
    """name -> [order][prompt] -> positions in the order of removal.

    values: method -> per prompt [pos]; places: per prompt the positions that may be removed. Largest first and its reverse, per
    method, and random orders.
    """
    out: dict[str, list[list[list[int]]]] = {}
    for name, several in values.items():
        first = [_descending(v, at) for v, at in zip(several, places, strict=True)]
        out[name] = [first]
        out[f"{name}, {LEAST}"] = [[order[::-1] for order in first]]
    drawn = []
    for r in range(n_random):
        rng = seeds.rng(seed, f"random order {r}")
        drawn.append([[at[k] for k in rng.permutation(len(at))] for at in places])
    out[RANDOM] = drawn
    return out


def _descending(values: Floats, places: Sequence[int]) -> list[int]:
    """Largest first; equal ones in their order in the prompt."""
    return sorted(places, key=lambda p: (-values[p], p))


def _count(share: float, order: Sequence[int]) -> int:
    return math.ceil(share * len(order) - 1e-9)


def _cell(
    number: int, gone: Sequence[frozenset[int]], spans: list[dict[str, tuple[int, int] | None]]
) -> Cell:
    """A cell that puts the baseline at these positions of each prompt, and the names of its places in `spans`."""
    names = [f"removed {number} {k}" for k in range(max(map(len, gone)))]
    for own, several in zip(spans, gone, strict=True):
        at: list[int | None] = [*sorted(several)]
        at += [None] * (len(names) - len(at))
        own.update({name: None if p is None else (p, p + 1) for name, p in zip(names, at, strict=True)})
    changes = tuple(Change(parse("embed"), At(span=name), "baseline", True) for name in names)
    return Cell(changes, names[0])


def curves(bench: Bench, source: SourceSpec, orders: Mapping[str, list[list[list[int]]]]) -> Curves:
    """Remove tokens along every order and measure the first metric. What is removed twice is measured once."""
    shortest = min(len(order) for several in orders.values() for one in several for order in one)
    steps = min(STEPS, shortest)
    shares = tuple((s + 1) / steps for s in range(steps))
    flat = [(name, r, one) for name, several in orders.items() for r, one in enumerate(several)]
    spans = [dict(bench.spans[i]) if bench.spans else {} for i in range(len(bench.ids))]
    cells: list[Cell] = []
    number_of: dict[tuple[frozenset[int], ...], int] = {}  # what is removed -> its cell
    cell_of = np.zeros((len(flat), steps), dtype=np.int64)
    for r, (_, _, one) in enumerate(flat):
        for step, share in enumerate(shares):
            gone = tuple(frozenset(order[: _count(share, order)]) for order in one)
            if gone not in number_of:
                number_of[gone] = len(cells)
                cells.append(_cell(len(cells), gone, spans))
            cell_of[r, step] = number_of[gone]
    out = sweep(
        replace(bench, spans=spans, metrics=bench.metrics[:1]),
        cells,
        {"baseline": source},
        settings("deleting"),
    )
    effects = out.effects[..., 0].numpy()[cell_of].transpose(0, 2, 1)  # [order, prompt, step]
    found: dict[str, list[Floats]] = {}
    for (name, _, _), values in zip(flat, effects, strict=True):
        found.setdefault(name, []).append(values)
    return Curves(
        shares, {name: np.array(v, dtype=np.float64) for name, v in found.items()}, out.fired, out.planned
    )
