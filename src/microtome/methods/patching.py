"""Activation patching (causal tracing, interchange intervention), exact, with its controls.

Method: Meng et al. 2022 (causal tracing), Wang et al. 2023 (IOI), Heimersheim & Nanda 2024 (denoising and noising,
logit difference, symmetric token replacement).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from microtome.controls import checks
from microtome.controls.intervals import mean_interval
from microtome.controls.multiple import retest
from microtome.controls.ratio import normalised_effect
from microtome.controls.sampling import Strata, stratified_sample
from microtome.controls.signflip import FamilyTest, sign_flip
from microtome.errors import ControlError
from microtome.methods import donors
from microtome.methods.setting import (
    REST,
    Column,
    Label,
    Mode,
    Setting,
    cell,
    columns,
    common,
    examples,
    setting,
    settings,
    shares,
    sites_of,
    split_by,
)
from microtome.replay.sources import Prompts
from microtome.replay.sweep import Outcome, layer_tokens, measure, sweep
from microtome.results.labelled import Labelled
from microtome.results.result import Result
from microtome.results.technique import technique
from microtome.results.verdicts import Control, verdict
from microtome.sites import Site

if TYPE_CHECKING:
    import pandas as pd

    from microtome.facade import Model
    from microtome.tasks.pairs import PairTask

CHOSEN, LEAST_CHOSEN = 4, 3
SAMPLE, LEAST_SAMPLE = 32, 4
SHARE = 0.3
MANDATORY = ("identity", "receipts", "noise", "same_value", "irrelevant")
IF_RUN = ("value_matters",)
"""Mandatory where the task can give it: a variable of two values has no third."""


@technique("activation_patching", "2", controls=("identity", "receipts", "sign_flip", "same_value", "irrelevant", "other_cells", "value_matters", "wrong_value", "noise", "held_out"),
           mandatory=MANDATORY, figure="microtome.figures.patching:draw", random=True)  # fmt: skip
def activation_patching(
    model: Model,
    task: PairTask,
    *,
    sites: str | Sequence[str] = "L*.resid_pre",
    positions: Sequence[Label] | Literal["all"] | None = None,
    mode: Mode = "denoise",
    metrics: Sequence[str] = (),
    held_out: PairTask | None = None,
    controls: Literal["default", "full", "none"] = "default",
    alpha: float = 0.001,
    seed: int = 0,
) -> Result:
    """Patch every site at every position (or span) from the donor run into the base run.

    Parameters
    ----------
    sites: addresses without position; one row of the map each.
    positions: integers (aligned prompts) or spans; None chooses: every position where prompts are aligned, the held-out
        ones too, else every common span and the rest. "all" patches a site at all positions together.
    mode: "denoise" patches clean activations into corrupt runs (is it sufficient?), "noise" the reverse (necessary?).
    metrics: names; the first decides tests and controls. Default: the task's own.
    held_out: pairs that share no template (or entity) with `task`; the chosen cells are tested again on them (Holm).
        Once given, this test is mandatory.
    controls: "default" runs forward-based controls on the strongest cells (the best of each position first) and a
        random sample of 32 others, at most 30 % of the sweep's cost but never fewer than three and four; "full" on every cell that is significant and on
        all the others; "none" on nothing, and the verdict says so.
    alpha: family-wise level.

    Returns a Result: effects [site, position, prompt, metric], patched minus base in the metric's unit. Tables: cells
    (interval, null band, p), normalised (mean(patched - base) / mean(donor - base); absent where the interval of the
    denominator contains 0), positions, donors (on the chosen cells), other_cells.

    Raises
    ------
    SiteError, TaskError: addresses or positions that this model or these prompts lack.
    Interrupted: on Ctrl-C, with the finished part as `.outcome`.
    """
    s = setting(model, task, mode, metrics)
    named = sites_of(model, sites)
    if positions is None and held_out is not None and _elsewhere(task, held_out, [0]):
        positions = [*common(s.base), REST]  # a position by number could not be tested again
    found, s = ([None], s) if positions == "all" else columns(s, positions)
    cells = [(site, column) for site in named for column in found]
    out = sweep(s.bench, [cell(*c) for c in cells], {"donor": Prompts(s.donor.ids)}, settings("patching"))
    total = (measure(s.donor_bench()) - out.base).numpy().astype(np.float64)
    first = out.effects[..., 0].numpy().astype(np.float64)
    zero: np.ndarray = np.asarray(out.zero.numpy().all(1))
    test = _family(first, zero, s, alpha, seed)
    chosen = _choose(s, cells, first, zero, test, total[:, 0], controls, seed)
    ran = _controls(s, chosen, out, test, controls, seed)
    ran.append(_held_out(model, held_out, task, chosen, mode, s, alpha))
    p, least = (test.min_p, test.smallest_p) if test is not None else (None, None)
    tables = {"cells": _cells(cells, first, s, test), "normalised": _normalised(cells, first, total[:, 0], s),
              "positions": _positions(found), **donors.tables(chosen, s)}  # fmt: skip
    shape = (len(named), len(found))
    return Result(
        "activation_patching",
        effects=_labelled(out, named, found, s),
        tables={k: v for k, v in tables.items() if len(v)},
        tensors={
            "structurally_zero": zero.reshape(shape),
            "base": out.base.numpy(),
            "total": total.astype(np.float32),
        },
        controls=ran,
        verdict=verdict(ran, _mandatory(ran, held_out is not None), p, alpha, least),
        raw_examples=examples(
            model,
            s.base,
            {
                i: {"donor": s.donor.texts[i], "base": float(out.base[i, 0]), "total": float(total[i, 0])}
                for i in range(task.n)
            },
            seed,
        ),
    )


def _family(first: np.ndarray, zero: np.ndarray, s: Setting, alpha: float, seed: int) -> FamilyTest | None:
    """Sign-flip of clusters over all cells that are not structurally zero; None when there is no such cell."""
    if zero.all() or len(s.clusters) < 2:
        return None
    return sign_flip(first, list(s.clusters), seed=seed, structurally_zero=zero, alpha=alpha)


def _mandatory(ran: Sequence[Control], held_out: bool) -> tuple[str, ...]:
    also = [c.name for c in ran if c.name in IF_RUN and c.passed is not None]
    return (*MANDATORY, *also, *(["held_out"] if held_out else []))


def _choose(s: Setting, cells: list[tuple[Site, Column | None]], first: np.ndarray, zero: np.ndarray, test: FamilyTest | None, total: np.ndarray,
            controls: str, seed: int) -> donors.Chosen:  # fmt: skip
    """The strongest cells and a stratified sample of the others, within the controls' share of the sweep's cost."""
    live = np.flatnonzero(~zero)
    significant = np.zeros(len(cells), bool) if test is None else test.significant
    order = _order(cells, np.abs(first.mean(1)), significant, live)
    order = [i for i in order if significant[i]] or order[:1]  # a cell of chance has nothing to reproduce
    if controls == "full":
        pick = order
        rest = [i for i in live.tolist() if i not in set(pick)]
    else:
        pick, rest = _afford(s, cells, order, live, seed)
    return donors.Chosen([cells[i] for i in pick], first[pick], total, [_name(*cells[i]) for i in pick],
                         [cells[i] for i in rest], [_name(*cells[i]) for i in rest])  # fmt: skip


def _order(
    cells: list[tuple[Site, Column | None]], size: np.ndarray, significant: np.ndarray, live: np.ndarray
) -> list[int]:
    """Live cells: the best of each position first, since neighbours in one column carry the same thing."""
    strongest = sorted(live.tolist(), key=lambda i: (not significant[i], -size[i]))
    seen: set[object] = set()
    best = []
    for i in strongest:
        column = cells[i][1]
        if column is not None and significant[i] and column.label not in seen:
            seen.add(column.label)
            best.append(i)
    return best + [i for i in strongest if i not in set(best)]


def _afford(
    s: Setting, cells: list[tuple[Site, Column | None]], order: list[int], live: np.ndarray, seed: int
) -> tuple[list[int], list[int]]:
    """(chosen, sample) at most SHARE of what the sweep costs, in tokens times layers, but for a few of each.

    One cell at an early layer can cost more than the share: controls on it alone would say little about the others.
    """
    bench = replace(s.bench, metrics=s.bench.metrics[:1])

    def cost(which: Sequence[int]) -> int:
        return layer_tokens(bench, [cell(*cells[i]) for i in which])

    left = SHARE * layer_tokens(
        bench, [cell(*cells[i]) for i in live.tolist()], {"donor": Prompts(s.donor.ids)}
    )
    pick: list[int] = []
    for i in order[:CHOSEN]:
        price = donors.RUNS * cost([i])
        if price > left and len(pick) >= LEAST_CHOSEN:
            break
        left -= price
        pick.append(i)
    rest = [i for i in live.tolist() if i not in set(pick)]
    left = max(left, 0.0)
    if not rest or not pick:
        return pick, []
    layers = [
        len(s.model.binding.slots) - 1 if not isinstance(site.layer, int) else site.layer for site, _ in cells
    ]
    strata = Strata.of(layers, [site.point for site, _ in cells], len(s.model.binding.slots))
    outside = [i for i in range(len(cells)) if i not in set(rest)]
    sample = stratified_sample(strata, outside, seed=seed, n=SAMPLE).tolist()
    each = donors.RUNS_ELSEWHERE * cost(sample) / len(sample)
    count = min(len(sample), max(LEAST_SAMPLE, int(left / each))) if each else 0
    return pick, stratified_sample(strata, outside, seed=seed, n=count).tolist() if count else []


def _name(site: Site, column: Column | None) -> str:
    return str(site) if column is None else f"{site}@{column.label}"


def _controls(
    s: Setting, chosen: donors.Chosen, out: Outcome, test: FamilyTest | None, controls: str, seed: int
) -> list[Control]:
    ran = [
        checks.receipts({"sweep": out.fired}, {"sweep": out.planned})
        if out.planned
        else checks.receipts({}, {})
    ]
    if test is not None:
        ran.append(checks.sign_flip_control(test))
    else:
        ran.append(Control.not_run("sign_flip", "that the best cell of a large map looks good by chance", "a small family-wise p",
                                   "every cell is structurally zero, or there is one prompt"))  # fmt: skip
    if controls == "none" or not chosen.cells or s.task.n < 2:
        why = "controls='none'" if controls == "none" else "no cell can differ, or there is one prompt"
        also = [name for names in donors.ALSO.values() for name in names]
        return ran + [donors.not_run(name, why) for name in ("identity", *donors.DONORS, *also, "noise")]
    ran.append(donors.identity(s, chosen, donors.noise_floor(s)))
    ran += donors.other_donors(s, chosen, seed)
    ran.append(donors.noise(s, chosen, seed))
    return ran


def _held_out(
    model: Model,
    other: PairTask | None,
    task: PairTask,
    chosen: donors.Chosen,
    mode: Mode,
    s: Setting,
    alpha: float,
) -> Control:
    rules_out, expected = (
        "that the cells were selected for the noise of the prompts that selected them",
        "the effect again, same sign, on held-out prompts (Holm)",
    )
    if other is None or not chosen.cells:
        return Control.not_run("held_out", rules_out, expected, "no held-out prompts were given")
    if leak := shares(task, other):
        return Control.not_run("held_out", rules_out, expected, leak)
    labels = [c.label for _, c in chosen.cells if c is not None]
    if problem := _elsewhere(task, other, labels):
        return Control.not_run("held_out", rules_out, expected, problem)
    h = setting(model, other, mode, s.metrics)
    found, h = columns(h, list(dict.fromkeys(labels))) if labels else ([], h)
    by_label = {c.label: c for c in found}
    again = [cell(site, None if c is None else by_label[c.label]) for site, c in chosen.cells]
    out = sweep(replace(h.bench, metrics=h.bench.metrics[:1]), again, {"donor": Prompts(h.donor.ids)})
    signs = np.sign(chosen.real.mean(1))
    if (signs == 0).any():
        return Control.not_run(
            "held_out", rules_out, expected, "a chosen cell has no effect at all, so no sign to find again"
        )
    by = split_by(other)
    try:
        result = retest(
            out.effects[..., 0].numpy(),
            _labels(other, by),
            selected_on=_labels(task, by),
            selected_sign=signs,
            split=by,
            alpha=alpha,
        )
    except ControlError as error:
        return Control.not_run("held_out", rules_out, expected, error.what)
    return checks.held_out(result, cells=chosen.names)


def _elsewhere(task: PairTask, other: PairTask, labels: Sequence[Label]) -> str:
    """Why these columns are not the same places in the held-out pairs; "" where they are."""
    numbers = [label for label in labels if isinstance(label, int) and label >= 0]
    layouts = {(n, *(row[i] for row in t.clean.spans.values())) for t in (task, other) for i, n in enumerate(t.clean.lengths)}  # fmt: skip
    if numbers and (len(layouts) > 1 or set(task.spans) != set(other.spans)):
        return f"position {numbers[0]} is another place in the held-out pairs: they are not aligned with those explored"
    spans = [label for label in labels if isinstance(label, str) and label != REST]
    absent = [name for name in spans if any(row is None for row in other.spans.get(name, (None,)))]
    return f'a held-out pair has no span "{absent[0]}"' if absent else ""


def _labels(task: PairTask, by: str) -> list[str]:
    return list(task.groups.get(by) or ("".join(map(str, ids)) for ids in task.clean.ids))


def _labelled(out: Outcome, named: list[Site], found: list[Column] | list[None], s: Setting) -> Labelled:
    n, m = out.effects.shape[1:]
    values = out.effects.numpy()
    coords: dict[str, tuple[Label, ...]] = {
        "site": tuple(map(str, named)),
        "prompt": tuple(range(n)),
        "metric": s.metrics,
    }
    if found == [None]:
        return Labelled(values.reshape(len(named), n, m), ("site", "prompt", "metric"), coords)
    coords["position"] = tuple(c.label for c in found if c is not None)
    return Labelled(
        values.reshape(len(named), len(found), n, m), ("site", "position", "prompt", "metric"), coords
    )


def _cells(
    cells: list[tuple[Site, Column | None]], first: np.ndarray, s: Setting, test: FamilyTest | None
) -> pd.DataFrame:
    import pandas as pd

    interval = mean_interval(first, list(s.clusters))
    nan = np.full(len(cells), np.nan)
    band = (nan, nan, nan) if test is None else (test.null_low, test.null_high, test.p)
    table = pd.DataFrame({"site": [str(site) for site, _ in cells], "metric": s.metrics[0], "low": interval.low, "high": interval.high,
                          "null_low": band[0], "null_high": band[1], "p": band[2]})  # fmt: skip
    if cells[0][1] is not None:
        table.insert(1, "position", [c.label for _, c in cells if c is not None])
    return table


def _normalised(
    cells: list[tuple[Site, Column | None]], first: np.ndarray, total: np.ndarray, s: Setting
) -> pd.DataFrame:
    """Empty where the denominator's interval contains 0: a share of nothing is refused."""
    import pandas as pd

    try:
        ratio = normalised_effect(first, total, list(s.clusters))
    except ControlError:
        return pd.DataFrame()
    table = pd.DataFrame(
        {
            "site": [str(site) for site, _ in cells],
            "metric": s.metrics[0],
            "value": ratio.estimate,
            "low": ratio.low,
            "high": ratio.high,
        }
    )
    if cells[0][1] is not None:
        table.insert(1, "position", [c.label for _, c in cells if c is not None])
    return table


def _positions(found: Sequence[Column | None]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame([{"position": str(c.label), "label": c.text} for c in found if c is not None])
