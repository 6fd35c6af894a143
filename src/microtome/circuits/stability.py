"""How much of a circuit is owed to these prompts: clusters resampled, edges scored and circuits taken again.

No run is needed: scores are kept per prompt, so a resample is a weighted mean of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from microtome.circuits.case import Case
from microtome.circuits.circuit import named_edges
from microtome.circuits.units import ranked
from microtome.controls.clusters import MIN_CLUSTERS, as_clusters
from microtome.controls.intervals import bootstrap_interval, mean_interval
from microtome.results import seeds
from microtome.results.verdicts import Control

if TYPE_CHECKING:
    import pandas as pd

BAR, LEAST = 0.8, 100
"""Mean pairwise Jaccard similarity above which a method counts as stable, and resamples for it (Méloux et al. 2025, 2510.00845)."""
SHOWN = 1_000
"""Strongest edges outside the circuit that get an interval."""


@dataclass(frozen=True)
class Stable:
    """Bootstrap circuits.

    Shapes: pairwise: mean Jaccard similarity of all pairs (NaN for fewer than two); own [draw], with the circuit itself;
    frequency [edge]: in how many of them an edge is.
    """

    pairwise: float
    own: np.ndarray
    frequency: np.ndarray
    draws: int


def bootstrap(case: Case, per_prompt: np.ndarray, draws: int) -> Stable:
    """Circuits of the same number of units from resampled clusters. Shapes: per_prompt [edge, prompt]."""
    index = as_clusters(case.question.clusters)
    rng = seeds.rng(case.seed, "bootstrap circuits")
    groups = index.n_clusters
    weights = rng.multinomial(groups, np.full(groups, 1 / groups), size=draws)[:, index.codes].astype(
        np.float64
    )
    weights /= weights.sum(1, keepdims=True)
    units, size = case.units.scores(per_prompt), len(case.chosen)
    free = ~case.units.fixed
    found = np.zeros((draws, case.units.edges), dtype=bool)
    for draw in range(draws):
        order = ranked(case.units, units @ weights[draw], "top-n", absolute=True)
        found[draw] = case.search.path(case.mask(order[:size])) & free
    own = _jaccard(np.stack([case.kept & free]), found)[0]
    pairs = _jaccard(found, found)
    upper = pairs[np.triu_indices(draws, 1)]
    return Stable(float(upper.mean()) if upper.size else float("nan"), own, found.mean(0), draws)


def _jaccard(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Shapes: [a, edge], [b, edge] bool -> [a, b]."""
    some = first.any(0) | second.any(0)
    a, b = first[:, some].astype(np.float32), second[:, some].astype(np.float32)
    both = a @ b.T
    either = a.sum(1)[:, None] + b.sum(1)[None] - both
    return np.divide(both, either, out=np.ones_like(both), where=either > 0)


def control(case: Case, stable: Stable) -> Control:
    """Bootstrap circuits resemble each other as much as the published bar asks."""
    name, rules_out = "stability", "that other prompts of the same kind would have given another circuit"
    expected = f"mean pairwise Jaccard similarity of {LEAST} or more bootstrap circuits above {BAR:g}"
    n = as_clusters(case.question.clusters).n_clusters
    if stable.draws < LEAST or n < MIN_CLUSTERS:
        why = f"{stable.draws} resamples" if stable.draws < LEAST else f"{n} clusters are too few to resample"
        return Control.not_run(name, rules_out, expected, why)
    own = float(stable.own.mean())
    return Control(name, rules_out, expected, {"pairwise": stable.pairwise, "with this circuit": own}, stable.pairwise > BAR, stable.draws,
                   null=None, detail=f"{n} clusters resampled; scores by integrated gradients on these prompts")  # fmt: skip


def edges(case: Case, per_prompt: np.ndarray, stable: Stable) -> pd.DataFrame:
    """Score, bootstrap-t interval over clusters (under six clusters: t, conditional on them) and frequency of single edges.

    Rows: the circuit's edges and the strongest others.
    """
    import pandas as pd

    scores = per_prompt.mean(1)
    others = np.argsort(-np.abs(np.where(case.kept, 0.0, scores)), kind="stable")[:SHOWN]
    rows = np.union1d(np.flatnonzero(case.kept & ~case.units.fixed), others[~case.kept[others]])
    part, clusters = per_prompt[rows], case.question.clusters
    if as_clusters(clusters).n_clusters >= MIN_CLUSTERS:
        interval = bootstrap_interval(part, clusters, seed=case.seed)
    else:
        interval = mean_interval(part, clusters)
    mask = np.zeros(case.units.edges, dtype=bool)
    mask[rows] = True
    return pd.DataFrame(
        {
            "edge": named_edges(case.question.graph, mask, case.question.runs.spans),
            "score": scores[rows],
            "low": interval.low,
            "high": interval.high,
            "frequency": stable.frequency[rows],
            "kept": case.kept[rows],
        }
    )
