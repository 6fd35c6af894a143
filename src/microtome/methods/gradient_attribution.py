"""Attribution patching: the effect of every patch estimated from gradients, and the estimate's error measured.

Plain gradient times difference: Nanda 2023 (nodes), Syed et al. 2023 (edges). Integrated gradients: Sundararajan et al. 2017;
on the embedding as EAP-IG, Hanna et al. 2024. RelP: Jafari et al. 2025. AtP*: Kramar et al. 2024, its repair of queries and
keys (its GradDrop, which averages over runs without one layer's gradient, is left out: cancelling paths show in the
remainder). None of them stands alone: the strongest components and a sample of the others are patched exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from microtome.controls import checks
from microtome.controls.intervals import mean_interval
from microtome.controls.missed import (
    Missed,
    Sample,
    completeness_control,
    count_missed,
    draw_verified,
    missed_control,
    remainder_control,
    saturation_control,
    slope,
)
from microtome.controls.rank import rank_agreement, top_k_overlap
from microtome.controls.signflip import sign_flip
from microtome.errors import ControlError, TaskError
from microtome.methods.attributing import Attributed, Floats, attribute_edges, attribute_nodes
from microtome.methods.setting import Label, Mode, Setting, examples, same_question, setting, sites_of
from microtome.results.labelled import Labelled
from microtome.results.result import Result
from microtome.results.technique import technique
from microtome.results.verdicts import Control, verdict

if TYPE_CHECKING:
    import pandas as pd

    from microtome.controls.signflip import FamilyTest
    from microtome.facade import Model
    from microtome.tasks.pairs import PairTask

TOP = {"nodes": 16, "edges": 32}
"""Flagged components, at most a third of all."""
VERIFIED = {"nodes": 128, "edges": 128}
"""Other components verified, on average."""
ROUNDING = 1e-5
"""Effects of at most this share of the largest are rounding."""
MANDATORY = ("approximation", "missed")


@technique("attribution_patching", "3", controls=("sign_flip", "approximation", "missed", "remainder", "completeness", "saturation"), mandatory=MANDATORY,
           figure="microtome.figures.attribution:draw", random=True)  # fmt: skip
def attribution_patching(
    model: Model,
    task: PairTask,
    *,
    of: Literal["nodes", "edges"] = "nodes",
    how: Literal["gradient", "ig-inputs", "ig-activations", "relp", "atp*"] = "gradient",
    sites: str | Sequence[str] = ("L*H*.z", "L*.mlp_out"),
    positions: Sequence[Label] | Literal["all"] | None = "all",
    mode: Mode = "denoise",
    exact: Result | None = None,
    verify: int | None = None,
    alpha: float = 0.001,
    seed: int = 0,
) -> Result:
    """Estimate the effect of patching each node or edge, and certify the estimate's error.

    Parameters
    ----------
    of: "nodes" (addresses, `sites`) or "edges" (all edges writer -> reader of the residual computation; `sites` and
        `positions` do not apply).
    how: "gradient": one forward and backward. "ig-inputs", "ig-activations": gradients averaged between base and donor, over the
        embedding or over each layer's own outputs; steps double from 8 until the scores of the interpolated cut add up to
        the metric's change within 2 %, or 64 are reached. "relp": rules in place of the derivatives of MLPs and norms.
        "atp*": attention patterns recomputed for queries and keys.
    positions: "all": a site at all positions together; integers, spans or None as in `activation_patching`.
    mode: "denoise" patches clean activations into corrupt runs, "noise" the reverse.
    exact: activation patching of the same sites, mode and prompts with positions="all": then nothing is verified anew.
    verify: how many components beside the flagged ones are patched exactly, on average (default 128; a component's
        chance grows with the size of its difference and gradient). More make narrower limits.

    Returns a Result: effects [site, prompt, metric] or [site, position, prompt, metric], the estimate of patched minus base in
    the metric's unit (an edge's name is its site). Tables: cells (interval, null band, p), agreement (verified components:
    estimate, exact, chance, flagged), certificate (rank correlation, slope, missed, remainder, gap), saturation (per head); of edges also writers (the sum of each writer's
    edges beside its own estimate as a node).

    Raises
    ------
    TaskError: an unknown `of` or `how`; a metric whose gradient vanishes on a prompt; an `exact` result of another question.
    SiteError: addresses or positions that model or prompts lack; edges of a family without a graph.
    """
    if of not in TOP:
        raise TaskError(f"of={of!r} is neither nodes nor edges", why="a map is of one of them", instead='of="nodes" or of="edges"')  # fmt: skip
    if of == "edges" and (exact is not None or positions != "all"):
        raise TaskError("edges have no positions and no exact map", why="an edge joins two parts at all positions, and is verified here",
                        instead='of="edges" without exact= and positions=')  # fmt: skip
    if exact is not None and positions != "all":
        raise TaskError("an exact map has all positions together", why="it is compared cell by cell", instead='positions="all", or no exact=')  # fmt: skip
    if verify is not None and (isinstance(verify, bool) or not isinstance(verify, int) or verify < 1):
        raise TaskError(f"verify={verify!r}", why="it counts components that are patched exactly", instead="verify=128")  # fmt: skip
    s = setting(model, task, mode)
    known = None if exact is None else _known(s, exact)
    found = _estimate(s, of, how, sites, positions)
    certified = _certify(s, found, known, TOP[of], VERIFIED[of] if verify is None else verify, seed)
    return _result(s, found, certified, how, alpha, seed)


def _estimate(
    s: Setting, of: str, how: str, sites: str | Sequence[str], positions: Sequence[Label] | str | None
) -> Attributed:
    if of == "edges":
        return attribute_edges(s, how)
    return attribute_nodes(s, sites_of(s.model, sites), positions, how)


def _known(s: Setting, exact: Result) -> dict[str, Floats]:
    """Exact effects per site of a result of the same question."""
    if (
        exact.effects is None
        or exact.effects.dims != ("site", "prompt", "metric")
        or exact.effects.shape[1] != len(s.base)
    ):
        raise TaskError("the exact result is of another question", why="it must be [site, prompt, metric] on the same prompts",
                        instead='activation_patching(..., positions="all")')  # fmt: skip
    same_question(exact, s.model, s.task, "exact result")
    asked = {} if exact.query is None else exact.query.parameters
    if asked.get("mode", s.mode) != s.mode or exact.effects.coords["metric"][0] != s.metrics[0]:
        raise TaskError("the exact result is of another question", why="its mode or metric differs from this call's",
                        instead=f"activation_patching(..., mode={s.mode!r})")  # fmt: skip
    values = exact.effects.values[..., 0].astype(np.float64)
    return {str(site): values[i] for i, site in enumerate(exact.effects.coords["site"])}


@dataclass(frozen=True)
class _Certified:
    """What was verified, and what it says. flagged: the strongest estimates. Shapes: exact [verified, prompt]; joint, total [prompt]."""

    sample: Sample
    flagged: list[int]
    exact: Floats
    joint: Floats
    total: Floats
    missed: Missed | None


def _certify(
    s: Setting, found: Attributed, known: dict[str, Floats] | None, top: int, verify: int, seed: int
) -> _Certified:
    """Verify the strongest and a sample of the others: all that is known exactly, else by replay."""
    mean = found.estimate.mean(1)
    n = mean.size
    top = max(1, min(top, n // 3))
    sample = draw_verified(
        mean, found.weight, top=top, n=verify if known is None else n, seed=seed, boost=found.boost
    )
    flagged_all = sample.index[sample.flagged].tolist()
    if known is not None:
        index = np.array([i for i in sample.index if found.labels[i] in known], np.int64)
        flagged = np.isin(index, sample.index[sample.flagged])
        sample = Sample(index, np.ones(index.size), flagged, n, 1.0, float((~flagged).sum()))
    true = (
        found.exact(sample.index.tolist())
        if known is None
        else np.stack([known[found.labels[i]] for i in sample.index])
    )
    whole = known is None or sample.index.size == n
    missed = count_missed(mean, true.mean(1), sample, limit=top) if whole and sample.flagged.any() else None
    joint, total = found.joint(flagged_all)
    return _Certified(sample, flagged_all, true, joint, total, missed)


def _result(s: Setting, found: Attributed, c: _Certified, how: str, alpha: float, seed: int) -> Result:
    # rounding has the same sign on every prompt, which would make an effect of it
    real = np.where(_rounding(found.estimate)[:, None], 0.0, found.estimate)
    test = sign_flip(real, list(s.clusters), seed=seed, alpha=alpha) if len(set(s.clusters)) > 1 else None
    ran = [*_controls(s, found, c, how, seed),
           Control.not_run("sign_flip", "chance", "a small p", "one cluster") if test is None else checks.sign_flip_control(test)]  # fmt: skip
    p, least = (test.min_p, test.smallest_p) if test is not None else (None, None)
    dims = (*found.coords, "prompt", "metric")
    values = found.estimate.reshape(*found.shape, len(s.base), 1)
    coords: dict[str, tuple[Label, ...]] = {
        **found.coords,
        "prompt": tuple(range(len(s.base))),
        "metric": s.metrics[:1],
    }
    tables = {"agreement": _agreement(found, c), "cells": _cells(found, s, test), "certificate": _certificate(found, c, ran), "saturation": _saturation(found), **found.tables}  # fmt: skip
    return Result(
        "attribution_patching",
        effects=Labelled(values, dims, coords),
        tables={name: table for name, table in tables.items() if len(table)},
        controls=ran,
        verdict=verdict(ran, MANDATORY, p, alpha, least),
        raw_examples=examples(s.model, s.base, {}, seed),
    )


def _controls(s: Setting, found: Attributed, c: _Certified, how: str, seed: int) -> list[Control]:
    estimate = found.estimate[c.sample.index]
    if c.missed is None:
        missed = Control.not_run("missed", "that parts as strong as the flagged ones were not flagged", "few strong parts unflagged",
                                 "the exact result covers some of the sites only")  # fmt: skip
    else:
        missed = missed_control(c.missed, found.labels)
    inside = np.zeros(len(found.labels), bool)
    inside[c.flagged] = True
    rest = float(found.estimate.mean(1)[~inside].sum())
    return [
        _approximation(estimate, c.exact, s, seed),
        missed,
        remainder_control(c.joint, c.total, rest, list(s.clusters)),
        completeness_control(found.gap, found.steps),
        saturation_control(found.saturated.share, found.saturated.n, repaired=how == "atp*"),
    ]


def _approximation(estimate: Floats, true: Floats, s: Setting, seed: int) -> Control:
    k = max(1, min(10, len(true) // 3))
    # ranks among numbers that are nothing but rounding say nothing: they tie
    estimate, true = (np.where(_rounding(v)[:, None], 0.0, v) for v in (estimate, true))
    try:
        agreement = rank_agreement(estimate, true, list(s.clusters), seed=seed)
        return checks.approximation(agreement, top_k_overlap(estimate.mean(1), true.mean(1), k=k))
    except ControlError as error:
        return Control.not_run(
            "approximation",
            "that the approximation misses cells, or invents them",
            "the exact map's ranks",
            error.what,
        )


def _rounding(values: Floats) -> NDArray[np.bool_]:
    size = np.abs(values).max(1)
    return np.asarray(size <= ROUNDING * size.max())


def _agreement(found: Attributed, c: _Certified) -> pd.DataFrame:
    """Verified components: estimate and exact effect, their chance to be drawn, whether they were flagged."""
    import pandas as pd

    index = c.sample.index
    return pd.DataFrame({"site": [found.labels[i] for i in index], "estimate": found.estimate[index].mean(1), "exact": c.exact.mean(1),
                         "inclusion": c.sample.inclusion, "flagged": c.sample.flagged})  # fmt: skip


def _cells(found: Attributed, s: Setting, test: FamilyTest | None) -> pd.DataFrame:
    """Each estimate's interval, null band and family-wise p."""
    table = found.keys()
    interval, nan = mean_interval(found.estimate, list(s.clusters)), np.full(len(table), np.nan)
    table["metric"] = s.metrics[0]
    table["low"], table["high"] = interval.low, interval.high
    for name in ("null_low", "null_high", "p"):
        table[name] = nan if test is None else getattr(test, name)
    return table


def _certificate(found: Attributed, c: _Certified, ran: Sequence[Control]) -> pd.DataFrame:
    """The error certificate in numbers: one row per quantity."""
    import pandas as pd

    by_name = {control.name: control for control in ran}
    rows: list[dict[str, object]] = []

    def row(
        name: str, value: float, low: float = float("nan"), high: float = float("nan"), n: int = 0
    ) -> None:
        rows.append({"quantity": name, "value": float(value), "low": float(low), "high": float(high), "n": n})

    seen: Any = by_name["approximation"].observed
    verified = len(c.sample.index)
    if seen is not None:
        row("rank correlation", seen["correlation"], seen["low"], seen["high"], verified)
    row(
        "slope",
        slope(found.estimate[c.sample.index].mean(1), c.exact.mean(1), c.sample.inclusion),
        n=verified,
    )
    if c.missed is not None:
        m = c.missed
        row("missed", m.estimate, m.low, m.high, m.n_sampled)
        row("threshold", m.threshold)
        row("sample that would do", m.needed)
    seen = by_name["remainder"].observed
    if "share" in seen:
        row("share of the remainder", seen["share"], seen["low"], seen["high"], len(c.total))
    row("remainder", c.joint.mean(), n=len(c.total))
    row("whole change", c.total.mean(), n=len(c.total))
    row("completeness gap", found.gap, n=found.steps)
    row("gradient passes", found.passes)
    row("saturated attention", found.saturated.share, n=found.saturated.n)
    return pd.DataFrame(rows)


def _saturation(found: Attributed) -> pd.DataFrame:
    """Per head, the share of its queries whose attention lies above 0.99 on one token."""
    import pandas as pd

    layer, head = np.nonzero(np.isfinite(found.saturated.heads))
    return pd.DataFrame({"layer": layer, "head": head, "share": found.saturated.heads[layer, head]})
