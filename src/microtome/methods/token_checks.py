"""Controls of token attribution: nothing changes without a change, sums, orders, agreement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from microtome.controls import checks
from microtome.controls.intervals import mean_interval
from microtome.controls.missed import completeness_control
from microtome.controls.orders import OrderTest, permute_own
from microtome.methods.deletion import LEAST, RANDOM, Curves
from microtome.replay.plan import Cell, Change
from microtome.replay.sources import Prompts
from microtome.replay.sweep import Bench, Settings, sweep
from microtome.results import seeds
from microtome.results.verdicts import Control
from microtome.sites import At, parse

if TYPE_CHECKING:
    import pandas as pd

    from microtome.methods.token_gradients import Integrated

Floats = NDArray[np.float64]
SHUFFLES = 199
RULE_ALPHA = 0.05


def identity(bench: Bench, floor: float, places: Sequence[Sequence[int]]) -> Control:
    """A token replaced by itself, at every place, recomputed and not skipped."""
    spans = [dict(s) for s in bench.spans] or [{} for _ in bench.ids]
    for i, at in enumerate(places):
        spans[i] |= {f"same {k}": (p, p + 1) for k, p in enumerate((at[0], at[len(at) // 2], at[-1]))}
    cells = [Cell((Change(parse("embed"), At(span=f"same {k}"), "donor"),), f"same {k}") for k in range(3)]
    out = sweep(replace(bench, spans=spans), cells, {"donor": Prompts(bench.ids)}, Settings(skip=False))
    return checks.identity(out.effects.numpy(), floor)


def completeness(found: Integrated | None, tolerance: float) -> Control:
    """Integrated gradients add up to the metric's change; a failure makes them wrong, so it gates."""
    if found is None:
        return replace(
            completeness_control(float("nan"), 0), detail="integrated gradients were not asked for"
        )
    made = completeness_control(float(found.gap.max()), max(found.steps), tolerance)
    worst = int(found.gap.argmax())
    return replace(
        made,
        expected=f"the attributions add up to the metric's change from baseline to prompt, within {tolerance:.0%}",
        gates=True,
        detail=f"worst at prompt {worst}: {found.values[worst].sum():.4g} for a change of {found.change[worst]:.4g}",
    )


def random_orders(tests: Mapping[str, OrderTest], alpha: float) -> Control:
    """Removing tokens in the order of each way lowers the metric more than random orders do."""
    weak = [way for way, t in tests.items() if t.p > alpha]
    each = "; ".join(
        f"{way}: {t.own:.3g}, random {t.low:.3g} to {t.high:.3g}, p {t.p:.2g}" for way, t in tests.items()
    )
    lows, highs = min(t.low for t in tests.values()), max(t.high for t in tests.values())
    return Control("random_orders", "that any order of the tokens would do", f"removed in their order, tokens lower the metric more than in random orders, each way (p <= {alpha:g})",
                   {way: t.own for way, t in tests.items()}, not weak, len(tests), null=(lows, highs), detail=each)  # fmt: skip


def least_first(d: Curves, seed: int) -> Control:
    """Removing the least important tokens first must keep the metric up longer than random orders."""
    tests = {}
    for name in d.curves:
        if name.endswith(LEAST):
            tests[name.removesuffix(f", {LEAST}")] = permute_own(-d.area(name)[0], -d.area(RANDOM).T, seed=seed, name=name)  # fmt: skip
    weak = [way for way, t in tests.items() if t.p > RULE_ALPHA]
    return Control("least_first", "that only the top of the order means something", f"in reverse order the metric falls later than in random orders, each way (p <= {RULE_ALPHA:g})",
                   {way: -t.own for way, t in tests.items()}, not weak, len(tests), null=(-max(t.high for t in tests.values()), -min(t.low for t in tests.values())),
                   detail="; ".join(f"{way}: p {t.p:.2g}" for way, t in tests.items()))  # fmt: skip


def agreement(
    values: Mapping[str, Sequence[Floats]],
    places: Sequence[Sequence[int]],
    clusters: Sequence[str],
    seed: int,
) -> pd.DataFrame:
    """Spearman's rank correlation between ways, mean over prompts, beside that of positions shuffled within prompts."""
    import pandas as pd

    rows = []
    for first, second in combinations(values, 2):
        pairs = [(values[first][i][list(at)], values[second][i][list(at)]) for i, at in enumerate(places)]
        own = np.array([_rank(a, b) for a, b in pairs])
        rng = seeds.rng(seed, f"agreement/{first}/{second}")
        null = [float(np.mean([_rank(a, rng.permutation(b)) for a, b in pairs])) for _ in range(SHUFFLES)]
        interval = mean_interval(own, list(clusters))
        low, high = np.quantile(null, (0.025, 0.975))
        rows.append({"first": first, "second": second, "value": float(own.mean()), "low": float(interval.low), "high": float(interval.high),
                     "null_low": float(low), "null_high": float(high), "n": len(own)})  # fmt: skip
    return pd.DataFrame(rows)


def _rank(a: Floats, b: Floats) -> float:
    """0 where one side is constant: it ranks nothing."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(spearmanr(a, b).statistic)


def agrees(table: pd.DataFrame) -> Control:
    """The ways rank tokens alike, more than by chance."""
    rules_out, expected = (
        "that the attribution is the method's, not the model's",
        "every two ways rank tokens alike, above shuffled positions",
    )
    if not len(table):
        return Control.not_run("agreement", rules_out, expected, "one way was asked for")
    above = bool((table["value"] > table["null_high"]).all())
    seen = {f"{a} and {b}": float(v) for a, b, v in zip(table["first"], table["second"], table["value"], strict=True)}  # fmt: skip
    return Control("agreement", rules_out, expected, seen, above, int(table["n"].iloc[0]),
                   null=(float(table["null_low"].min()), float(table["null_high"].max())))  # fmt: skip
