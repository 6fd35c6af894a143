"""Circuit discovery: which edges does the model need for a task?

Scores and a selection: "eap" (edge attribution patching, Syed et al. 2023), "eap-ig" and "eap-ig-activations" (integrated
gradients on inputs and on activations, Hanna et al. 2024), "relp" (gradients under rules, Jafari et al. 2025), "exact" (every
edge patched alone). Searches: "acdc" (Conmy et al. 2023) and "edge-pruning" (Bhaskar et al. 2024).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from microtome.circuits.circuit import Choices, Circuit
from microtome.circuits.found import CONTROLS, KIND, MANDATORY, assemble
from microtome.circuits.options import (
    IMPORTANCE,
    check_choices,
    check_limits,
    metrics_of,
    options_of,
)
from microtome.circuits.question import Question, ask
from microtome.circuits.search import Search, by_gates, by_score, by_walk, check_contrast
from microtome.circuits.units import Units
from microtome.errors import ResultError
from microtome.graph.nodes import Graph, graph_of
from microtome.results.arguments import ArgumentError
from microtome.results.result import Result
from microtome.results.technique import technique

if TYPE_CHECKING:
    import numpy as np

    from microtome.facade import Model
    from microtome.graph.scores import EdgeScores
    from microtome.tasks.pairs import PairTask

How = Literal["eap", "eap-ig", "eap-ig-activations", "relp", "exact", "acdc", "edge-pruning"]
Select = Literal["top-n", "greedy"]


@technique(KIND, "1", controls=CONTROLS, mandatory=MANDATORY, figure="microtome.figures.discovery:draw", random=True)  # fmt: skip
def circuit_discovery(
    model: Model,
    task: PairTask,
    *,
    how: How = "eap-ig",
    size: int | None = None,
    threshold: float | None = None,
    select: Select = "top-n",
    choices: Choices | None = None,
    metric: str = "",
    scored: Literal["last", "all"] = "last",
    options: Mapping[str, Any] | None = None,
    scores: Result | None = None,
    seed: int = 0,
) -> Result:
    """Find the edges that carry a task. The arguments are those of `discover`, which gives the circuit as a value.

    Effects: [circuit, prompt, metric], each measured circuit minus the whole model, metric units. Tables: edges (score in the
    metric's unit with its interval over clusters, kept or not; of ACDC the rise of the loss, of edge pruning log alpha),
    curve (faithfulness by size, the found circuit last), decisions (ACDC), counts (calls and forwards), about.
    """
    made = options_of(how, options)
    check_limits(how, size, threshold, select)
    choices = choices or Choices(seed=seed)
    names, column = metrics_of(how, metric, task.metric, scored)
    check_choices(how, choices, names[column])
    question = ask(model, task, choices, metrics=names, scored=scored)
    known = None if scores is None else _known(scores, question, how, names[column])
    search = Search(question, Units.of(question), column, made, seed, known)
    check_contrast(search)
    if how in IMPORTANCE:
        outcome = by_score(search, how, select, size, threshold)
    elif how == "acdc":
        assert threshold is not None
        outcome = by_walk(search, threshold)
    else:
        assert size is not None
        outcome = by_gates(search, size)
    return assemble(search, outcome, how, threshold)


def _known(scores: Result, question: Question, how: str, metric: str) -> tuple[np.ndarray, EdgeScores]:
    """Scores that were given."""
    if how not in IMPORTANCE:
        raise ArgumentError(
            f"scores= with how={how!r}", why="this search scores nothing beforehand", instead="how='eap-ig'"
        )
    from microtome.circuits.given import given_scores

    return given_scores(scores, question, how, metric)


def discover(
    model: Model,
    task: PairTask,
    how: How = "eap-ig",
    *,
    size: int | None = None,
    threshold: float | None = None,
    select: Select = "top-n",
    choices: Choices | None = None,
    metric: str = "",
    scored: Literal["last", "all"] = "last",
    options: Mapping[str, Any] | None = None,
    scores: Result | None = None,
    seed: int = 0,
) -> Circuit:
    """Find the edges that carry a task; the circuit's `.result` has scores, decisions, controls and verdict.

    Parameters
    ----------
    how: "eap", "eap-ig", "eap-ig-activations", "relp", "exact", "acdc" or "edge-pruning".
    size: edges (or nodes, by the choices) before those on no path are taken out. Where neither size nor threshold is given,
        a score-based circuit is the smallest measured one that reaches `options["share"]` (0.8) of the effect.
    threshold: the least score, in the metric's unit; of ACDC the rise of the loss below which an edge goes.
    select: "top-n", or "greedy" (only edges whose reader's node is already connected to the logits).
    choices: the six choices that are stored with every score; default: edges of all parts, corrupt ablation, noise.
    metric: what drives the search; default the task's own, for ACDC and edge pruning "kl" (mean over prompts; of any other
        metric than kl and l2 they use |circuit - whole model|).
    scored: "last", or "all" positions with "kl" or "l2".
    options: details by name, see `microtome.circuits.options.Options`.
    scores: `attribution_patching(..., of="edges")` of the same pairs, so that they are not estimated again.

    Raises
    ------
    SiteError: the model has no graph, or an unknown choice. ArgumentError: an unknown way, selection or option (names the
    nearest). ControlError: a size larger than the graph, a negative threshold, a metric without a gradient. TaskError: a
    metric that is constant over the prompts.
    """
    result = circuit_discovery(model, task, how=how, size=size, threshold=threshold, select=select, choices=choices, metric=metric,
                               scored=scored, options=options, scores=scores, seed=seed)  # fmt: skip
    return circuit_of(result, model)


def circuit_of(result: Result, model: Model | Graph) -> Circuit:
    """The circuit that a result of `circuit_discovery` found, also one opened from disk.

    Raises
    ------
    ResultError: a result of another kind, or of another model (says which).
    """
    if result.kind != KIND:
        raise ResultError(f"a {result.kind} holds no circuit", why="only circuit discovery finds one",
                          instead="mt.circuits.discover(model, task)")  # fmt: skip
    graph = model if isinstance(model, Graph) else graph_of(model.binding)
    table = result.tables["edges"]
    about = dict(zip(*(result.tables["about"][c] for c in ("name", "value")), strict=True))
    asked = "" if result.query is None else result.query.model
    if not isinstance(model, Graph) and asked and model.hash != asked:
        raise ResultError("this circuit is of another model", why=f"it was found in {asked[:12]}, this one is {model.hash[:12]}",
                          instead="load the model that it was found in")  # fmt: skip
    kept = table[table["kept"]]
    spans = tuple(json.loads(about["spans"]))
    if len(table) != len(graph.edges) * max(1, len(spans)):
        raise ResultError("this circuit is of another model", why=f"its graph has {len(table):,} edges, this one {len(graph.edges):,}",
                          instead="load the model that it was found in")  # fmt: skip
    scores = dict(zip(kept["edge"], kept["score"].astype(float), strict=True))
    return Circuit(
        tuple(kept["edge"]),
        graph.shape,
        asked,
        Choices(**json.loads(about["choices"])),
        about["how"],
        scores,
        spans,
        result,
    )
