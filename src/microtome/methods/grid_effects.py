"""Matched sets of a prompt grid: contrasts, clusters, permutation tests, wordings, interactions. Numbers only, no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from microtome.controls.factors import FactorTest, permute_levels
from microtome.controls.intervals import mean_interval
from microtome.controls.multiple import holm

if TYPE_CHECKING:
    import pandas as pd

    from microtome.tasks.grid import GridPrompt, PromptGrid

Set = tuple[tuple[tuple[str, str], ...], int]
"""What a matched set has in common: the other factors' settings, and the wording."""


@dataclass(frozen=True)
class Contrast:
    """A level of a factor against the reference level: rows and base are the matched prompts, sets what each pair shares."""

    site: str
    factor: str
    level: str
    rows: tuple[int, ...]
    base: tuple[int, ...]
    sets: tuple[Set, ...]


@dataclass(frozen=True)
class ClusterRule:
    """How matched sets of one factor are grouped: by the settings of these factors; by wording where there are none."""

    by: tuple[str, ...]

    def of(self, sets: Sequence[Set]) -> list[str]:
        """One label per set."""
        if not self.by:
            return [f"wording {wording}" for _, wording in sets]
        return [repr([(k, v) for k, v in setting if k in self.by]) for setting, _ in sets]


@dataclass(frozen=True)
class Tested:
    """The permutation test of each factor and its p adjusted over factors (Holm)."""

    tests: Mapping[str, FactorTest]
    adjusted: Mapping[str, float]
    clusters: Mapping[str, ClusterRule]

    @property
    def p(self) -> float:
        """The smallest adjusted p."""
        return min(self.adjusted.values())

    @property
    def smallest_p(self) -> float:
        """What it could have been at best."""
        return min(1.0, len(self.tests) * min(t.smallest_p for t in self.tests.values()))

    def table(self, found: Sequence[Contrast], values: np.ndarray) -> pd.DataFrame:
        """One row per factor: levels, sets, clusters, p, and its largest effect."""
        import pandas as pd

        rows = []
        for factor, test in self.tests.items():
            means = [float((values[list(c.rows)] - values[list(c.base)]).mean()) for c in found if c.factor == factor]  # fmt: skip
            by = ", ".join(self.clusters[factor].by) or "wording"
            rows.append({"factor": factor, "levels": len(means) + 1, "effect": max(means, key=abs), "sets": test.n_sets, "clusters": test.n_clusters,
                         "clustered_by": by, "p": test.p, "p_holm": self.adjusted[factor], "smallest_p": test.smallest_p})  # fmt: skip
        return pd.DataFrame(rows)


def _set(row: GridPrompt, *factors: str) -> Set:
    return tuple((k, v) for k, v in row.setting.items() if k not in factors), row.wording


def _where(rows: Sequence[GridPrompt], factor: str) -> dict[Set, dict[str, int]]:
    """Matched set -> level -> row."""
    out: dict[Set, dict[str, int]] = {}
    for i, row in enumerate(rows):
        out.setdefault(_set(row, factor), {})[row.setting[factor]] = i
    return out


def contrasts(grid: PromptGrid, rows: Sequence[GridPrompt]) -> list[Contrast]:
    """Every level of every tested factor against its reference, over the matched sets that hold both."""
    out = []
    for factor in grid.tested:
        reference, *others = grid.labels(factor)
        where = _where(rows, factor)
        for level in others:
            pairs = [(s, at[level], at[reference]) for s, at in where.items() if level in at and reference in at]  # fmt: skip
            sets, changed, base = zip(*pairs, strict=True)
            out.append(Contrast(f"{factor}: {level or '(nothing)'} - {reference or '(nothing)'}", factor, level, changed, base, sets))  # fmt: skip
    return out


def cluster_rule(grid: PromptGrid, factor: str, sets: Sequence[Set]) -> ClusterRule:
    """Settings of the `over` factors; without them those of the other factors; where these do not vary, wordings."""
    if grid.over:
        return ClusterRule(grid.over)
    others = tuple(f for f in grid.factors if f != factor)
    return ClusterRule(others if len({setting for setting, _ in sets}) > 1 else ())


def factor_tests(
    grid: PromptGrid, rows: Sequence[GridPrompt], values: np.ndarray, *, alpha: float, seed: int
) -> Tested:
    """Permute each factor's levels within its matched sets; Holm over factors. values: [prompt]."""
    tests, rules = {}, {}
    for factor in grid.tested:
        levels = grid.labels(factor)
        whole = {s: at for s, at in _where(rows, factor).items() if len(at) == len(levels)}
        rules[factor] = cluster_rule(grid, factor, list(whole))
        table = np.array([[values[at[level]] for level in levels] for at in whole.values()])
        tests[factor] = permute_levels(table, rules[factor].of(list(whole)), seed=seed, name=factor, alpha=alpha)  # fmt: skip
    adjusted = holm([t.p for t in tests.values()])
    return Tested(tests, dict(zip(tests, map(float, adjusted), strict=True)), rules)


def wordings(rows: Sequence[GridPrompt], values: np.ndarray) -> pd.DataFrame | None:
    """Every wording against every other, averaged over the same settings as a factor's effect; None with one wording."""
    import pandas as pd

    at: dict[int, dict[tuple[tuple[str, str], ...], int]] = {}
    for i, row in enumerate(rows):
        at.setdefault(row.wording, {})[_set(row)[0]] = i
    if len(at) < 2:
        return None
    out = []
    for a, b in combinations(sorted(at), 2):
        both = [s for s in at[a] if s in at[b]]
        gap = values[[at[b][s] for s in both]] - values[[at[a][s] for s in both]]
        interval = mean_interval(gap, [repr(s) for s in both])
        out.append({"wording": f"{b} - {a}", "value": float(gap.mean()), "low": float(interval.low), "high": float(interval.high), "n": len(both)})  # fmt: skip
    return pd.DataFrame(out)


def by_wording(found: Sequence[Contrast], rows: Sequence[GridPrompt], values: np.ndarray) -> pd.DataFrame:
    """Each contrast's mean within each wording: does the effect depend on how the question is put?"""
    import pandas as pd

    out = []
    for one in found:
        for wording in sorted({w for _, w in one.sets}):
            here = [k for k, (_, w) in enumerate(one.sets) if w == wording]
            gap = [values[one.rows[k]] - values[one.base[k]] for k in here]
            out.append({"site": one.site, "wording": wording, "value": float(np.mean(gap)), "n": len(gap)})
    return pd.DataFrame(out)


def interactions(grid: PromptGrid, rows: Sequence[GridPrompt], values: np.ndarray) -> pd.DataFrame | None:
    """Differences of differences for each pair of tested factors and of their levels against the reference; None where no four
    matched prompts exist (one factor, or one factor at a time)."""
    import pandas as pd

    out = []
    for first, second in combinations(grid.tested, 2):
        where: dict[Set, dict[tuple[str, str], int]] = {}
        for i, row in enumerate(rows):
            where.setdefault(_set(row, first, second), {})[row.setting[first], row.setting[second]] = i
        a, *levels = grid.labels(first)
        c, *others = grid.labels(second)
        for b in levels:
            for d in others:
                full = [(s, at) for s, at in where.items() if all(k in at for k in ((a, c), (a, d), (b, c), (b, d)))]  # fmt: skip
                if not full:
                    continue
                gap = np.array([values[at[b, d]] - values[at[a, d]] - values[at[b, c]] + values[at[a, c]] for _, at in full])  # fmt: skip
                sets = [s for s, _ in full]
                rule = ClusterRule(grid.over or (tuple(f for f in grid.factors if f not in (first, second)) if len({s for s, _ in sets}) > 1 else ()))  # fmt: skip
                interval = mean_interval(gap, rule.of(sets))
                out.append({"first": f"{first}: {b or '(nothing)'}", "second": f"{second}: {d or '(nothing)'}", "value": float(gap.mean()),
                            "low": float(interval.low), "high": float(interval.high), "n": len(gap)})  # fmt: skip
    return pd.DataFrame(out) if out else None
