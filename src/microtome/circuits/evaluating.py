"""Evaluation of a circuit: does it carry the behaviour, all of it, and nothing else; and would any other circuit have done?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from microtome.circuits import hypotheses, measures, nulls, second, stability
from microtome.circuits.case import Case, again, case_of, fewer, picked
from microtome.circuits.circuit import Choices, Circuit
from microtome.circuits.judged import CONTROLS, KIND, MANDATORY, Found, assemble
from microtome.circuits.options import IMPORTANCE
from microtome.errors import ControlError, TaskError
from microtome.methods.setting import shares
from microtome.results.arguments import ArgumentError, suggest
from microtome.results.result import Result
from microtome.results.technique import progress, technique

if TYPE_CHECKING:
    from microtome.facade import Model
    from microtome.tasks.pairs import PairTask

ALPHA = 0.05
"""Level of each null. A circuit has to beat all three (intersection-union: the level needs no correction), and the nineteen
discoveries on shuffled labels can reach .05 and no less, so the project's .001 would call every evaluation underpowered. Ask for
it with alpha=.001, draws=999, shuffles=999."""


@dataclass(frozen=True)
class Checks:
    """How much is tested. Costs grow with draws, shuffles, inflated and most.

    draws: null circuits of each cheap kind, rows of one batch. shuffles: discoveries on shuffled labels. prompts: what is
    measured under hundreds of masks (nulls, completeness, minimality, second circuit) uses at most so many, drawn at random.
    subsets: random halves knocked out for completeness. inflated, most: circuits of the minimality test, and units tested.
    bootstraps: resampled circuits. permutations: of the independence test. second: whether to search a disjoint circuit.
    share: the faithfulness that counts as carrying the behaviour (1 - share: the largest gap of completeness). alpha: level.
    """

    draws: int = 200
    shuffles: int = 19
    prompts: int = 16
    subsets: int = 10
    inflated: int = 100
    most: int = 64
    bootstraps: int = 100
    permutations: int = 999
    second: bool = True
    share: float = 0.8
    alpha: float = ALPHA


def checks_of(given: Mapping[str, Any] | None) -> Checks:
    """Options with defaults filled in.

    Raises
    ------
    ArgumentError: an unknown option (names the nearest), a negative number, a share or level outside 0 .. 1.
    """
    known = [f.name for f in fields(Checks)]
    for name, value in (given or {}).items():
        if name not in known:
            raise ArgumentError(f"option {name!r} of evaluation", why=f"it has {', '.join(known)}", instead=suggest(str(name), known))  # fmt: skip
        low, high = (0, 1) if name in ("share", "alpha", "second") else (2 if name == "prompts" else 0, 10**9)
        if not low <= value <= high or (name == "alpha" and value in (0, 1)):
            raise ArgumentError(f"{name}={value!r}", why=f"it lies from {low} to {high}", instead=f"{name}={getattr(Checks(), name)}")  # fmt: skip
    return Checks(**dict(given or {}))


@technique(KIND, "1", controls=CONTROLS, mandatory=MANDATORY, figure="microtome.figures.circuit_tests:draw", random=True)  # fmt: skip
def circuit_evaluation(
    model: Model,
    circuit: Circuit,
    task: PairTask,
    *,
    held_out: PairTask | None = None,
    truth: Sequence[str] = (),
    choices: Choices | None = None,
    metric: str = "",
    scored: Literal["last", "all"] = "last",
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Result:
    """Test a circuit on a task. The arguments are those of `evaluate`.

    Effects: [circuit | complement | empty circuit, prompt, metric] minus the whole model, metric units. Tables: measures (every
    score with its interval and the six choices), prompts, sizes (CPR and CMD), completeness, units (minimality), edges (bootstrap
    intervals, how many bootstrap circuits have each), nulls, second, held_out, roc, about.
    """
    made = checks_of(options)
    if held_out is not None and (leak := shares(task, held_out)):
        raise TaskError("these pairs are not held out", why=leak, instead="task.split(by='template', ...), which shares nothing")  # fmt: skip
    case = case_of(model, circuit, task, choices, metric=metric, scored=scored, seed=seed)
    small = fewer(case, circuit, made.prompts)
    _tell(1, "circuit and complement")
    per_prompt, source = _scores(case)
    scores, origin = _ranking(case, circuit, per_prompt, source)
    units = case.units.scores(scores)
    _tell(2, "circuits of ten sizes")
    sizes, areas = measures.areas(case, units)
    _tell(3, "null circuits")
    shape = nulls.of_shape(small, made.draws, made.alpha)
    strong = nulls.of_strongest(small, units, made.draws, made.alpha)
    shared = nulls.shares(small, shape), nulls.shares(small, strong)
    again_found = nulls.shuffled(small, circuit, made.shuffles, per_prompt[:, picked(case, made.prompts)])
    _tell(4, "completeness and minimality")
    independent = hypotheses.independence(case, made.permutations)
    stable = stability.bootstrap(case, per_prompt, made.bootstraps) if made.bootstraps else None
    found = Found(
        checks=made, case=case, small=small, circuit=circuit, origin=origin, sizes=sizes, areas=areas,
        shape=(shape, shared[0]), strong=(strong, shared[1]), shuffled=again_found,
        completeness=measures.completeness(small, made.subsets), equivalence=hypotheses.equivalence(case),
        independence=independent, minimality=hypotheses.minimality(small, made.most, made.inflated),
        stable=stable, edges=None if stable is None else stability.edges(case, per_prompt, stable),
        second=second.second(small, units) if made.second else None,
        held=None if held_out is None else _held(case, circuit, held_out, shape, made),
        roc=_roc(case, scores, truth),
    )  # fmt: skip
    _tell(5, "done")
    return assemble(found)


def _tell(done: int, note: str) -> None:
    progress(done, 5, "stages", note)


def _scores(case: Case) -> tuple[np.ndarray, str]:
    """Importance of edges per prompt on these prompts. Shapes: -> [edge, prompt]."""
    return nulls.importance(case.search, "eap-ig"), "eap-ig on these prompts"


def _ranking(case: Case, circuit: Circuit, per_prompt: np.ndarray, source: str) -> tuple[np.ndarray, str]:
    """Scores of all edges: those that found the circuit where it has them, else estimated here. Shapes: -> [edge]."""
    result = circuit.result
    if result is not None and circuit.how in IMPORTANCE and circuit.spans == case.question.runs.spans:
        return result.tables["edges"]["score"].to_numpy(float), f"{circuit.how}, as discovered"
    return per_prompt.mean(1), source


def _held(
    case: Case, circuit: Circuit, task: PairTask, shape: nulls.Drawn, made: Checks
) -> tuple[Case, np.ndarray]:
    other = again(case, circuit, task)
    return other, nulls.shares(fewer(other, circuit, made.prompts), shape)


def _roc(case: Case, scores: np.ndarray, truth: Sequence[str]) -> measures.Roc | None:
    """The ROC of |score| against true edges.

    Raises
    ------
    SiteError: a true edge that the graph has not. ControlError: edges with spans or nodes.
    """
    if not truth:
        return None
    if case.question.runs.spans:
        raise ControlError("a truth without spans", why="these edges are one per span", instead="choices with positions='all'")  # fmt: skip
    true = np.zeros(case.units.edges, dtype=bool)
    true[[case.question.graph.number(edge) for edge in truth]] = True
    return measures.roc(np.abs(scores), true)


def evaluate(
    model: Model,
    circuit: Circuit,
    task: PairTask,
    *,
    held_out: PairTask | None = None,
    truth: Sequence[str] = (),
    choices: Choices | None = None,
    metric: str = "",
    scored: Literal["last", "all"] = "last",
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Result:
    """Does this circuit carry the task, all of it and nothing else, and would any other have done?

    Parameters
    ----------
    held_out: pairs that share no template (or entity) with `task`; without them a circuit that was found on `task` stays
        unchecked.
    truth: names of the true edges, where they are known: the exact ROC of the scores against them.
    choices: the six choices; default the circuit's own, on these prompts.
    metric: what faithfulness is of; default the task's own, "kl" where all positions are scored.
    options: how much is tested, see `Checks`.

    Raises
    ------
    SiteError: a circuit of another model. ControlError: no path from the embedding to the logits. TaskError: held-out pairs that
    are not held out; the whole model and the empty circuit score the same. ArgumentError: an unknown option.
    """
    return circuit_evaluation(model, circuit, task, held_out=held_out, truth=truth, choices=choices, metric=metric, scored=scored,
                              options=options, seed=seed)  # fmt: skip
