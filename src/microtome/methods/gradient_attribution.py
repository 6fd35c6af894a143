"""Attribution patching: gradient times difference, a first-order estimate of every node at once.

Nanda 2023; Syed et al. 2023. It misses saturated attention and cancelling paths, so it never stands alone: the exact
effects of its strongest nodes and of a random sample are its error certificate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import Tensor

from microtome.controls import checks
from microtome.controls.intervals import mean_interval
from microtome.controls.rank import rank_agreement, top_k_overlap
from microtome.controls.sampling import Strata, stratified_sample
from microtome.controls.signflip import sign_flip
from microtome.errors import ControlError, TaskError
from microtome.methods.setting import (
    Mode,
    Setting,
    cell,
    examples,
    same_question,
    setting,
    settings,
    sites_of,
)
from microtome.metrics import Scoring
from microtome.replay.sources import Prompts
from microtome.replay.sweep import sweep
from microtome.results.labelled import Labelled
from microtome.results.result import Result
from microtome.results.technique import progress, technique
from microtome.results.verdicts import Control, verdict
from microtome.sites import Site

if TYPE_CHECKING:
    import pandas as pd

    from microtome.controls.signflip import FamilyTest
    from microtome.facade import Model
    from microtome.tasks.pairs import PairTask

VERIFIED_TOP, VERIFIED_RANDOM = 16, 32


@technique("attribution_patching", "1", controls=("sign_flip", "approximation"), mandatory=("approximation",),
           figure="microtome.figures.attribution:draw", random=True)  # fmt: skip
def attribution_patching(
    model: Model,
    task: PairTask,
    *,
    of: Literal["nodes"] = "nodes",
    sites: str | Sequence[str] = ("L*H*.z", "L*.mlp_out"),
    mode: Mode = "denoise",
    exact: Result | None = None,
    alpha: float = 0.001,
    seed: int = 0,
) -> Result:
    """Estimate the effect of patching each site at all positions together: one forward and one backward.

    Effects: [site, prompt, metric], the estimate of patched minus base, metric units. The certificate compares it with
    exact effects: those of `exact` (activation patching of the same sites, mode and prompts with positions="all"), else
    of the 16 strongest nodes and a stratified random sample of 32 others, replayed here.

    Raises
    ------
    TaskError, ResultError: of="edges" (a later release), or an `exact` result of another question.
    """
    if of != "nodes":
        raise TaskError(
            f"of={of!r} is not available yet",
            why="edges need the graph of the residual computation",
            instead='of="nodes"',
        )
    s = setting(model, task, mode)
    named = sites_of(model, sites)
    estimate = _estimate(model, s, named)
    names = [str(x) for x in named]
    which, true = _exact(s, named, estimate, exact, seed)
    control = _certificate(estimate[which], true, s, seed)
    test = sign_flip(estimate, list(s.clusters), seed=seed, alpha=alpha) if len(set(s.clusters)) > 1 else None
    ran = [
        control,
        checks.sign_flip_control(test)
        if test is not None
        else Control.not_run("sign_flip", "chance", "a small p", "one cluster"),
    ]
    p, least = (test.min_p, test.smallest_p) if test is not None else (None, None)
    import pandas as pd

    agreement = pd.DataFrame(
        {"site": [names[i] for i in which], "estimate": estimate[which].mean(1), "exact": true.mean(1)}
    )
    return Result(
        "attribution_patching",
        effects=Labelled(estimate[..., None], ("site", "prompt", "metric"), {"site": tuple(names), "prompt": tuple(range(task.n)), "metric": s.metrics[:1]}),
        tables={"agreement": agreement, "cells": _cells(names, estimate, s, test)}, controls=ran, verdict=verdict(ran, ("approximation",), p, alpha, least),
        raw_examples=examples(model, s.base, {}, seed),
    )  # fmt: skip


def _cells(names: list[str], estimate: np.ndarray, s: Setting, test: FamilyTest | None) -> pd.DataFrame:
    """Each estimate's interval, null band and family-wise p."""
    import pandas as pd

    interval, nan = mean_interval(estimate, list(s.clusters)), np.full(len(names), np.nan)
    return pd.DataFrame({"site": names, "metric": s.metrics[0], "low": interval.low, "high": interval.high,
                         "null_low": nan if test is None else test.null_low, "null_high": nan if test is None else test.null_high,
                         "p": nan if test is None else test.p})  # fmt: skip


def _estimate(model: Model, s: Setting, named: list[Site]) -> np.ndarray:
    """sum over positions of gradient . (donor - base). Shapes: [site, prompt]."""
    points = list(dict.fromkeys(str(x.whole) for x in named))
    out = np.zeros((len(named), len(s.base)))
    lengths: dict[int, list[int]] = {}
    for i, ids in enumerate(s.base.ids):
        lengths.setdefault(len(ids), []).append(i)
    for done, rows in enumerate(lengths.values(), 1):
        plan = s.bench.scoring.select(rows)
        if plan.steps != 1:
            raise TaskError(
                "attribution patching needs single-position metrics",
                why="its gradient reads one forward",
                instead="use activation patching",
            )
        donor = model.run([list(s.donor.ids[i]) for i in rows], points, logits=None)
        base = model.run([list(s.base.ids[i]) for i in rows], points, logits=None)
        grad = model.grad([list(s.base.ids[i]) for i in rows], _metric(s, plan), points)
        for k, site in enumerate(named):
            key = str(site.whole)
            product = grad[key] * (donor[key] - base[key])
            if isinstance(site.index, int):
                product = product[:, :, site.index]
            out[k, rows] = product.reshape(len(rows), -1).double().sum(-1).cpu().numpy()
        progress(done, len(lengths), "groups", "attributing")
    return out


def _metric(s: Setting, plan: Scoring) -> Callable[[Tensor], Tensor]:
    def fn(logits: Tensor) -> Tensor:
        return s.bench.metrics[0](logits[:, -1:], plan)

    return fn


def _exact(
    s: Setting, named: list[Site], estimate: np.ndarray, exact: Result | None, seed: int
) -> tuple[list[int], np.ndarray]:
    if exact is not None:
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
        place = {label: i for i, label in enumerate(exact.effects.coords["site"])}
        which = [i for i, site in enumerate(named) if str(site) in place]
        return which, exact.effects.values[[place[str(named[i])] for i in which], :, 0].astype(np.float64)
    size = np.abs(estimate.mean(1))
    top = np.argsort(-size, kind="stable")[:VERIFIED_TOP].tolist()
    layers = [site.layer if isinstance(site.layer, int) else 0 for site in named]
    strata = Strata.of(layers, [site.point for site in named], len(s.model.binding.slots))
    rest = (
        stratified_sample(strata, top, seed=seed, n=VERIFIED_RANDOM).tolist() if len(named) > len(top) else []
    )
    which = sorted({*top, *rest})
    out = sweep(
        s.bench, [cell(named[i], None) for i in which], {"donor": Prompts(s.donor.ids)}, settings("verifying")
    )
    return which, out.effects[..., 0].numpy().astype(np.float64)


def _certificate(estimate: np.ndarray, true: np.ndarray, s: Setting, seed: int) -> Control:
    k = max(1, min(10, len(true) // 3))
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
