"""The tests of Shi et al. (2024, arXiv 2410.13032), each with the power to come out either way.

Equivalence: is the circuit above the whole model as often as below it (sign test)? Independence: does what is left without the
circuit still depend on the model's score (HSIC, permuted)? Minimality: does every part matter more than a part that was put into
the circuit for no reason (tail test against inflated circuits)?

The published tests take "not rejected" for "holds". Here a test that could not have seen a difference says so and does not pass:
equivalence needs an interval within its margin, independence that the same test sees the circuit's own dependence, minimality a
p of every part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from microtome.circuits.case import Case
from microtome.controls.dependence import Dependence, hsic_test
from microtome.controls.intervals import proportion_interval
from microtome.graph.nodes import Graph
from microtome.results import seeds
from microtome.results.verdicts import Control

LEVEL = 0.05
"""Level of each one-sided test."""
EPSILON = 0.1
"""How far P(circuit above model) may lie from one half, as published."""
PATIENCE = 200


def floor(case: Case, values: np.ndarray) -> float:
    """Differences of a metric up to this are rounding."""
    eps = torch.finfo(next(case.question.model.hf.parameters()).dtype).eps
    return 1e4 * eps * max(1.0, float(np.abs(values).max()))


def equivalence(case: Case, epsilon: float = EPSILON) -> Control:
    """Sign test of circuit against whole model, prompt by prompt; equal scores count half to either side."""
    full = case.ends[0]
    gap = case.measured[0, :, case.search.column] - full
    least = floor(case, full)
    above, below = (
        proportion_interval(hit, case.question.clusters, level=1 - 2 * LEVEL)
        for hit in (gap > least, gap < -least)
    )
    n, ties = len(gap), int((np.abs(gap) <= least).sum())
    share = float(above.estimate) + ties / n / 2
    low = 0.5 + float(above.low - below.high) / 2
    high = 0.5 + float(above.high - below.low) / 2
    k = int(np.ceil(max(share, 1 - share) * n - 1e-9))
    p = float(stats.binom.sf(k - 1, n, 0.5 + epsilon))
    inside = 0.5 - epsilon <= low and high <= 0.5 + epsilon
    outside = low > 0.5 + epsilon or high < 0.5 - epsilon
    name, rules_out = "equivalence", "that the circuit scores systematically above or below the whole model"
    expected = (
        f"P(circuit above model) shown to lie within {epsilon:g} of one half ({1 - 2 * LEVEL:.0%} interval)"
    )
    said = f"P = {share:.2f}, {low:.2f} to {high:.2f}; {ties} of {n} equal; published sign test p = {p:.2g}"
    if not inside and not outside:
        return Control.not_run(name, rules_out, expected, f"undecided: {said}; more prompts would tell")
    return Control(
        name, rules_out, expected, {"P": share, "low": low, "high": high, "p": p}, inside, n, detail=said
    )


def independence(case: Case, draws: int) -> tuple[Control, Dependence, Dependence]:
    """HSIC of the complement's score with the whole model's, and, to show that the test can see it, of the circuit's own."""
    full = case.ends[0]
    column = case.search.column
    least = floor(case, full)
    own, rest = (np.round(case.measured[i, :, column] / least) * least for i in (0, 1))
    clusters = case.question.clusters
    left = hsic_test(full, rest, clusters, seed=case.seed, draws=draws, name="complement")
    seen = hsic_test(full, own, clusters, seed=case.seed, draws=draws, name="circuit")
    name, rules_out = "independence", "that what is outside the circuit still carries the task"
    expected = f"the score without the circuit is independent of the model's (HSIC, alpha {LEVEL:g}), which the test sees for the circuit itself"
    observed = {"HSIC": left.statistic, "p": left.p, "p of the circuit itself": seen.p}
    said = f"permuted within {left.within}; smallest p within reach {left.smallest_p:.2g}"
    if left.p > LEVEL and seen.p > LEVEL:
        why = f"undecided: with {len(full)} prompts the test does not even see that the circuit's own score depends on the model's (p = {seen.p:.2g})"
        return Control.not_run(name, rules_out, expected, why), left, seen
    return Control(name, rules_out, expected, observed, left.p > LEVEL, len(full), detail=said), left, seen


@dataclass(frozen=True)
class Minimal:
    """What leaving out single units changes, in shares of the total effect.

    Shapes: units [unit], numbers; change, p [unit]; inflated [draw]: the same of units added for no reason.
    """

    units: np.ndarray
    change: np.ndarray
    p: np.ndarray
    inflated: np.ndarray


def minimality(case: Case, most: int, draws: int) -> tuple[Control, Minimal]:
    """Mean |change| of the metric when a unit leaves the circuit, against that of units on random paths added to it."""
    tested = case.chosen
    if len(tested) > most:
        tested = np.sort(seeds.rng(case.seed, "minimality").permutation(tested)[:most])
    full = [case.mask(np.setdiff1d(case.chosen, [u])) for u in tested]
    base = case.driver([case.kept])[0]
    change = np.abs(case.driver(full) - base).mean(-1) / abs(case.total) if full else np.zeros(0)
    pairs = _inflated(case, draws)
    inflated = np.zeros(0)
    if pairs:
        values = case.driver([mask for pair in pairs for mask in pair]).reshape(len(pairs), 2, -1)
        inflated = np.abs(values[:, 0] - values[:, 1]).mean(-1) / abs(case.total)
    least = floor(case, base) / abs(case.total)
    p = (1 + (inflated >= change[:, None] - least).sum(1)) / (1 + len(inflated))
    return _minimal(case, Minimal(tested, change, p, inflated)), Minimal(tested, change, p, inflated)


def _minimal(case: Case, m: Minimal) -> Control:
    name, rules_out = (
        "minimality",
        "that the circuit has parts which do no more than parts added for no reason",
    )
    expected = f"every {case.noun}'s removal changes more than that of {case.noun}s on random paths (p at most {LEVEL:g} each)"
    reach = 1 / (1 + len(m.inflated))
    if not len(m.units) or reach > LEVEL:
        why = (
            "nothing could be left out"
            if not len(m.units)
            else f"{len(m.inflated)} inflated circuits reach p = {reach:.2g} at best"
        )
        return Control.not_run(name, rules_out, expected, why)
    bad = np.flatnonzero(m.p > LEVEL)
    spans = case.question.runs.spans
    names = [f"{case.units.name(int(m.units[i]), spans)} (p = {m.p[i]:.2g})" for i in bad[:6]]
    more = f" and {len(bad) - 6} more" if len(bad) > 6 else ""
    few = (
        f"; {len(m.units)} of {len(case.chosen)} {case.noun}s tested"
        if len(m.units) < len(case.chosen)
        else ""
    )
    detail = (
        f"no more than added ones: {', '.join(names)}{more}"
        if len(bad)
        else f"smallest p within reach {reach:.2g}"
    ) + few
    return Control(name, rules_out, expected, {"redundant": len(bad), "tested": len(m.units), "largest p": float(m.p.max())}, not len(bad),
                   len(m.units), null=(float(m.inflated.min()), float(m.inflated.max())), detail=detail)  # fmt: skip


def _inflated(case: Case, draws: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Circuits with a random path (a random node) added, and the same without one of the added units."""
    out: list[tuple[np.ndarray, np.ndarray]] = []
    outside = np.flatnonzero(case.units.free & ~case.inside)
    if not len(outside):
        return []
    for draw in range(draws):
        rng = seeds.rng(case.seed, f"inflated/{draw}")
        new = np.zeros(0, dtype=np.int64)
        for _ in range(PATIENCE):
            path = _path(case, rng) if case.units.granularity == "edge" else rng.choice(outside, size=1)
            new = np.setdiff1d(path, np.flatnonzero(case.inside | ~case.units.free))
            if len(new):
                break
        if not len(new):
            return out
        inside = case.inside.copy()
        inside[new] = True
        less = inside.copy()
        less[rng.choice(new)] = False
        out.append((case.units.mask(inside), case.units.mask(less)))
    return out


def _path(case: Case, rng: np.random.Generator) -> np.ndarray:
    """Edges of a random walk from the embedding to the logits, within one span."""
    graph: Graph = case.question.graph
    span = int(rng.integers(case.units.spans)) * len(graph.edges)
    writer = 0
    out: list[int] = []
    while True:
        able = [r for r in range(len(graph.readers)) if graph.readers[r].reach > writer]
        reader = int(rng.choice(able))
        out.append(span + int(graph.offsets[reader]) + writer)
        feeds = graph.feeds[reader]
        if not len(feeds):
            return np.array(out)
        writer = int(rng.choice(feeds))
