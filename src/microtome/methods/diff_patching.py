"""Cross-model patching: the activations of one model put into the other on the same prompts, place by place.

Where two models behave differently, a place whose activation alone carries the difference over locates it (Prakash et al. 2024,
arXiv 2402.14811). Exact, by the replay engine; the donor is the other model, so the prompts need no counterfactual.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from microtome.controls import checks
from microtome.controls.intervals import mean_interval
from microtome.controls.ratio import normalised_effect
from microtome.controls.signflip import FamilyTest, sign_flip
from microtome.errors import ControlError, ModelError
from microtome.methods.diff_tokens import check_level, comparable
from microtome.methods.diff_weights import WeightDiff, weight_diff
from microtome.methods.donors import noise_floor
from microtome.methods.headlines import headlined
from microtome.methods.setting import (
    Column,
    Label,
    Setting,
    cell,
    columns,
    examples,
    setting,
    settings,
    sites_of,
)
from microtome.model.binding import Binding, bind
from microtome.model.copies import copy_of, put, tensors_of
from microtome.model.noise import RandomChange, fitting
from microtome.replay.memo import Memo
from microtome.replay.sources import OtherModel, Prompts
from microtome.replay.sweep import Outcome, Settings, measure, sweep
from microtome.results import seeds
from microtome.results.labelled import Labelled
from microtome.results.result import Result
from microtome.results.technique import technique
from microtome.results.verdicts import Control, verdict
from microtome.sites import Site

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from microtome.facade import Model
    from microtome.tasks.pairs import PairTask

CHOSEN, DRAWS = 6, 4
MANDATORY = ("identity", "receipts", "behaviour_differs", "noise_models")
Cells = list[tuple[Site, Column | None]]


@technique("cross_model_patching", "1", controls=(*MANDATORY, "sign_flip", "whole", "unrelated"), mandatory=MANDATORY,
           figure="microtome.figures.cross_patching:draw", random=True)  # fmt: skip
def cross_model_patching(
    a: Model,
    b: Model,
    task: PairTask,
    *,
    sites: str | Sequence[str] = "L*.resid_post",
    positions: Sequence[Label] | Literal["all"] | None = None,
    into: Literal["first", "second"] = "first",
    unrelated: Model | None = None,
    alpha: float = 0.001,
    seed: int = 0,
) -> Result:
    """Patch the other model's activation into one model's run of the task's clean prompts, one place at a time.

    Parameters
    ----------
    a, b: two models of one architecture and tokenizer. into: which of them is run; the other is the donor.
    task: prompts on which they behave differently, with the answers that tell; only its clean side is run.
    sites, positions: as in `activation_patching`.
    unrelated: another fine-tune of the same size, a donor that should do less.

    Returns a Result: effects [site, position, prompt, metric], patched minus unpatched in the metric's unit; table "normalised":
    over the other model's metric minus this one's (absent where its interval holds 0).

    Raises
    ------
    ModelError: models that cannot be compared site by site.
    SiteError, TaskError: places that the model or the prompts lack.
    """
    if into not in ("first", "second"):
        raise ModelError(f"into={into!r} is neither model", why="one is run, the other gives", instead='"first" or "second"')  # fmt: skip
    check_level(comparable(a, b, task.clean.texts), "sites")
    weights = weight_diff(a, b)
    base, donor = (a, b) if into == "first" else (b, a)
    s = setting(base, task, "noise")
    found, s = ([None], s) if positions == "all" else columns(s, positions)
    named = sites_of(base, sites)
    cells: Cells = [(site, column) for site in named for column in found]
    live = [_reached(site, weights) for site, _ in cells]
    out = _sweep(s, [c for c, alive in zip(cells, live, strict=True) if alive], donor.binding)
    first = np.zeros((len(cells), task.n))
    if out is not None:
        first[live] = out.effects[..., 0].numpy().astype(np.float64)
    total = _total(s, donor.binding)
    q = _Question(s, cells, first, np.array(live), total, seed, alpha)
    test = q.test()
    ran = [
        *_deterministic(q, out, weights, donor),
        _differs(q),
        *_nulls(q, base, donor, weights, test, unrelated),
    ]
    ran.append(checks.sign_flip_control(test) if test is not None else
               Control.not_run("sign_flip", "chance", "a small family-wise p", "no cell can differ, or there is one cluster"))  # fmt: skip
    p, least = (test.min_p, test.smallest_p) if test is not None else (None, None)
    shape = (len(named), len(found)) if found != [None] else (len(named),)
    tables = {"cells": _cells(q, test), "normalised": _normalised(q), "positions": _positions(found), "donors": q.donors}  # fmt: skip
    return headlined(
        Result(
            "cross_model_patching",
            effects=_labelled(q, named, found),
            tables={k: v for k, v in tables.items() if len(v)},
            tensors={"structurally_zero": ~q.live.reshape(shape), "total": total.astype(np.float32)},
            controls=ran,
            verdict=verdict(ran, MANDATORY, p, alpha, least),
            raw_examples=examples(base, s.base, {i: {"total": float(total[i])} for i in range(task.n)}, seed),
        )
    )


@dataclass
class _Question:
    """Shapes: first [cell, prompt], effects in the task's metric; live [cell]; total [prompt], donor minus base of whole runs."""

    s: Setting
    cells: Cells
    first: np.ndarray
    live: np.ndarray
    total: np.ndarray
    seed: int
    alpha: float
    rows: list[dict[str, object]] = field(default_factory=list)

    def test(self) -> FamilyTest | None:
        """Sign-flip of clusters over all cells that a changed weight reaches."""
        if not self.live.any() or len(set(self.s.clusters)) < 2 or not self.first.any():
            return None
        return sign_flip(self.first, list(self.s.clusters), seed=self.seed, structurally_zero=~self.live, alpha=self.alpha)  # fmt: skip

    def chosen(self, test: FamilyTest | None) -> list[int]:
        """The strongest significant cells, the best of each position first; the strongest one where none is."""
        order = np.argsort(-np.abs(self.first.mean(1)), kind="stable").tolist()
        order = [i for i in order if self.live[i]]
        strong = [i for i in order if test is not None and test.significant[i]] or order[:1]
        first = {getattr(self.cells[i][1], "label", i): i for i in reversed(strong)}
        best = [i for i in strong if i in first.values()]
        return [*best, *(i for i in strong if i not in best)][:CHOSEN]

    @property
    def donors(self) -> pd.DataFrame:
        """What each donor does at the chosen cells."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def note(self, kind: str, cells: Sequence[int], effects: np.ndarray) -> None:
        """Keep a donor's effects [cell, prompt] for the table."""
        interval = mean_interval(effects, list(self.s.clusters))
        for k, i in enumerate(cells):
            site, column = self.cells[i]
            self.rows.append({"donor": kind, "site": str(site), "position": "" if column is None else str(column.label),
                              "value": float(effects[k].mean()), "low": float(interval.low[k]), "high": float(interval.high[k])})  # fmt: skip


def _reached(site: Site, weights: WeightDiff) -> bool:
    """Whether a changed weight can reach a site: below the first changed layer both models have the same value."""
    if not weights.changed:
        return False
    if weights.start is None or not isinstance(site.layer, int):
        return True
    return site.layer >= weights.start + (site.point == "resid_pre")


def _sweep(s: Setting, cells: Cells, donor: Binding) -> Outcome | None:
    if not cells:
        return None
    return sweep(s.bench, [cell(*c) for c in cells], {"donor": OtherModel(donor)}, settings("patching"))


def _total(s: Setting, donor: Binding) -> np.ndarray:
    """Metric of the donor model minus that of the base model, [prompt]."""
    other = replace(s.bench, binding=donor, memo=Memo())
    return (measure(other) - measure(s.bench))[:, 0].numpy().astype(np.float64)


def _deterministic(q: _Question, out: Outcome | None, weights: WeightDiff, donor: Model) -> list[Control]:
    """A model's own values change nothing; every patch fired; the whole stream carries the whole difference."""
    own = [cell(*q.cells[i]) for i in (q.chosen(None) or [0])]
    same = sweep(q.s.bench, own, {"donor": OtherModel(q.s.model.binding)}, Settings(skip=False))
    again = sweep(q.s.bench, own, {"donor": Prompts(q.s.base.ids)}, Settings(skip=False))
    floor = noise_floor(q.s)
    ran = [checks.identity(np.stack([x.effects.numpy() for x in (same, again)]), floor)]
    ran.append(checks.receipts({"sweep": out.fired}, {"sweep": out.planned}) if out is not None and out.planned else checks.receipts({}, {}))  # fmt: skip
    return [*ran, _whole(q, weights, donor, 4 * floor)]


def _whole(q: _Question, weights: WeightDiff, donor: Model, limit: float) -> Control:
    """The last stream, patched at all positions, makes the base model answer as the donor: an exact sum. Gates."""
    rules_out, expected = "that a patch carries something else than the donor's value", f"the stream after the last layer, at all positions, carries the whole difference, within {limit:.2g}"  # fmt: skip
    if weights.behind:
        return Control.not_run("whole", rules_out, expected, f"{weights.behind} differs too, and reads that stream")  # fmt: skip
    model = q.s.model
    last = cell(sites_of(model, f"L{model.facts.n_layers - 1}.resid_post")[0], None)
    out = sweep(q.s.bench, [last], {"donor": OtherModel(donor.binding)}, Settings(skip=False))
    gap = float(np.abs(out.effects[0, :, 0].numpy() - q.total).max())
    return Control("whole", rules_out, expected, gap, gap <= limit, len(q.total), gates=True)


def _differs(q: _Question) -> Control:
    """The two models answer these prompts differently: else there is nothing to locate."""
    rules_out, expected = "that the models behave alike on these prompts", "an interval of the difference of their metrics without 0"  # fmt: skip
    interval = mean_interval(q.total[None], list(q.s.clusters))
    low, high = float(interval.low[0]), float(interval.high[0])
    if not np.isfinite([low, high]).all():
        return Control.not_run("behaviour_differs", rules_out, expected, "one prompt has no interval")
    return Control("behaviour_differs", rules_out, expected, {"mean": float(q.total.mean()), "low": low, "high": high}, low > 0 or high < 0, len(q.total))  # fmt: skip


def _nulls(
    q: _Question, base: Model, donor: Model, weights: WeightDiff, test: FamilyTest | None, unrelated: Model | None
) -> list[Control]:  # fmt: skip
    """Noise models, and an unrelated fine-tune, as donors at the strongest cells."""
    rules_out, expected = "that any change of the weights of this size has the effect here", "a noise model's activation does less in every cell"  # fmt: skip
    pick = q.chosen(test)
    named = [f"{site}" + ("" if c is None else f"@{c.label}") for site, c in (q.cells[i] for i in pick)]
    ran = []
    if not pick or len(set(q.s.clusters)) < 2 or not weights.changed:
        ran.append(Control.not_run("noise_models", rules_out, expected, "no cell can differ, or there is one cluster"))  # fmt: skip
    else:
        q.note("real", pick, q.first[pick])
        effects = np.stack([_donated(q, pick, _noisy(base, weights, seeds.child(q.seed, f"noise model {k}"))) for k in range(DRAWS)])  # fmt: skip
        q.note("noise models", pick, effects.mean(0))
        made = checks.noise_donor_control(effects, q.first[pick], list(q.s.clusters), cells=named)
        ran.append(replace(made, name="noise_models", rules_out=rules_out))
    rules_out, expected = "that any fine-tuning has the effect here", "the unrelated fine-tune's activation does less in every cell"  # fmt: skip
    if unrelated is None or not pick or len(set(q.s.clusters)) < 2:
        ran.append(
            Control.not_run("unrelated", rules_out, expected, "no unrelated fine-tune was given (unrelated=)")
        )
        return ran
    check_level(comparable(base, unrelated, q.s.base.texts), "sites")
    other = _donated(q, pick, unrelated.binding)
    q.note("unrelated", pick, other)
    made = checks.value_matters(
        other, q.first[pick], list(q.s.clusters), cells=named
    )  # signed: moving elsewhere is not the effect
    expected = made.expected.replace("a third value", "the unrelated fine-tune")
    return [*ran, replace(made, name="unrelated", rules_out=rules_out, expected=expected)]


def _donated(q: _Question, pick: Sequence[int], donor: Binding) -> np.ndarray:
    out = sweep(q.s.bench, [cell(*q.cells[i]) for i in pick], {"donor": OtherModel(donor)})
    return out.effects[..., 0].numpy().astype(np.float64)


def _noisy(base: Model, weights: WeightDiff, seed: int) -> Binding:
    """The base model with every changed tensor moved as far at random, in the way that fits the change."""
    made = copy_of(base.hf)
    old: dict[str, Tensor] = tensors_of(base.hf)
    change = RandomChange(old, weights.changed, fitting(old, weights.changed, weights.ranks))
    put(made, {n: (old[n].double() + change.draw(n, seed)).to(old[n]) for n in weights.changed})
    return bind(made)


def _labelled(q: _Question, named: list[Site], found: Sequence[Column | None]) -> Labelled:
    coords: dict[str, tuple[Label, ...]] = {"site": tuple(map(str, named)), "prompt": tuple(range(len(q.total))), "metric": q.s.metrics}  # fmt: skip
    if list(found) == [None]:
        return Labelled(q.first[..., None], ("site", "prompt", "metric"), coords)
    coords["position"] = tuple(c.label for c in found if c is not None)
    values = q.first.reshape(len(named), len(found), -1, 1)
    return Labelled(values, ("site", "position", "prompt", "metric"), coords)


def _cells(q: _Question, test: FamilyTest | None) -> pd.DataFrame:
    import pandas as pd

    interval = mean_interval(q.first, list(q.s.clusters))
    nan = np.full(len(q.cells), np.nan)
    low, high, p = (nan, nan, nan) if test is None else (test.null_low, test.null_high, test.p)
    table = pd.DataFrame({"site": [str(site) for site, _ in q.cells], "metric": q.s.metrics[0], "low": interval.low, "high": interval.high,
                          "null_low": low, "null_high": high, "p": p})  # fmt: skip
    if q.cells[0][1] is not None:
        table.insert(1, "position", [c.label for _, c in q.cells if c is not None])
    return table


def _normalised(q: _Question) -> pd.DataFrame:
    import pandas as pd

    try:
        ratio = normalised_effect(q.first, q.total, list(q.s.clusters))
    except ControlError:  # the models behave alike: a share of nothing is refused
        return pd.DataFrame()
    table = pd.DataFrame({"site": [str(site) for site, _ in q.cells], "metric": q.s.metrics[0], "value": ratio.estimate,
                          "low": ratio.low, "high": ratio.high})  # fmt: skip
    if q.cells[0][1] is not None:
        table.insert(1, "position", [c.label for _, c in q.cells if c is not None])
    return table


def _positions(found: Sequence[Column | None]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame([{"position": str(c.label), "label": c.text} for c in found if c is not None])
