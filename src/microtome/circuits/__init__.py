"""Circuits: sets of edges that carry a behaviour, found, tested and kept as values.

g = mt.circuits.graph(model)                           # len(g.edges) == 70_651 for the embedded model
c = mt.circuits.discover(model, task, how="eap-ig")
r = mt.circuits.evaluate(model, c, task)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microtome.circuits.circuit import Choices, Circuit
from microtome.circuits.question import Question, ask
from microtome.graph.nodes import Graph, graph_of

if TYPE_CHECKING:
    from microtome.facade import Model

__all__ = ["Choices", "Circuit", "Graph", "Question", "ask", "graph"]


def graph(model: Model) -> Graph:
    """Nodes and edges of a model's residual-stream computation.

    Raises
    ------
    SiteError: a point that this family lacks, with the reason; a stream that is not additive.
    """
    return graph_of(model.binding)
