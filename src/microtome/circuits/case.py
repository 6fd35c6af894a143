"""A circuit put to a question: its edges as a mask of that question's units, and the few runs that every test needs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from microtome.circuits.circuit import Choices, Circuit
from microtome.circuits.connect import require_path
from microtome.circuits.options import Options, check_choices
from microtome.circuits.question import Question, ask
from microtome.circuits.search import Search, check_contrast
from microtome.circuits.units import Units
from microtome.errors import ControlError, SiteError
from microtome.results import seeds

if TYPE_CHECKING:
    from microtome.facade import Model
    from microtome.tasks.pairs import PairTask


@dataclass
class Case:
    """One circuit under one set of choices, on one set of prompts.

    Shapes: kept [edge] bool, what is in (fixed edges included); inside [unit] bool, what could have been left out and is in.
    """

    search: Search
    kept: np.ndarray
    inside: np.ndarray

    @property
    def question(self) -> Question:
        """What is asked."""
        return self.search.question

    @property
    def units(self) -> Units:
        """What circuits are made of here."""
        return self.search.units

    @property
    def seed(self) -> int:
        """The seed of everything drawn."""
        return self.search.seed

    @cached_property
    def chosen(self) -> np.ndarray:
        """Numbers of the units that are in and could be out."""
        return np.flatnonzero(self.inside)

    @property
    def noun(self) -> str:
        """What a unit is called."""
        return "edge" if self.units.granularity == "edge" else "node"

    def measure(self, masks: list[np.ndarray]) -> np.ndarray:
        """Metrics of circuits. Shapes: masks [circuit][edge] -> [circuit, prompt, metric]."""
        return self.search.measure(masks)

    def driver(self, masks: list[np.ndarray]) -> np.ndarray:
        """The metric that faithfulness is of. Shapes: -> [circuit, prompt]."""
        out: np.ndarray = self.measure(masks)[..., self.search.column]
        return out

    @cached_property
    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """That metric of the whole model and of the empty circuit. Shapes: [prompt] each."""
        full, empty = (end[:, self.search.column] for end in self.question.ends)
        return full, empty

    @property
    def total(self) -> float:
        """Mean of whole model minus empty circuit."""
        full, empty = self.ends
        return float(full.mean() - empty.mean())

    def share(self, values: np.ndarray) -> np.ndarray:
        """Faithfulness (ratio of means). Shapes: [..., prompt] -> [...]."""
        out: np.ndarray = (values.mean(-1) - self.ends[1].mean()) / self.total
        return out

    def mask(self, units: np.ndarray) -> np.ndarray:
        """A circuit of some units. Shapes: [unit] bool, or numbers of units -> [edge]."""
        inside = np.zeros(len(self.units), dtype=bool)
        inside[units] = True
        return self.units.mask(inside)

    @cached_property
    def rest(self) -> np.ndarray:
        """The circuit's complement: everything that is not in it, and what is fixed. Shapes: [edge]."""
        return self.units.mask(self.units.free & ~self.inside)

    @cached_property
    def measured(self) -> np.ndarray:
        """The circuit and its complement. Shapes: [2, prompt, metric]."""
        return self.measure([self.kept, self.rest])


def case_of(
    model: Model,
    circuit: Circuit,
    task: PairTask,
    choices: Choices | None = None,
    *,
    metric: str = "",
    scored: str = "last",
    seed: int = 0,
) -> Case:
    """Put a circuit to a task. choices: default the circuit's own, on this task.

    The first metric drives (default the task's own, "kl" where all positions are scored); "kl" is measured beside it where
    there is a clean run to hold it against.

    Raises
    ------
    SiteError: a circuit of another model (says what differs), of other spans, or choices that cannot be. ControlError: no path
    from the embedding to the logits. TaskError: the whole model and the empty circuit do not differ.
    """
    choices = choices or circuit.choices
    driver = metric or ("kl" if scored == "all" else task.metric)
    check_choices("", choices, driver)
    names = (driver,) if driver == "kl" or choices.direction == "denoise" else (driver, "kl")
    check_model(model, circuit)
    question = ask(model, task, choices, metrics=names, scored=scored)
    return settle(question, circuit, seed)


def check_model(model: Model, circuit: Circuit) -> None:
    """Refuse a circuit of another model.

    Raises
    ------
    SiteError: other weights; a graph of another shape is refused where the circuit is laid on it.
    """
    if circuit.model and circuit.model != model.hash:
        from microtome.graph.nodes import graph_of

        circuit.mask(graph_of(model.binding))  # says what differs in shape, where something does
        raise SiteError("this circuit is of another model", why=f"it was found in {circuit.model[:12]}, this one is {model.hash[:12]}",
                        instead="load the model that it was found in")  # fmt: skip


def settle(question: Question, circuit: Circuit, seed: int) -> Case:
    """A circuit on a question that is already recorded. Raises as `case_of`."""
    units = Units.of(question)
    mask = _laid(question, circuit)
    inside = np.zeros(len(units), dtype=bool)
    inside[units.of_edge[mask & ~units.fixed]] = True
    kept = units.mask(inside) if units.granularity == "node" else mask | units.fixed
    if question.choices.direction == "noise":
        require_path(question.graph, kept)
    elif not inside.any():
        raise ControlError("this circuit is empty", why="it restores nothing", instead="a circuit with edges")
    search = Search(question, units, 0, Options(steps=8, most=32), seed)
    check_contrast(search)
    case = Case(search, kept, inside)
    if not abs(case.total) > 1e-9:
        question.faithfulness(question.ends[0])  # refuses: nothing to be faithful to
    return case


def _laid(question: Question, circuit: Circuit) -> np.ndarray:
    """The circuit's edges in the question's mask: the same in every span where it has none, in any span where the question has none."""
    mask = circuit.mask(question.graph).numpy()
    here = question.runs.spans
    if here == circuit.spans:
        return mask
    by_span = mask.reshape(-1, len(question.graph.edges))
    if sorted(here) == sorted(circuit.spans):  # other prompts may have them in another order
        return by_span[[circuit.spans.index(span) for span in here]].reshape(-1)
    if not here:
        out: np.ndarray = np.asarray(by_span.any(axis=0))
        return out
    if not circuit.spans:
        return np.tile(mask, len(here))
    raise SiteError("this circuit is of other spans", why=f"it has {', '.join(circuit.spans)}, these prompts {', '.join(here)}",
                    instead="prompts with the same spans, or choices with positions='all'")  # fmt: skip


def picked(case: Case, prompts: int) -> list[int]:
    """A random part of its prompts, for what is measured under hundreds of masks; all where it has no more."""
    n = case.question.runs.n
    if n <= prompts:
        return list(range(n))
    return sorted(seeds.rng(case.seed, "circuit prompts").permutation(n)[:prompts].tolist())


def fewer(case: Case, circuit: Circuit, prompts: int) -> Case:
    """The same case on the prompts that `picked` gives; itself where these are all.

    Raises as `case_of`: the part may lack a contrast.
    """
    pick = picked(case, prompts)
    if len(pick) == case.question.runs.n:
        return case
    return again(case, circuit, case.question.task.subset(pick))


def again(case: Case, circuit: Circuit, task: PairTask) -> Case:
    """The same circuit and choices on other prompts."""
    q = case.question
    scored = "all" if q.runs.bench.at else "last"
    question = ask(q.model, task, replace(q.choices, prompts=""), metrics=q.setting.metrics, scored=scored)
    return settle(question, circuit, case.seed)
