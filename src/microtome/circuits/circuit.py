"""A circuit as a value: some edges of a model's graph, and the choices under which they were found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.errors import SiteError
from microtome.graph.nodes import Graph
from microtome.results.frozen import digest, dumps

if TYPE_CHECKING:
    from torch import Tensor

    from microtome.facade import Model
    from microtome.results.result import Result
    from microtome.tasks.pairs import PairTask

GRANULARITIES = ("edge", "node")
ABLATIONS = ("corrupt", "zero", "mean", "resample")
DIRECTIONS = ("noise", "denoise")
COMPONENTS = ("all", "heads", "mlps")
POSITIONS = ("all", "spans")


@dataclass(frozen=True)
class Choices:
    """The six choices that change a faithfulness score (Miller et al. 2024), stored beside every score.

    granularity: what is patched: edges, or all edges that leave a node. component: which writers may be left out of a circuit
    ("heads": MLPs and the embedding always stay in; "mlps": heads and the embedding do). ablation: what a left-out edge
    carries. positions: one mask for all positions, or one per span of the task. direction: "noise" (left-out edges are
    corrupted in the clean run) or "denoise" (the circuit's edges are restored in the corrupt run). prompts: the task's name
    and hash. reference, seed: of mean and resample ablation, how many reference prompts and drawn from which seed.
    """

    granularity: str = "edge"
    component: str = "all"
    ablation: str = "corrupt"
    positions: str = "all"
    direction: str = "noise"
    prompts: str = ""
    reference: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("granularity", GRANULARITIES), ("component", COMPONENTS), ("ablation", ABLATIONS), ("positions", POSITIONS),
                            ("direction", DIRECTIONS)):  # fmt: skip
            if getattr(self, name) not in known:
                raise SiteError(
                    f"{name}={getattr(self, name)!r} is no choice",
                    why="the six choices are named",
                    instead=f"one of {', '.join(known)}",
                )
        if self.direction == "denoise" and self.ablation != "corrupt":
            raise SiteError(f"direction='denoise' with ablation={self.ablation!r}", why="restoring clean edges needs a corrupt run to restore them in",
                            instead="ablation='corrupt', or direction='noise'")  # fmt: skip

    def text(self) -> str:
        """The six in one line."""
        return f"{self.granularity}s of {self.component}, {self.ablation} ablation, positions {self.positions}, {self.direction}, {self.prompts}"

    def data(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, repr=False)
class Circuit:
    """Some edges of a model's graph.

    edges: names in graph order. model, shape: hash of the model and shape of its graph. choices: see `Choices`. how: the method
    that found it. scores: per edge, positive where it helps ({} where there are none). result: what found it, with its
    controls (None for a circuit read from a file or made by hand).
    """

    edges: tuple[str, ...]
    shape: tuple[tuple[int, int, bool, bool], ...]
    model: str = ""
    choices: Choices = field(default_factory=Choices)
    how: str = "by hand"
    scores: Mapping[str, float] = field(default_factory=dict)
    spans: tuple[str, ...] = ()
    result: Result | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.edges)

    def __contains__(self, edge: object) -> bool:
        return edge in set(self.edges)

    def __repr__(self) -> str:
        return f"<Circuit: {len(self.edges):,} edges by {self.how}; {self.choices.text()}>"

    def __query__(self) -> dict[str, Any]:
        """How a technique that takes this circuit records it."""
        content = dumps([list(self.edges), list(self.spans), self.model])
        return {
            "circuit": digest(content.encode()),
            "edges": len(self.edges),
            "how": self.how,
            "choices": self.choices.data(),
        }

    @property
    def nodes(self) -> tuple[str, ...]:
        """The writers that its edges leave, in order of first appearance."""
        return tuple(dict.fromkeys(edge.partition("->")[0] for edge in self.edges))

    def mask(self, graph: Graph) -> Tensor:
        """True for the edges in it. Shapes: [edge] (with spans [span * edge]).

        Raises
        ------
        SiteError: the graph is another model's; says what differs.
        """
        import torch

        if graph.shape != self.shape:
            raise SiteError(
                "this circuit is of another model",
                why=_difference(self.shape, graph.shape),
                instead="load the model that it was found in",
            )
        size = len(graph.edges)
        out = torch.zeros(max(1, len(self.spans)) * size, dtype=torch.bool)
        place = {span: i * size for i, span in enumerate(self.spans)}
        for edge in self.edges:
            name, _, span = edge.partition("@")
            out[graph.number(name) + (place[span] if self.spans else 0)] = True
        return out

    def robustness(self, model: Model, task: PairTask, **more: Any) -> Result:
        """This circuit under every setting of the six choices; arguments and errors as `circuits.circuit_robustness`."""
        from microtome.circuits.robustness import circuit_robustness

        return circuit_robustness(model, self, task, **more)

    def without(self, edges: Iterable[str]) -> Circuit:
        """The same circuit without some edges."""
        gone = set(edges)
        return replace(self, edges=tuple(e for e in self.edges if e not in gone), result=None)


def _difference(
    one: tuple[tuple[int, int, bool, bool], ...], other: tuple[tuple[int, int, bool, bool], ...]
) -> str:
    """What differs between two shapes, in words."""
    if len(one) != len(other):
        return f"it has {len(one)} layers, this model {len(other)}"
    for layer, (mine, its) in enumerate(zip(one, other, strict=True)):
        for a, b, what in zip(
            mine,
            its,
            ("heads", "key/value heads", "an MLP (True or False)", "parallel parts (True or False)"),
            strict=True,
        ):
            if a != b:
                return f"layer {layer}: {what}: {a} in the circuit, {b} in this model"
    return "nothing"


def named_edges(graph: Graph, kept: np.ndarray, spans: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Names of the edges that are True. Shapes: kept [edge] or [span * edge]."""
    size = len(graph.edges)
    return tuple(
        graph.name(int(i) % size) + (f"@{spans[int(i) // size]}" if spans else "")
        for i in np.flatnonzero(kept)
    )
