"""ACDC on compiled programs, whose edges are known: with zero ablation it finds exactly these (Conmy et al. 2023, table 2)."""

from __future__ import annotations

import numpy as np
import pytest

import microtome.zoo as zoo
from microtome import circuits
from microtome.circuits import Choices, ask
from microtome.circuits.acdc import Losses, speculative
from microtome.circuits.units import Units

ZERO = Choices(ablation="zero")
PROGRAMS = {"reverse": "reverse", "frac_prevs": "x-proportion"}


def roc(true, order):
    """Area under the exact ROC: every threshold, from (0, 0) to (1, 1). order: larger is kept longer."""
    points = [(0.0, 0.0)]
    for level in sorted(set(order), reverse=True):
        kept = order >= level
        points.append(((kept & ~true).sum() / (~true).sum(), (kept & true).sum() / true.sum()))
    x, y = (np.array(side, dtype=float) for side in zip(*points, strict=True))
    assert points[-1] == (1, 1)
    return float(((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2).sum())


@pytest.mark.parametrize("name", PROGRAMS)
def test_edge_auroc_of_acdc_is_one(name):
    z = zoo.build(name, seed=0)
    q = ask(z.model, z.task, ZERO, metrics=("l2",), scored="all")
    losses, units = Losses(q), Units.of(q)
    edges = list(q.graph.edges)
    true = np.array([e in z.mechanism.edges for e in edges])
    assert set(edges) == set(z.mechanism.all_edges) and 0 < true.sum() < len(true)
    whole = losses.alone(units.fixed)
    taus = np.geomspace(1e-6 * whole, 10 * whole, 40)
    longest = np.zeros(len(edges))  # the largest threshold at which an edge stays
    for tau in taus:
        kept = speculative(losses, units, units.free, tau, np.zeros(len(units))).kept
        longest[kept] = np.maximum(longest[kept], tau)
    assert roc(true, longest) == 1.0
    assert roc(true, -longest) < 0.5


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("walk", ["speculative", "groups"])
def test_one_call_finds_the_program(name, walk):
    z = zoo.build(name, seed=0)
    circuit = circuits.discover(z.model, z.task, "acdc", threshold=1e-3, choices=ZERO, metric="l2", scored="all", options={"walk": walk})  # fmt: skip
    assert set(circuit.edges) == set(z.mechanism.edges)
    assert circuit.choices.ablation == "zero"
    assert circuit.result.tables["curve"]["value"].iloc[-1] == pytest.approx(1, abs=1e-4)


def test_other_ways_on_the_same_model_say_how_faithful_they_are():
    z = zoo.build("frac_prevs", seed=0)
    size = len(z.mechanism.edges)
    exact = circuits.discover(z.model, z.task, "exact", size=size, choices=ZERO, metric="l2", scored="all")
    assert set(exact.edges) == set(z.mechanism.edges)
    assert exact.result.tables["curve"]["value"].iloc[-1] == pytest.approx(1, abs=1e-4)
