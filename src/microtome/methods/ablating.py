"""Ablation with a named reference distribution, on the task and, the same, off it.

The control that matters: a component that every text needs (the first MLP of most models) is not a finding about a
task. Mean (Wang et al. 2023) and resample ablation (Chan et al. 2022) stay on the distribution; zero ablation does not,
and says so. Later parts may make up for a missing one (McGrath et al. 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from microtome.controls import checks
from microtome.controls.intervals import mean_interval
from microtome.controls.signflip import sign_flip
from microtome.errors import TaskError
from microtome.methods.donors import noise_floor
from microtome.methods.setting import Setting, cell, examples, setting, settings, sites_of
from microtome.metrics import metric, scoring
from microtome.replay.sources import Prompts, Reference, SourceSpec, Zero
from microtome.replay.sweep import Bench, Outcome, sweep
from microtome.results.labelled import Labelled
from microtome.results.result import Result
from microtome.results.technique import technique
from microtome.results.verdicts import Control, verdict
from microtome.tasks.alignment import match
from microtome.tasks.pairs import join

if TYPE_CHECKING:
    import pandas as pd

    from microtome.facade import Model
    from microtome.sites import Site
    from microtome.tasks.pairs import PairTask, Side

By = Literal["zero", "mean", "resample"]
CHOSEN = 4
KL = "KL at the last position, nats"


@technique("ablation", "2", controls=("identity", "receipts", "sign_flip", "off_task"), mandatory=("identity", "receipts", "off_task"),
           figure="microtome.figures.ablation:draw", random=True)  # fmt: skip
def ablation(
    model: Model,
    task: PairTask,
    *,
    sites: str | Sequence[str] = ("L*H*.z", "L*.mlp_out"),
    by: By = "mean",
    reference: int = 64,
    off_task: Side | None = None,
    metrics: Sequence[str] = (),
    alpha: float = 0.001,
    seed: int = 0,
) -> Result:
    """Replace each site at every position of the clean prompts, one at a time.

    Parameters
    ----------
    by: "zero", "mean" or "resample" over `reference` prompts of the task's own reference distribution, position by
        position among prompts of the same length and spans.
    off_task: ordinary text on which the strongest significant sites are ablated the same way (there the reference is the off-task
        text itself); without it the control does not run and the result is unchecked.

    Returns a Result: effects [site, prompt, metric], ablated minus whole, metric units; table "off_task" compares the
    same quantity, KL at the last position, on and off the task.

    Raises
    ------
    TaskError: no reference prompts for mean or resample.
    """
    s = setting(model, task, "noise", metrics)
    named = sites_of(model, sites)
    source = _source(task, s, by, reference, seed)
    out = sweep(s.bench, [cell(site, None, by) for site in named], {by: source}, settings("ablating"))
    first = out.effects[..., 0].numpy().astype(np.float64)
    test = sign_flip(first, list(s.clusters), seed=seed, alpha=alpha) if len(set(s.clusters)) > 1 else None
    order = np.argsort(-np.abs(first.mean(1)), kind="stable").tolist()
    strong = [i for i in order if test is not None and test.significant[i]] or order[:1]
    chosen = [named[i] for i in strong[:CHOSEN]]
    ran = [checks.receipts({"sweep": out.fired}, {"sweep": out.planned}), _identity(s, chosen)]
    ran.append(
        checks.sign_flip_control(test)
        if test is not None
        else Control.not_run("sign_flip", "chance", "a small p", "one cluster")
    )
    control, table = _off_task(model, s, chosen, by, source, off_task, seed)
    ran.append(control)
    p, least = (test.min_p, test.smallest_p) if test is not None else (None, None)
    return Result(
        "ablation", effects=_labelled(out, named, s), tables={"cells": _cells(named, first, s, test), **({"off_task": table} if len(table) else {})},
        tensors={"base": out.base.numpy()}, controls=ran, verdict=verdict(ran, ("identity", "receipts", "off_task"), p, alpha, least),
        raw_examples=examples(model, s.base, {i: {"base": float(out.base[i, 0])} for i in range(task.n)}, seed),
    )  # fmt: skip


def _source(task: PairTask, s: Setting, by: By, reference: int, seed: int) -> SourceSpec:
    if by == "zero":
        return Zero()
    if by not in ("mean", "resample"):
        raise TaskError(
            f"by={by!r} is not an ablation",
            why="an ablation needs a reference",
            instead='"zero", "mean" or "resample"',
        )
    others = task.reference(reference, seed)
    try:
        fits = match(s.base, others)
    except TaskError:  # a layout without a reference prompt: the prompts themselves stand in
        others = join(others, s.base)
        fits = match(s.base, others)
    return Reference(others.ids, by, seed, fits)


def _identity(s: Setting, chosen: list[Site]) -> Control:
    bench = replace(s.bench, metrics=s.bench.metrics[:1])
    out = sweep(
        bench,
        [cell(site, None) for site in chosen],
        {"donor": Prompts(s.base.ids)},
        replace(settings(), skip=False),
    )
    return checks.identity(out.effects.numpy(), noise_floor(s))


def _off_task(
    model: Model, s: Setting, chosen: list[Site], by: By, source: SourceSpec, other: Side | None, seed: int
) -> tuple[Control, pd.DataFrame]:
    import pandas as pd

    rules_out, expected = (
        "that the components matter for every text, not for this task",
        "more damage on the task than off it",
    )
    if other is None:
        return Control.not_run(
            "off_task", rules_out, expected, "no off-task text was given (off_task=)"
        ), pd.DataFrame()
    kl = (metric("kl"),)
    on_bench = replace(s.bench, metrics=kl)
    ids = [r[: min(len(x) for x in other.ids)] for r in other.ids]
    last = tuple((((0,),), ((1,),)) for _ in ids)
    off_bench = Bench(model.binding, ids, scoring([a for a, _ in last], [w for _, w in last]), kl)
    off_source = source if by == "zero" else Reference(ids, by, seed)
    cells = [cell(site, None, by) for site in chosen]
    on = sweep(on_bench, cells, {by: source}).effects[..., 0].numpy()
    off = sweep(off_bench, cells, {by: off_source}).effects[..., 0].numpy()
    table = pd.DataFrame({"site": [str(x) for x in chosen], "on": on.mean(1), "off": off.mean(1)})
    every = [
        checks.off_task(
            checks.Damage(np.maximum(here.astype(np.float64), 0), list(s.clusters), KL),
            checks.Damage(np.maximum(there.astype(np.float64), 0), list(range(len(ids))), KL),
        )
        for here, there in zip(on, off, strict=True)
    ]
    failed = [str(site) for site, one in zip(chosen, every, strict=True) if not one.passed]
    return replace(
        every[0],
        expected=f"{every[0].expected}, at each of the {len(chosen)} strongest sites",
        observed={str(site): one.observed for site, one in zip(chosen, every, strict=True)},
        passed=not failed,
        n=sum(one.n for one in every),
        detail="; ".join(f"{site}: {one.detail}" for site, one in zip(chosen, every, strict=True)),
    ), table


def _labelled(out: Outcome, named: list[Site], s: Setting) -> Labelled:
    coords: dict[str, tuple[str | int, ...]] = {
        "site": tuple(map(str, named)),
        "prompt": tuple(range(out.effects.shape[1])),
        "metric": s.metrics,
    }
    return Labelled(out.effects.numpy(), ("site", "prompt", "metric"), coords)


def _cells(named: list[Site], first: np.ndarray, s: Setting, test: object) -> pd.DataFrame:
    import pandas as pd

    interval = mean_interval(first, list(s.clusters))
    nan = np.full(len(named), np.nan)
    return pd.DataFrame({"site": [str(x) for x in named], "metric": s.metrics[0], "low": interval.low, "high": interval.high,
                         "null_low": getattr(test, "null_low", nan), "null_high": getattr(test, "null_high", nan), "p": getattr(test, "p", nan)})  # fmt: skip
