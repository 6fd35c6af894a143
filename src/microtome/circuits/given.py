"""Edge scores that attribution patching has already estimated, for a discovery on the same question."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from microtome.circuits.options import IMPORTANCE
from microtome.errors import ResultError
from microtome.graph.scores import EdgeScores
from microtome.methods.setting import same_question

if TYPE_CHECKING:
    from microtome.circuits.question import Question
    from microtome.results.result import Result

OTHER = "the scores are of another question"


def given_scores(result: Result, q: Question, how: str, metric: str) -> tuple[np.ndarray, EdgeScores]:
    """Importance of edges from a result of `attribution_patching(..., of="edges")`. Shapes: -> [edge, prompt].

    Raises
    ------
    ResultError: a result of another kind, way, model, task, mode or metric; choices whose scores it does not hold.
    """
    effects, c = result.effects, q.choices
    asked: dict[str, Any] = {} if result.query is None else dict(result.query.parameters)
    if (
        result.kind != "attribution_patching"
        or effects is None
        or effects.coords["site"] != tuple(q.graph.edges)
    ):
        raise ResultError("these are no scores of this model's edges", why=f"a {result.kind} of {asked.get('of', 'something else')}",
                          instead='scores=mt.methods.attribution_patching(model, task, of="edges", ...)')  # fmt: skip
    same_question(result, q.model, q.task, "map of edges")
    if (c.ablation, c.positions) != ("corrupt", "all"):
        raise ResultError(OTHER, why=f"attribution patches corrupt values at all positions, the choices say {c.ablation} and {c.positions}",
                          instead="leave scores= out")  # fmt: skip
    mine = {"how": IMPORTANCE.get(how, how), "mode": c.direction}
    for name, wanted in mine.items():
        if asked.get(name, wanted) != wanted:
            raise ResultError(OTHER, why=f"they have {name}={asked[name]!r}, this discovery needs {wanted!r}",
                              instead=f"attribution_patching(..., of='edges', {name}={wanted!r})")  # fmt: skip
    if effects.coords["metric"] != (metric,):
        raise ResultError(OTHER, why=f"they are of {effects.coords['metric'][0]}, this discovery is driven by {metric}",
                          instead=f"metric={effects.coords['metric'][0]!r}")  # fmt: skip
    values = effects.values[..., 0].astype(np.float64)
    sign = 1.0 if c.direction == "denoise" else -1.0
    return sign * values, _estimate(result, values)


def _estimate(result: Result, values: np.ndarray) -> EdgeScores:
    """What is known of how they were estimated; the metric at both ends is not."""
    rows: dict[str, dict[Any, Any]] = {
        str(r["quantity"]): r for r in result.tables["certificate"].to_dict("records")
    }
    gap, unknown = rows["completeness gap"], torch.full((values.shape[1],), float("nan"))
    passes = int(rows["gradient passes"]["value"])
    return EdgeScores(torch.from_numpy(values), unknown, unknown, int(gap["n"]), float(gap["value"]), passes)
