"""What is measured of a circuit: faithfulness, the areas CPR and CMD, completeness, KL, and each prompt by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from microtome.circuits.case import Case
from microtome.circuits.units import ranked
from microtome.controls.ratio import normalised_effect
from microtome.controls.roc import Roc, roc
from microtome.errors import ControlError
from microtome.results import seeds

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FRACTIONS", "Roc", "areas", "cmd", "cpr", "roc"]

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of the graph's edges at which MIB measures circuits (Mueller et al. 2025)."""
NODES = 16
"""Most nodes of a circuit that are knocked out one by one for completeness."""


def cpr(fractions: ArrayLike, faithfulness: ArrayLike, *, log: bool = False) -> float:
    """Integrated circuit performance ratio: the area under faithfulness by share of edges. Higher is better, above 1 possible.

    Linear in k as published: on .001 .. 1 a perfect method has .999, and four fifths of the weight lie above .2. log: linear in
    log k, divided by the range, so that every decade counts alike and a perfect method has 1.

    Raises
    ------
    ControlError: fewer than two sizes, or sizes that do not rise.
    """
    return _area(fractions, np.asarray(faithfulness, dtype=np.float64), log)


def cmd(fractions: ArrayLike, faithfulness: ArrayLike, *, log: bool = False) -> float:
    """Integrated circuit-model distance: the area under |1 - faithfulness|. 0 is best. Otherwise as `cpr`."""
    return _area(fractions, np.abs(1 - np.asarray(faithfulness, dtype=np.float64)), log)


def _area(fractions: ArrayLike, y: np.ndarray, log: bool) -> float:
    k = np.asarray(fractions, dtype=np.float64)
    if k.ndim != 1 or k.shape != y.shape or len(k) < 2 or not (np.diff(k) > 0).all() or k[0] <= 0:
        raise ControlError(f"{k.size} sizes and {y.size} values.", why="an area needs two sizes or more, rising, and a value at each",
                           instead="FRACTIONS, as published")  # fmt: skip
    x = np.log(k) / (np.log(k[-1]) - np.log(k[0])) if log else k
    return float(((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2).sum())


def prefixes(case: Case, scores: np.ndarray, *, absolute: bool) -> list[np.ndarray]:
    """Circuits of the published sizes, by signed or absolute score, edges on no path taken out.

    Nodes are counted by the edges that leave them (as MIB weighs them). Shapes: scores [unit] -> [size][edge].
    """
    units = case.units
    order = ranked(units, scores, "top-n", absolute=absolute)
    free = ~units.fixed
    weights = np.bincount(units.of_edge[free], minlength=len(units))[order]
    counts = np.cumsum(weights)
    out = []
    for fraction in FRACTIONS:
        size = int(np.searchsorted(counts, int(fraction * counts[-1]), side="right"))
        out.append(case.search.path(case.mask(order[:size])))
    return out


def areas(case: Case, scores: np.ndarray) -> tuple[pd.DataFrame, dict[str, float]]:
    """Faithfulness by size, and CPR and CMD, all sizes measured as one batch of masks.

    Shapes: scores [unit]. CPR takes what raises the metric (signed), CMD the largest of either sign (absolute), as published.

    Raises
    ------
    ControlError: scores that are not finite.
    """
    import pandas as pd

    if not np.isfinite(scores).all():
        raise ControlError(
            "a score is not finite", why="sizes are taken by rank", instead="scores of every unit"
        )
    both = {
        "signed": prefixes(case, scores, absolute=False),
        "absolute": prefixes(case, scores, absolute=True),
    }
    masks = [mask for some in both.values() for mask in some]
    which = {m.tobytes(): i for i, m in enumerate(masks)}
    known = sorted(set(which.values()))
    values = dict(zip(known, case.share(case.driver([masks[i] for i in known])), strict=True))
    rows, faith = [], {}
    for ranking, some in both.items():
        faith[ranking] = np.array([values[which[m.tobytes()]] for m in some])
        rows += [
            (ranking, k, int(m.sum()), float(f))
            for k, m, f in zip(FRACTIONS, some, faith[ranking], strict=True)
        ]
    found = {
        "CPR": cpr(FRACTIONS, faith["signed"]),
        "CPR, log k": cpr(FRACTIONS, faith["signed"], log=True),
        "CMD": cmd(FRACTIONS, faith["absolute"]),
        "CMD, log k": cmd(FRACTIONS, faith["absolute"], log=True),
    }
    return pd.DataFrame(rows, columns=["ranking", "fraction", "edges", "value"]), found


def limits(case: Case, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Limits of faithfulness over clusters; NaN where the total effect's interval contains 0. Shapes: [c, prompt] -> [c] each."""
    full, empty = case.ends
    try:
        ratio = normalised_effect(values - empty, full - empty, case.question.clusters)
    except ControlError:
        return np.full(len(values), np.nan), np.full(len(values), np.nan)
    return ratio.low, ratio.high


def knocked(case: Case, subsets: int) -> list[tuple[str, np.ndarray]]:
    """Parts K of the circuit that are knocked out: all of it, nodes, random halves. -> (name, unit numbers)."""
    out = [("all of it", case.chosen)]
    writer = np.tile(case.question.graph.writer_of, case.units.spans)
    by_node: dict[int, set[int]] = {}
    for unit in case.chosen:
        for edge in case.units.members(int(unit)):
            by_node.setdefault(int(writer[edge]), set()).add(int(unit))
    largest = sorted(by_node, key=lambda w: (-len(by_node[w]), w))[:NODES]
    names = [w.name for w in case.question.graph.writers]
    out += [(f"what leaves {names[w]}", np.array(sorted(by_node[w]))) for w in sorted(largest)]
    for i in range(subsets):
        half = seeds.rng(case.seed, f"knocked out/{i}").random(len(case.chosen)) < 0.5
        if half.any():
            out.append((f"a random half ({i})", case.chosen[half]))
    return out


def completeness(case: Case, subsets: int) -> pd.DataFrame:
    """F(C without K) against F(M without K) for parts K of the circuit (Wang et al. 2023), in shares of the total effect.

    Columns: subset, units (in K), circuit, model, gap (their difference): far from 0 where the model has, outside the circuit,
    what stands in for K.
    """
    import pandas as pd

    parts = knocked(case, subsets)
    masks = []
    for _, gone in parts:
        left = case.inside.copy()
        left[gone] = False
        masks += [
            case.units.mask(left),
            case.units.mask(case.units.free & ~np.isin(np.arange(len(case.units)), gone)),
        ]
    values = case.share(case.driver(masks)).reshape(-1, 2)
    return pd.DataFrame(
        {
            "subset": [name for name, _ in parts],
            "units": [len(gone) for _, gone in parts],
            "circuit": values[:, 0],
            "model": values[:, 1],
            "gap": values[:, 0] - values[:, 1],
        }
    )


def by_prompt(case: Case) -> pd.DataFrame:
    """Each prompt by itself: the metric of the whole model, the circuit, its complement, the empty circuit; KL where there is one."""
    import pandas as pd

    full, empty = case.ends
    column = case.search.column
    table = {
        "prompt": range(case.question.runs.n),
        "cluster": case.question.clusters,
        "whole model": full,
        "circuit": case.measured[0, :, column],
        "complement": case.measured[1, :, column],
        "empty circuit": empty,
    }
    names = case.question.setting.metrics
    if "kl" in names:
        table["kl"] = case.measured[0, :, names.index("kl")]
    return pd.DataFrame(table)


def spread(values: np.ndarray) -> dict[str, float]:
    """The distribution over prompts in five numbers."""
    names = ("lowest", "lower quartile", "median", "upper quartile", "highest")
    return dict(zip(names, np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist(), strict=True))
