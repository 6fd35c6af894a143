"""Automated circuit discovery (ACDC; Conmy et al. 2023): walk from the logits down, drop what does not matter.

Each decision compares the loss with an edge left out against the loss of the present circuit; the edge goes when the loss
rises by less than tau. Readers are decided from the last to the first, so everything below the present reader is still the
recorded base run and is never computed again (`run_patched` starts at the first patched layer); above it every layer
changes with each edge, and there is nothing to resume.

*Speculative*: decisions are predicted from attribution scores, and one batch evaluates a run of decisions, each in the
circuit that the predictions before it give. What comes after the first wrong prediction is thrown away, so that the circuit
is that of the plain walk. A decision within rounding of tau is made again alone, as the plain walk makes it.

An edge into a node from which no kept edge leads to the logits is dropped without a run: what that node writes, nobody reads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from microtome.circuits.connect import live_readers
from microtome.circuits.question import Question
from microtome.circuits.units import Units
from microtome.errors import ControlError

DISTANCES = ("kl", "l2")
"""Metrics that are themselves distances from the unedited run."""
ROUNDING = 64
"""How far the same run may differ between batches, in the dtype's epsilon times the size of the numbers; seen: at most 8."""
RECENT = 512


class Losses:
    """How far circuits are from the whole model: the mean over prompts of kl or l2, else of |metric - the whole model's|.

    column: of the question's metrics.
    """

    def __init__(self, question: Question, column: int = 0) -> None:
        self.question, self.column = question, column
        self.distance = question.setting.metrics[column] in DISTANCES
        self.full = question.ends[0][:, column]
        self.size = self._size()

    def _size(self) -> float:
        """How large the numbers are of which losses are made, in the loss's unit."""
        logits = [recorded.logits.double() for recorded in self.question.runs.recorded()]
        if self.question.setting.metrics[self.column] == "l2":
            return max(float(x.square().sum(-1).max()) for x in logits)
        return max(1.0, *(float(x.abs().max()) for x in logits))

    def rounding(self, *losses: float) -> float:
        """How far the same runs may differ between batches, given the losses that they have."""
        eps = torch.finfo(next(self.question.model.hf.parameters()).dtype).eps
        return float(ROUNDING * eps * max(self.size, *map(abs, losses)))

    def of(self, kept: np.ndarray) -> np.ndarray:
        """Losses of circuits, in the metric's unit. Shapes: [circuit, edge] bool -> [circuit]."""
        values = self.question.measure(torch.from_numpy(kept))[..., self.column]
        out: np.ndarray = (values if self.distance else np.abs(values - self.full)).mean(-1)
        return out

    def alone(self, kept: np.ndarray) -> float:
        """The loss of one circuit in a run of its own. Shapes: [edge]."""
        return float(self.of(kept[None])[0])


@dataclass
class Decision:
    """One decision. rise: of the loss, NaN where no run was needed; loss: of the circuit after it; how: "tested", "dead"
    (nothing reads it), "block" (dropped together with others)."""

    unit: int
    kept: bool
    rise: float
    loss: float
    how: str


class Walk:
    """A walk's present state: the circuit, and from which writers it leads to the logits."""

    def __init__(self, units: Units, candidates: np.ndarray, *, dead: bool) -> None:
        self.units, self.candidates, self.skips = units, candidates, dead
        self.order = units.walk()
        self.place = 0
        self.kept = np.ones(units.edges, dtype=bool)
        self.leads = np.zeros((units.spans, len(units.graph.writers)), dtype=bool)
        self.dead: list[int] = []

    def copy(self) -> Walk:
        """The same state, to walk on from."""
        out = object.__new__(Walk)
        out.__dict__.update(self.__dict__)
        out.kept, out.leads, out.dead = self.kept.copy(), self.leads.copy(), list(self.dead)
        return out

    def next(self) -> int | None:
        """The next unit that needs a decision; dead ones on the way are dropped."""
        while self.place < len(self.order):
            unit = int(self.order[self.place])
            live = self._live(unit)
            if self.candidates[unit] and not (self.skips and not live.any()):
                return unit
            if self.candidates[unit]:
                self.kept[self.units.members(unit)] = False
                self.dead.append(unit)
            else:
                self._lead(unit, live)
            self.place += 1
        return None

    def without(self, unit: int) -> np.ndarray:
        """The circuit with a unit left out. Shapes: [edge]."""
        out = self.kept.copy()
        out[self.units.members(unit)] = False
        return out

    def decide(self, *, drop: bool) -> None:
        """Decide the unit that `next` gave."""
        unit = int(self.order[self.place])
        if drop:
            self.kept[self.units.members(unit)] = False
        else:
            self._lead(unit, self._live(unit))
        self.place += 1

    def _live(self, unit: int) -> np.ndarray:
        """Which of a unit's edges lead to the logits. Shapes: [member]."""
        size = len(self.units.graph.edges)
        members = self.units.members(unit)
        readers, spans = self.units.graph.reader_of[members % size], members // size
        known = {int(r): live_readers(self.units.graph, self.leads, int(r)) for r in set(readers.tolist())}
        return np.array([known[int(r)][s] for r, s in zip(readers, spans, strict=True)], dtype=bool)

    def _lead(self, unit: int, live: np.ndarray) -> None:
        size = len(self.units.graph.edges)
        members = self.units.members(unit)[live]
        self.leads[members // size, self.units.graph.writer_of[members % size]] = True


@dataclass
class Found:
    """A finished walk. Shapes: kept [edge] bool. predicted, wrong: speculative decisions, and how many of them were wrong."""

    kept: np.ndarray
    decisions: list[Decision]
    predicted: int = 0
    wrong: int = 0
    blocks: list[list[int]] = field(default_factory=list)


def check_threshold(tau: float | None) -> float:
    """A threshold that decisions can use.

    Raises
    ------
    ControlError: none, a negative one, or not a number.
    """
    if tau is None or not tau >= 0 or not np.isfinite(tau):
        raise ControlError(f"threshold={tau} is no threshold", why="an edge is dropped when the loss rises by less than it, in the metric's unit",
                           instead="a number from 0 on, such as threshold=0.01 nats of kl")  # fmt: skip
    return float(tau)


def plain(losses: Losses, units: Units, candidates: np.ndarray, tau: float, *, dead: bool = True) -> Found:
    """One run per decision. Shapes: candidates [unit] bool: the others stay in."""
    walk = Walk(units, candidates, dead=dead)
    present = losses.alone(walk.kept)
    decisions: list[Decision] = []
    while True:
        unit = walk.next()
        _note_dead(walk, decisions, present)
        if unit is None:
            return Found(walk.kept, decisions)
        value = losses.alone(walk.without(unit))
        drop = value - present < tau
        decisions.append(Decision(unit, not drop, value - present, value if drop else present, "tested"))
        present = value if drop else present
        walk.decide(drop=drop)


def _note_dead(walk: Walk, decisions: list[Decision], present: float) -> None:
    decisions += [Decision(unit, False, float("nan"), present, "dead") for unit in walk.dead]
    walk.dead = []


class Guess:
    """Predicts that an edge stays when its attribution score is above a cut, learnt from the last decisions."""

    def __init__(self, scores: np.ndarray) -> None:
        self.scores = np.abs(scores)
        self.past: deque[tuple[float, bool]] = deque(maxlen=RECENT)
        self.cut = float("inf")

    def drop(self, unit: int) -> bool:
        """Whether it is likely to be dropped."""
        return bool(self.scores[unit] <= self.cut)

    def learn(self, unit: int, *, drop: bool) -> None:
        """Remember a decision; a wrong prediction moves the cut to where the last ones would have been right most often."""
        wrong = self.drop(unit) != drop
        self.past.append((float(self.scores[unit]), drop))
        if not wrong:
            return
        scores, dropped = (np.array(side) for side in zip(*self.past, strict=True))
        order = np.argsort(scores, kind="stable")
        # cut after the i-th smallest: kept ones below it and dropped ones above it were wrong
        below, above = np.cumsum(~dropped[order]), np.cumsum(dropped[order][::-1])[::-1]
        errors = np.concatenate([[above[0]], below + np.append(above[1:], 0)])
        best = int(np.flatnonzero(errors == errors.min())[-1])
        self.cut = (
            -1.0 if best == 0 else float(scores[order][best - 1]) if best < len(order) else float("inf")
        )


@dataclass
class Ahead:
    """Decisions of one batch. masks: the circuits to measure; guesses: whether each unit is dropped."""

    units: list[int]
    masks: list[np.ndarray]
    guesses: list[bool]


def speculative(
    losses: Losses,
    units: Units,
    candidates: np.ndarray,
    tau: float,
    scores: np.ndarray,
    *,
    batch: int = 64,
    dead: bool = True,
    tell: Callable[[int], None] | None = None,
) -> Found:
    """The plain walk's circuit from fewer calls. Shapes: scores [unit], larger where an edge is likely to stay.

    batch: most decisions in a call; it shrinks where predictions fail. tell: receives the number of units walked.
    """
    walk, guess = Walk(units, candidates, dead=dead), Guess(scores)
    found = Found(walk.kept, [])
    present, size = losses.alone(walk.kept), min(8, batch)
    while True:
        ahead = _ahead(walk, guess, size)
        if not ahead.units:
            walk.next()
            _note_dead(walk, found.decisions, present)
            found.kept = walk.kept
            return found
        values = losses.of(np.stack(ahead.masks))
        done = 0
        for unit, value, predicted in zip(ahead.units, values.tolist(), ahead.guesses, strict=True):
            walk.next()
            _note_dead(walk, found.decisions, present)
            drop, rise, present = _decide(losses, walk, unit, value, present, tau)
            found.decisions.append(Decision(unit, not drop, rise, present, "tested"))
            walk.decide(drop=drop)
            guess.learn(unit, drop=drop)
            done += 1
            if drop != predicted:
                found.wrong += 1
                break
        found.predicted += done
        size = min(2 * size, batch) if done == len(values) else min(max(4, 2 * done), batch)
        if tell is not None:
            tell(walk.place)


def _decide(
    losses: Losses, walk: Walk, unit: int, value: float, present: float, tau: float
) -> tuple[bool, float, float]:
    """(dropped, rise, loss after it); near tau by the very runs that the plain walk makes."""
    if abs(value - present - tau) <= losses.rounding(value, present):
        present, value = losses.alone(walk.kept), losses.alone(walk.without(unit))
    drop = value - present < tau
    return drop, value - present, value if drop else present


def _ahead(walk: Walk, guess: Guess, size: int) -> Ahead:
    """The next decisions, each in the circuit that the predictions before it give."""
    future, out = walk.copy(), Ahead([], [], [])
    while len(out.units) < size and (unit := future.next()) is not None:
        out.units.append(unit)
        out.masks.append(future.without(unit))
        out.guesses.append(guess.drop(unit))
        future.decide(drop=out.guesses[-1])
    return out
