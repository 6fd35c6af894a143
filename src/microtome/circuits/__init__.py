"""Circuits: sets of edges that carry a behaviour, found, tested and kept as values.

g = mt.circuits.graph(model)                           # len(g.edges) == 70_651 for the embedded model
c = mt.circuits.discover(model, task, how="eap-ig")
r = mt.circuits.evaluate(model, c, task)

Loaded when first used. Files are not called as their functions, so that importing one never hides the other.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from microtome.results import registry

if TYPE_CHECKING:
    from microtome.circuits.circuit import Choices, Circuit
    from microtome.circuits.cost import estimate_cost
    from microtome.circuits.discovery import circuit_discovery, circuit_of, discover
    from microtome.circuits.evaluating import circuit_evaluation, evaluate
    from microtome.circuits.files import open_circuit, save_circuit
    from microtome.circuits.measures import cmd, cpr, roc
    from microtome.circuits.mib import read_mib, write_mib
    from microtome.circuits.question import Question, ask
    from microtome.circuits.robustness import circuit_robustness
    from microtome.facade import Model
    from microtome.graph.nodes import Graph

_HOMES = {
    "Choices": "circuit",
    "Circuit": "circuit",
    "Question": "question",
    "ask": "question",
    "circuit_discovery": "discovery",
    "circuit_evaluation": "evaluating",
    "circuit_of": "discovery",
    "circuit_robustness": "robustness",
    "cmd": "measures",
    "cpr": "measures",
    "discover": "discovery",
    "estimate_cost": "cost",
    "evaluate": "evaluating",
    "open_circuit": "files",
    "read_mib": "mib",
    "roc": "measures",
    "save_circuit": "files",
    "write_mib": "mib",
}
_TECHNIQUES = ("circuit_discovery", "circuit_evaluation", "circuit_robustness")

__all__ = [
    "Choices",
    "Circuit",
    "Graph",
    "Question",
    "ask",
    "circuit_discovery",
    "circuit_evaluation",
    "circuit_of",
    "circuit_robustness",
    "cmd",
    "cpr",
    "discover",
    "estimate_cost",
    "evaluate",
    "graph",
    "open_circuit",
    "read_mib",
    "roc",
    "save_circuit",
    "write_mib",
]

for _name in _TECHNIQUES:
    registry.register("techniques", _name, registry.Lazy(f"microtome.circuits.{_HOMES[_name]}:{_name}"))


def graph(model: Model) -> Graph:
    """Nodes and edges of a model's residual-stream computation.

    Raises
    ------
    SiteError: a point that this family lacks, with the reason; a stream that is not additive.
    """
    from microtome.graph.nodes import graph_of

    return graph_of(model.binding)


def __getattr__(name: str) -> Any:
    if name == "Graph":
        from microtome.graph.nodes import Graph

        return Graph
    if name in _HOMES:
        return getattr(import_module(f"microtome.circuits.{_HOMES[name]}"), name)
    raise AttributeError(f"microtome.circuits has no {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
