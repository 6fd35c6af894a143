"""Edge pruning: learn which edges to keep by gradient (Bhaskar et al. 2024), with hard concrete masks (Louizos et al. 2018).

Every edge has a gate in [0, 1] that mixes its writer's present value with the ablated one; the loss is the circuit's distance
from the whole model, and a Lagrangian drives the expected share of open gates to the wanted one. All gates are in one
edge-patched forward and backward per step and group of prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from microtome.circuits.acdc import DISTANCES
from microtome.circuits.question import Question
from microtome.circuits.units import Units
from microtome.errors import ControlError
from microtome.graph.patched import Recorded
from microtome.graph.runs import run_patched
from microtome.replay.bench import columns_of, logits_of
from microtome.results import seeds
from microtome.trace import seam
from microtome.trace.grad import rooted

TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1
"""Of the hard concrete distribution, as published: its temperature, and the ends that are clipped to 0 and 1."""
OPEN = 3.0
"""Where all gates begin: nearly always open."""


@dataclass(frozen=True)
class Learnt:
    """Learnt gates. Shapes: scores [unit]: log alpha (larger: kept); curve [step, 3]: loss, expected share open, wanted one."""

    scores: np.ndarray
    curve: np.ndarray


def learn_gates(
    question: Question,
    units: Units,
    column: int,
    size: int,
    *,
    steps: int = 200,
    rate: float = 0.2,
    seed: int = 0,
    tell: Callable[[int], None] | None = None,
) -> Learnt:
    """Learn a gate per unit so that about `size` of those that may be left out stay open.

    column: the metric whose distance from the whole model is made small. rate: Adam's, of gates and multipliers. The wanted
    share falls linearly over the first 60 % of the steps.

    Raises
    ------
    ControlError: a size that is not below the number of units.
    """
    free = torch.from_numpy(units.free)
    total = int(free.sum())
    if not 0 < size < total:
        raise ControlError(f"size={size} of {total} gates", why="some are to be closed and some to stay open",
                           instead=f"a size from 1 to {total - 1}")  # fmt: skip
    gates = torch.full((len(units),), OPEN, dtype=torch.float64, requires_grad=True)
    multipliers = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam(
        [{"params": [gates], "lr": rate}, {"params": [multipliers], "lr": rate, "maximize": True}]
    )
    curve = np.zeros((steps, 3))
    for step in range(steps):
        wanted = 1 + (size / total - 1) * min(1.0, (step + 1) / max(1.0, 0.6 * steps))
        draw = torch.from_numpy(
            seeds.rng(seed, f"edge pruning step {step}").uniform(1e-6, 1 - 1e-6, len(units))
        )
        optimiser.zero_grad()
        loss = _backward(question, units, column, gates, draw)
        share = _expected_open(gates)[free].mean()
        gap = share - wanted
        (multipliers[0] * gap + multipliers[1] * gap.square()).backward()
        optimiser.step()
        curve[step] = loss, float(share.detach()), wanted
        if tell is not None:
            tell(step + 1)
    return Learnt(gates.detach().numpy().copy(), curve)


def _expected_open(gates: Tensor) -> Tensor:
    """P(gate > 0)."""
    return torch.sigmoid(gates - TEMPERATURE * math.log(-LOW / HIGH))


def _sampled(gates: Tensor, draw: Tensor) -> Tensor:
    """Hard concrete samples from uniform draws."""
    noise = draw.log() - (1 - draw).log()
    return (torch.sigmoid((noise + gates) / TEMPERATURE) * (HIGH - LOW) + LOW).clamp(0, 1)


def _backward(question: Question, units: Units, column: int, gates: Tensor, draw: Tensor) -> float:
    """The loss of one sample of gates, its gradient added to theirs."""
    of_edge, fixed = torch.from_numpy(units.of_edge), torch.from_numpy(units.fixed)
    total = 0.0
    for recorded in question.runs.recorded():
        dtype, device = recorded.ground.clean.dtype, recorded.ground.clean.device
        with (
            rooted(question.model.binding),
            seam.implementation(question.model.hf, recorded.ground.base.attention),
        ):
            kept = torch.where(fixed, 1.0, _sampled(gates, draw)[of_edge])
            patched = kept if question.choices.direction == "denoise" else 1 - kept
            values = _values(question, recorded, patched[None].to(device, dtype), column)
            loss = _distance(question, recorded, values, column).sum() / question.runs.n
            loss.backward()
        total += float(loss.detach())
    return total


def _values(question: Question, recorded: Recorded, patched: Tensor, column: int) -> Tensor:
    """One metric of a group under a mask that has a gradient. Shapes: patched [1, edge] -> [prompt]."""
    bench, group = question.runs.bench, recorded.group
    hidden = run_patched(recorded.ground, patched, group.scored)
    part = bench.scoring.select(group.prompts)
    out: Tensor = bench.metrics[column](logits_of(bench, hidden[0]), part, columns_of(bench), recorded.logits)
    return out


def _distance(question: Question, recorded: Recorded, values: Tensor, column: int) -> Tensor:
    if question.setting.metrics[column] in DISTANCES:
        return values
    full = torch.from_numpy(question.ends[0][list(recorded.group.prompts), column])
    return (values - full.to(values)).abs()
