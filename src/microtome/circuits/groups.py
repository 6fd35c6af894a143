"""Group testing: drop blocks of edges at once, and look inside only those blocks that matter.

Blocks are the edges into one layer's attention, one MLP or the logits, from the logits down, the least scores first. A block
goes when the loss rises by less than tau with all of it left out; else its halves are tried, down to single edges, which are
decided as in ACDC. It is an approximation: edges whose removals cancel go together where ACDC keeps both. `restored` looks
for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from microtome.circuits.acdc import Decision, Found, Losses
from microtome.circuits.connect import leading, live_readers
from microtome.circuits.units import Units


def group_testing(
    losses: Losses,
    units: Units,
    candidates: np.ndarray,
    tau: float,
    scores: np.ndarray,
    *,
    dead: bool = True,
    tell: Callable[[int], None] | None = None,
) -> Found:
    """A circuit that plain ACDC would find were removals additive. Shapes: candidates [unit] bool; scores [unit]."""
    kept = np.ones(units.edges, dtype=bool)
    found = Found(kept, [])
    state = _State(losses, units, tau, kept, losses.alone(kept), found)
    walked = 0
    for _, block in groupby(units.walk().tolist(), key=units.block_of):
        members = list(block)
        walked += len(members)
        todo = [u for u in members if candidates[u]]
        if dead:
            todo = state.skip_dead(todo)
        todo.sort(key=lambda unit: abs(scores[unit]))
        if todo:
            state.reduce(todo)
        if tell is not None:
            tell(walked)
    found.kept = state.kept
    return found


@dataclass
class _State:
    """The present circuit and its loss. Shapes: kept [edge] bool."""

    losses: Losses
    units: Units
    tau: float
    kept: np.ndarray
    loss: float
    found: Found

    def skip_dead(self, todo: list[int]) -> list[int]:
        """Drop units that nothing reads; the others."""
        graph, size = self.units.graph, len(self.units.graph.edges)
        leads = leading(graph, self.kept)
        live: dict[int, np.ndarray] = {}
        out = []
        for unit in todo:
            members = self.units.members(unit)
            for reader in set(graph.reader_of[members % size].tolist()) - set(live):
                live[reader] = live_readers(graph, leads, reader)
            if any(live[int(graph.reader_of[m % size])][m // size] for m in members):
                out.append(unit)
            else:
                self.kept[members] = False
                self.found.decisions.append(Decision(unit, False, float("nan"), self.loss, "dead"))
        return out

    def without(self, block: list[int]) -> np.ndarray:
        """The circuit with a block left out. Shapes: [edge]."""
        out = self.kept.copy()
        out[np.concatenate([self.units.members(unit) for unit in block])] = False
        return out

    def reduce(self, block: list[int], known: float | None = None) -> None:
        """Drop a block, or decide about its halves. known: the loss without it, where it is known already."""
        value = self.losses.alone(self.without(block)) if known is None else known
        rise = value - self.loss
        if rise < self.tau:
            self._drop(block, value, rise)
        elif len(block) == 1:
            self.found.decisions.append(Decision(block[0], True, rise, self.loss, "tested"))
        else:
            half = len(block) // 2
            self.reduce(block[:half])
            # with all of the first half gone, leaving out the second is leaving out the block, whose loss is known
            gone = np.array_equal(self.without(block[:half]), self.kept)
            self.reduce(block[half:], value if gone else None)

    def _drop(self, block: list[int], value: float, rise: float) -> None:
        self.kept = self.without(block)
        self.loss = value
        how = "tested" if len(block) == 1 else "block"
        share = rise if len(block) == 1 else float("nan")
        self.found.decisions += [Decision(unit, False, share, value, how) for unit in block]
        if len(block) > 1:
            self.found.blocks.append(list(block))


def restored(losses: Losses, units: Units, found: Found, sample: list[int]) -> np.ndarray:
    """How much the loss changes when units that went with a block are put back alone. Shapes: -> [len(sample)]."""
    masks = np.repeat(found.kept[None], len(sample) + 1, 0)
    for row, unit in enumerate(sample, 1):
        masks[row, units.members(unit)] = True
    values = losses.of(masks)
    return values[1:] - values[0]
