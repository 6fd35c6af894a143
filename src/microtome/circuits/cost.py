"""What an evaluation will cost, before it runs: forwards of one prompt under one circuit, and gradient passes."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, log2
from typing import TYPE_CHECKING, Any

from microtome.circuits.circuit import Choices, Circuit
from microtome.circuits.evaluating import checks_of
from microtome.circuits.measures import FRACTIONS, NODES
from microtome.circuits.options import IMPORTANCE
from microtome.graph.nodes import graph_of

if TYPE_CHECKING:
    from microtome.facade import Model
    from microtome.tasks.pairs import PairTask

STEPS = 8
"""Gradient passes that integrated gradients begin with; more are taken where the scores do not add up."""


def estimate_cost(
    model: Model,
    circuit: Circuit,
    task: PairTask,
    *,
    held_out: PairTask | None = None,
    choices: Choices | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, int]:
    """Forwards by stage of `evaluate` with these arguments, nothing being run; the last entry is their sum.

    A forward is one prompt under one mask (base and donor runs count as one each, a gradient pass as three). An upper bound but
    for integrated gradients, which may take more steps than the `STEPS` assumed here, and exact scores.

    Raises
    ------
    SiteError: the circuit is of another model. ArgumentError: an unknown option.
    """
    made = checks_of(options)
    choices = choices or circuit.choices
    graph = graph_of(model.binding)
    circuit.mask(graph)
    nodes = choices.granularity == "node"
    units = len(circuit.nodes) if nodes else len(circuit)
    every = len(graph.writers) if nodes else len(graph.edges)
    n, few = task.n, min(task.n, made.prompts)
    few_runs = 0 if few == n else 4 * few
    tried = 1 + ceil(log2(max(2, every / max(1, units))))
    parts = 1 + min(NODES, len(circuit.nodes)) + made.subsets
    found = {
        "circuit, complement and both ends": (2 + 2 + 2 + 2) * n + few_runs,
        "scores": 3 * STEPS * n,
        "ten sizes": 2 * len(FRACTIONS) * n,
        "random circuits": 2 * made.draws * few,
        "discoveries on shuffled labels": (
            6
            + 3 * made.shuffles
            + (6 * STEPS if circuit.how in IMPORTANCE and circuit.how != "eap-ig" else 0)
        )
        * few,
        "completeness": 2 * parts * few,
        "minimality": (1 + min(units, made.most) + 2 * made.inflated) * few,
        "second circuit": (1 + tried) * few if made.second else 0,
        "held out": 0
        if held_out is None
        else 6 * held_out.n + (2 + made.draws) * min(held_out.n, made.prompts),
    }
    return {**found, "all": sum(found.values())}
