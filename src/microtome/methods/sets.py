"""The smallest set of heads and MLPs found that carries an effect, with the sets it must beat.

Components are ranked by their exact single effects. A set is judged alone: in the clean run every head and MLP outside
it gets its corrupt value, and the part of the clean-corrupt difference that survives is the set's faithfulness (Wang et
al. 2023; how much it depends on such choices: Miller et al. 2024). (Patching
a set *into* the corrupt run would not do: the first MLP alone, which re-embeds the tokens, then carries everything.) The
smallest nested set that reaches the wanted share is tested on held-out prompts, beside random sets of its shape and
random sets of strong components. It is a set found by one ranking, not a circuit: edges, completeness and minimality are
another question.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from microtome.controls import checks
from microtome.controls.intervals import Interval
from microtome.controls.ratio import normalised_effect
from microtome.controls.sampling import Strata, matched_sets, top_pool_sets
from microtome.errors import ControlError, ResultError
from microtome.methods.setting import Setting, examples, same_question, setting, settings, shares
from microtome.replay.plan import Cell, Change
from microtome.replay.sources import Prompts
from microtome.replay.sweep import measure, sweep
from microtome.results.labelled import Labelled
from microtome.results.result import Result
from microtome.results.technique import technique
from microtome.results.verdicts import Control, verdict
from microtome.sites import Site, parse

if TYPE_CHECKING:
    from microtome.facade import Model
    from microtome.tasks.pairs import PairTask

SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
NULL_ALPHA = 0.05
NULLS = 20


@technique("component_set", "2", controls=("receipts", "empty_and_full", "matched_sets", "strong_sets", "held_out_faithfulness"),
           mandatory=("receipts", "empty_and_full", "matched_sets", "held_out_faithfulness"), figure="microtome.figures.sets:draw", random=True)  # fmt: skip
def component_set(
    model: Model,
    task: PairTask,
    *,
    ranking: Result,
    held_out: PairTask | None,
    share: float = 0.8,
    nulls: int = NULLS,
    alpha: float = 0.001,
    seed: int = 0,
) -> Result:
    """Keep nested sets of the strongest components, and give all other heads and MLPs their corrupt values.

    Parameters
    ----------
    ranking: activation patching of single components (positions="all") on `task`; its order is the nesting.
    held_out: pairs that share no template (or entity) with `task`, for faithfulness and nulls; None tests on `task`
        itself, and the control then did not run.
    share: the part of mean(clean - corrupt) that must survive.
    nulls: random sets of each kind: same count per kind and layer third; drawn from the 3k strongest components.

    Effects: [site ("set of k"), prompt, metric] on the selection prompts. Tables: curve, components, nulls, held_out.

    Raises
    ------
    ResultError: the ranking is no map of single components, or of other pairs or another model (the held-out ones must not
    rank). ControlError: the total effect's interval contains 0, or one component only.
    """
    leak = "no held-out prompts were given" if held_out is None else shares(task, held_out)
    s, h = setting(model, task, "noise"), setting(model, task if held_out is None else held_out, "noise")
    named, scores = _ranked(ranking)
    same_question(ranking, model, task, "ranking")
    order = np.argsort(-scores, kind="stable")
    sizes = [k for k in SIZES if k < len(named)]
    if not sizes:
        raise ControlError("one component is no choice", why="the only nested set of it is the whole model",
                           instead="a ranking of two components or more")  # fmt: skip
    sets = [[int(i) for i in order[:k]] for k in sizes]
    out = sweep(
        s.bench,
        [_set_cell(named, members) for members in sets],
        {"donor": Prompts(s.donor.ids)},
        settings("growing the set"),
    )
    total = (measure(s.donor_bench()) - out.base)[:, 0].numpy().astype(np.float64)
    first = out.effects[..., 0].numpy().astype(np.float64)
    ratio = _kept(normalised_effect(first, total, list(s.clusters)))
    reached = [j for j in range(len(sets)) if ratio.estimate[j] >= share]
    chosen = sets[reached[0]] if reached else sets[int(np.argmax(ratio.estimate))]
    real, families, counts = _held_out(h, named, scores, chosen, nulls, seed)
    ran = [
        checks.receipts({"sweep": out.fired + counts[0]}, {"sweep": out.planned + counts[1]}),
        _ends(s, named, total),
        *_nulls(real, families),
    ]
    ran.append(_faithful(real, share, leak))
    best = families.get("matched", np.zeros(0))
    p = float((1 + (best >= real.estimate).sum()) / (1 + best.size)) if best.size else None
    import pandas as pd

    return Result(
        "component_set",
        effects=Labelled(first[..., None], ("site", "prompt", "metric"), {"site": tuple(f"set of {k}" for k in sizes), "prompt": tuple(range(task.n)), "metric": s.metrics[:1]}),
        tables={
            "curve": pd.DataFrame({"k": sizes, "value": ratio.estimate, "low": ratio.low, "high": ratio.high, "n": task.n}),
            "components": pd.DataFrame({"rank": range(len(chosen)), "site": [str(named[i]) for i in chosen], "effect": scores[chosen]}),
            "nulls": pd.DataFrame([{"family": f, "draw": d, "value": float(v)} for f, values in families.items() for d, v in enumerate(values)], columns=["family", "draw", "value"]),
            "held_out": pd.DataFrame([{"quantity": "faithfulness", "value": float(real.estimate), "low": float(real.low), "high": float(real.high), "n": len(h.base)}]),
        },
        controls=ran, verdict=verdict(ran, (), p, max(alpha, NULL_ALPHA), 1 / (1 + best.size) if best.size else None),
        raw_examples=examples(model, h.base, {}, seed),
    )  # fmt: skip


def _ranked(ranking: Result) -> tuple[list[Site], np.ndarray]:
    e = ranking.effects
    if e is None or e.dims != ("site", "prompt", "metric"):
        raise ResultError("the ranking is no map of single components", why="its effects must be [site, prompt, metric]",
                          instead='activation_patching(..., sites=("L*H*.z", "L*.mlp_out"), positions="all")')  # fmt: skip
    mean = e.values[..., 0].astype(np.float64).mean(1)
    # towards the donor: components that pull away from it are no part of what carries the effect
    total = ranking.tensors["total"][:, 0].mean()
    return [parse(str(site)) for site in e.coords["site"]], mean * np.sign(total)


def _set_cell(named: list[Site], members: list[int]) -> Cell:
    """Everything but the members gets the donor's (corrupt) value."""
    inside = set(members)
    return Cell(
        tuple(Change(site) for i, site in enumerate(named) if i not in inside),
        f"{len(members)} components kept",
    )


def _kept(lost: Interval) -> Interval:
    """Faithfulness from the share that was lost."""
    return replace(lost, estimate=1 - lost.estimate, low=1 - lost.high, high=1 - lost.low)


def _held_out(
    h: Setting, named: list[Site], scores: np.ndarray, chosen: list[int], nulls: int, seed: int
) -> tuple[Interval, dict[str, np.ndarray], tuple[int, int]]:
    layers = [x.layer if isinstance(x.layer, int) else 0 for x in named]
    strata = Strata.of(layers, [x.point for x in named], len(h.model.binding.slots))
    families: dict[str, np.ndarray] = {}
    cells, where = [_set_cell(named, chosen)], {}
    for name, draw in (
        ("matched", lambda: matched_sets(strata, chosen, nulls, seed=seed)),
        ("top_pool", lambda: top_pool_sets(scores.tolist(), chosen, nulls, seed=seed)),
    ):
        try:
            drawn = draw()
        except ControlError:
            continue
        where[name] = range(len(cells), len(cells) + len(drawn))
        cells += [_set_cell(named, [int(i) for i in row]) for row in drawn]
    bench = replace(h.bench, metrics=h.bench.metrics[:1])
    out = sweep(bench, cells, {"donor": Prompts(h.donor.ids)}, settings("held-out sets and nulls"))
    total = (
        (measure(replace(h.donor_bench(), metrics=bench.metrics)) - out.base)[:, 0].numpy().astype(np.float64)
    )
    ratio = _kept(normalised_effect(out.effects[..., 0].numpy().astype(np.float64), total, list(h.clusters)))
    families = {name: ratio.estimate[list(rows)] for name, rows in where.items()}
    return ratio.at(0), families, (out.fired, out.planned)


def _ends(s: Setting, named: list[Site], total: np.ndarray) -> Control:
    """Patching the whole embedding must give the donor's run, patching nothing the base's."""
    few = replace(s.bench, metrics=s.bench.metrics[:1])
    out = sweep(few, [Cell((Change(Site("embed")),), "everything")], {"donor": Prompts(s.donor.ids)})
    gap = float(np.abs(out.effects[0, :, 0].numpy() - total).max())
    floor = 1e-3 * max(1.0, float(np.abs(total).max()))
    return Control("empty_and_full", "that patching does not span base to donor", f"patching the embedding gives the donor's metric, within {floor:.1g}", gap, gap <= floor,
                   len(total), gates=True)  # fmt: skip


def _nulls(real: Interval, families: dict[str, np.ndarray]) -> list[Control]:
    out = []
    for name, family in (("matched_sets", "matched"), ("strong_sets", "top_pool")):
        if family in families:
            out.append(
                checks.random_components(
                    float(real.estimate), families[family], what="faithfulness", alpha=NULL_ALPHA, name=name
                )
            )
        else:
            out.append(
                Control.not_run(
                    name,
                    "that any set of this shape would do",
                    "better than random sets",
                    "there are too few such sets",
                )
            )
    return out


def _faithful(real: Interval, share: float, leak: str) -> Control:
    if leak:
        return Control.not_run("held_out_faithfulness", "that the set carries the effect only on the prompts that chose it",
                               f"at least {share:g} of the effect on held-out prompts", leak)  # fmt: skip
    return Control("held_out_faithfulness", "that the set carries the effect only on the prompts that chose it", f"at least {share:g} of the effect on held-out prompts",
                   {"value": float(real.estimate), "low": float(real.low), "high": float(real.high)}, bool(real.estimate >= share), real.n)  # fmt: skip
