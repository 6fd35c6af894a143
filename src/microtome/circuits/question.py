"""A task asked of circuits: clean and corrupt runs recorded once, any circuit measured by one forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from microtome.circuits.circuit import Choices, Circuit
from microtome.errors import ControlError, TaskError
from microtome.graph.donors import Donor, Prompts, Reference, Zero
from microtome.graph.nodes import Graph
from microtome.graph.patched import EdgeRuns
from microtome.graph.scores import EdgeScores, edge_scores
from microtome.methods.setting import Setting, setting
from microtome.results import seeds

if TYPE_CHECKING:
    from microtome.facade import Model
    from microtome.tasks.pairs import PairTask

REFERENCE = 64


@dataclass
class Question:
    """Which edges does the model need for this task? Everything that discovery and evaluation measure goes through here.

    model, task, choices: what is asked. setting: base and donor as the direction has them. runs: the recorded runs.
    """

    model: Model
    task: PairTask
    choices: Choices
    setting: Setting
    runs: EdgeRuns

    @property
    def graph(self) -> Graph:
        """The model's graph."""
        return self.runs.graph

    @property
    def clusters(self) -> list[str]:
        """The unit of statistics of each pair (its template, else its entity)."""
        return list(self.setting.clusters)

    @property
    def edges(self) -> int:
        """Numbers in a mask."""
        return self.runs.edges

    @cached_property
    def fixed(self) -> Tensor:
        """Edges that every circuit has, by the choice of components. Shapes: [edge]."""
        kinds = {"all": (), "heads": ("embed", "mlp"), "mlps": ("embed", "head")}[self.choices.component]
        writers = torch.tensor([w.kind in kinds for w in self.graph.writers])
        return writers[torch.as_tensor(self.graph.writer_of)].repeat(max(1, len(self.runs.spans)))

    def measure(self, kept: Tensor) -> np.ndarray:
        """Metrics of circuits: edges that are not kept carry the ablation's value.

        Shapes: kept [circuit, edge] bool -> [circuit, prompt, metric], float64.
        """
        kept = kept | self.fixed
        patched = kept if self.choices.direction == "denoise" else ~kept
        return self.runs.measure(patched).numpy()

    @cached_property
    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """The metrics of the whole model and of the empty circuit. Shapes: [prompt, metric] each."""
        every = torch.ones(1, self.edges, dtype=torch.bool)
        full, empty = self.measure(torch.cat([every, ~every]))
        return full, empty

    def faithfulness(self, values: np.ndarray, column: int = 0) -> np.ndarray:
        """(circuit - empty) / (full - empty), of the means over prompts (as MIB). Shapes: [..., prompt, metric] -> [...].

        Raises
        ------
        ControlError: the model does not tell clean from corrupt: nothing to be faithful to.
        """
        full, empty = (end[:, column].mean() for end in self.ends)
        if not abs(full - empty) > 1e-9:
            raise ControlError("the whole model and the empty circuit score the same", why="there is no difference that a circuit could carry",
                               instead="choose a task that the model does, or another ablation")  # fmt: skip
        out: np.ndarray = (values[..., column].mean(-1) - empty) / (full - empty)
        return out

    def importance(self, how: str = "ig-inputs", **options: float) -> tuple[np.ndarray, EdgeScores]:
        """Estimated loss of the metric when an edge is left out; positive helps. Shapes: [edge, prompt], and the raw scores."""
        scores = edge_scores(self.runs, how, **options)  # type: ignore[arg-type]
        sign = 1.0 if self.choices.direction == "denoise" else -1.0
        return sign * scores.values.numpy(), scores

    def circuit(self, kept: np.ndarray, how: str, scores: np.ndarray | None = None) -> Circuit:
        """A mask as a value. Shapes: kept [edge] bool; scores [edge] or None."""
        from microtome.circuits.circuit import named_edges

        names = named_edges(self.graph, kept, self.runs.spans)
        table = {} if scores is None else dict(zip(names, scores[kept].tolist(), strict=True))
        return Circuit(names, self.graph.shape, self.model.hash, self.choices, how, table, self.runs.spans)


def ask(
    model: Model,
    task: PairTask,
    choices: Choices | None = None,
    *,
    metrics: Sequence[str] = (),
    scored: str = "last",
    memory: int = 1 << 30,
    progress: Callable[[float, float], None] | None = None,
) -> Question:
    """Record a task's runs for circuits.

    metrics: names; default the task's own. scored: "last" (the last token and its continuations) or "all" positions, with
    metrics that compare with the unedited run ("kl", "l2").

    Raises
    ------
    SiteError: the family has no graph. TaskError: a metric that does not fit, or a task that gives no reference prompts.
    """
    choices = choices or Choices()
    choices = replace(
        choices,
        prompts=f"{task.name} {task.hash[:12]} n={task.n}",
        reference=REFERENCE if choices.ablation in ("mean", "resample") else 0,
    )
    s = setting(model, task, "denoise" if choices.direction == "denoise" else "noise", metrics)
    bench = s.bench
    if scored == "all":
        wrong = [name for name in s.metrics if name not in ("kl", "l2")]
        lengths = {len(ids) for ids in bench.ids}
        if wrong or len(lengths) > 1:
            raise TaskError("all positions cannot be scored", why=f"{wrong[0]} reads answers at the last token" if wrong else "prompts differ in length",
                            instead='metrics=("kl",) or ("l2",) on prompts of one length')  # fmt: skip
        bench = replace(bench, at=[range(len(ids)) for ids in bench.ids])
    spans = _spans(s) if choices.positions == "spans" else ()
    runs = EdgeRuns(bench, _donor(s, choices), memory=memory, progress=progress, spans=spans)
    return Question(model, task, choices, replace(s, bench=bench), runs)


def _spans(s: Setting) -> tuple[str, ...]:
    from microtome.methods.setting import REST, common

    return (*common(s.base), REST)


def _donor(s: Setting, choices: Choices) -> Donor:
    if choices.ablation == "corrupt":
        return Prompts(s.donor.ids)
    if choices.ablation == "zero":
        return Zero()
    from microtome.tasks.alignment import match

    reference = s.task.reference(choices.reference, seeds.child(choices.seed, "reference"))
    fits = match(s.base, reference)
    return Reference(reference.ids, "mean" if choices.ablation == "mean" else "resample", fits, choices.seed)
