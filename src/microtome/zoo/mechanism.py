"""What is true of a zoo model, as data: nodes, edges and variables by Microtome's own names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from microtome.errors import ModelError
from microtome.zoo.spec import all_edges

__all__ = ["Mechanism", "Variable"]

CHANGES = 1e-3
"""A cut edge counts as confirmed when it moves some logit by more than this (true ones move it by 0.01 or more)."""
CHANGES_TRAINED = 0.05
"""The same in a trained model, where no edge carries exactly nothing."""


@dataclass(frozen=True)
class Variable:
    """A value that the model computes.

    site: where it is written; values: as text, in the order of its directions (of a number those that occur).
    """

    name: str
    site: str
    meaning: str
    kind: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Mechanism:
    """The true graph of one model.

    Attributes
    ----------
    name: of the program or task. n_layers, n_heads, mlp: the shape of the whole graph.
    nodes: sources that belong to the mechanism ("embed", "L0H1.z", "L0.mlp_out").
    edges: true by construction, "L0H1.z->L1.ln2_out": what the source writes for the mechanism meets what the reader reads.
    confirmed: those of them that change some output somewhere on the domain when they alone are cut (zero ablation).
    confirmed_last: those that change it at the last position, which the task scores.
    decoys: nodes that are busy and do not matter.
    variables: what is computed where.
    lost, whole: of a trained model. Per edge of the graph the share of answers lost when it alone is cut (there an edge is
    confirmed by this, see `trained.LOST`), and the accuracy when every edge outside the mechanism carries its mean.
    """

    name: str
    n_layers: int
    n_heads: int
    mlp: bool
    nodes: tuple[str, ...]
    edges: tuple[str, ...]
    confirmed: tuple[str, ...]
    confirmed_last: tuple[str, ...]
    decoys: tuple[str, ...] = ()
    variables: tuple[Variable, ...] = ()
    lost: Mapping[str, float] = field(default_factory=dict)
    whole: float | None = None

    def __post_init__(self) -> None:
        known = set(self.all_edges)
        wrong = sorted({*self.edges, *self.confirmed, *self.confirmed_last} - known)
        if wrong or not set(self.confirmed) <= set(self.edges):
            raise ModelError(
                f"the mechanism of {self.name} has edges that are none: {wrong or 'confirmed but not true'}",
                why=f"its graph has {self.n_layers} layers of {self.n_heads} heads",
            )

    @cached_property
    def all_edges(self) -> tuple[str, ...]:
        """Every edge of the model's graph."""
        return tuple(all_edges(self.n_layers, self.n_heads, mlp=self.mlp))

    @property
    def null_edges(self) -> tuple[str, ...]:
        """Edges that do not belong to the mechanism."""
        true = set(self.edges)
        return tuple(e for e in self.all_edges if e not in true)

    @property
    def all_nodes(self) -> tuple[str, ...]:
        """Every source of the model's graph."""
        return tuple(dict.fromkeys(e.split("->")[0] for e in self.all_edges))

    @property
    def null_nodes(self) -> tuple[str, ...]:
        """Sources that do not belong to the mechanism."""
        return tuple(n for n in self.all_nodes if n not in self.nodes)

    @property
    def unconfirmed(self) -> tuple[str, ...]:
        """True by construction, but no output changes when the edge alone is cut."""
        return tuple(e for e in self.edges if e not in self.confirmed)

    def variable(self, name: str) -> Variable:
        """One variable by its name.

        Raises
        ------
        ModelError: there is none of that name.
        """
        for one in self.variables:
            if one.name == name:
                return one
        raise ModelError(
            f"{self.name} has no variable {name!r}",
            instead=f"one of: {', '.join(v.name for v in self.variables)}",
        )

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps({**asdict(self), "lost": dict(self.lost)}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Mechanism:
        """What `to_json` wrote."""
        raw: Mapping[str, Any] = json.loads(text)
        lists = ("nodes", "edges", "confirmed", "confirmed_last", "decoys")
        variables = tuple(Variable(**{**v, "values": tuple(v["values"])}) for v in raw["variables"])
        return cls(**{**raw, **{k: tuple(raw[k]) for k in lists}, "variables": variables})
