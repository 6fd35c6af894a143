"""From what a search found to a Result: tables, controls, verdict."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from microtome.circuits.circuit import named_edges
from microtome.circuits.search import Outcome, Search
from microtome.controls import checks
from microtome.controls.intervals import mean_interval
from microtome.controls.ratio import normalised_effect
from microtome.controls.sampling import Strata, matched_sets
from microtome.errors import ControlError
from microtome.methods.setting import examples
from microtome.replay.bench import base_metrics, columns_of, record_group
from microtome.results.labelled import Labelled
from microtome.results.result import Result
from microtome.results.verdicts import Control, verdict

if TYPE_CHECKING:
    import pandas as pd

MANDATORY = ("ends", "connected", "faithful", "random_edges")
CONTROLS = (*MANDATORY, "completeness", "same_as_plain", "cancelling")
ALPHA = 0.05
SAME = 0.9
"""Jaccard similarity with the plain walk's circuit from which group testing counts as having found the same."""
KIND = "circuit_discovery"


def assemble(s: Search, outcome: Outcome, how: str, tau: float | None) -> Result:
    """The result of a search. Effects: [circuit, prompt, metric], circuit minus whole model, metric units."""
    q = s.question
    curve = _curve(s, outcome)
    drawn, why = _drawn(s, outcome)
    ran = [
        ends_control(s),
        _connected(s, outcome),
        _faithful(s, curve),
        _random_edges(curve, drawn, why),
        _completeness(outcome, s.options.tolerance),
        _same_as_plain(s, outcome),
        _cancelling(s, outcome, tau),
    ]
    p = None if not len(drawn) else _p(curve, drawn)
    labels = tuple(_label(s, k) for k in outcome.sizes)
    coords: dict[str, tuple[str | int, ...]] = {
        "site": labels,
        "prompt": tuple(range(q.runs.n)),
        "metric": q.setting.metrics,
    }
    values = {i: {"score": float(v)} for i, v in enumerate(outcome.values[-1, :, s.column])}
    return Result(
        KIND,
        effects=Labelled(outcome.values - q.ends[0], ("site", "prompt", "metric"), coords),
        tables={
            "edges": _edges(s, outcome),
            "curve": curve,
            "decisions": _decisions(s, outcome),
            "nulls": _nulls(drawn),
            "counts": _counts(outcome),
            "about": _about(s, outcome, how, tau),
        },
        tensors={} if outcome.curve is None else {"gates": outcome.curve},
        controls=ran,
        verdict=verdict(ran, MANDATORY, p, ALPHA, None if p is None else 1 / (1 + len(drawn))),
        raw_examples=examples(q.model, q.setting.base, values, s.seed),
    )


def _label(s: Search, size: int) -> str:
    return f"circuit of {size} {'edges' if s.units.granularity == 'edge' else 'nodes'}"


def _edges(s: Search, outcome: Outcome) -> pd.DataFrame:
    """All edges: score, its interval over clusters, in the circuit or not."""
    import pandas as pd

    every = np.ones(s.units.edges, dtype=bool)
    nan = np.full(s.units.edges, np.nan)
    low, high = nan, nan
    if outcome.per_prompt is not None and s.question.runs.n > 1:
        interval = mean_interval(outcome.per_prompt, s.question.clusters)
        low, high = interval.low, interval.high
    names = named_edges(s.question.graph, every, s.question.runs.spans)
    return pd.DataFrame(
        {"edge": names, "score": outcome.scores, "low": low, "high": high, "kept": outcome.kept}
    )


def _curve(s: Search, outcome: Outcome) -> pd.DataFrame:
    """Faithfulness by size, the found circuit last. k: units asked for; edges: kept after taking out those on no path."""
    import pandas as pd

    q = s.question
    values = outcome.values[..., s.column]
    full, empty = (end[:, s.column] for end in q.ends)
    faith = q.faithfulness(outcome.values, s.column)
    low = high = np.full(len(values), np.nan)
    try:
        ratio = normalised_effect(values - empty, full - empty, q.clusters)
        low, high = ratio.low, ratio.high
    except ControlError:  # too few prompts for an interval of the whole effect: the limits stay unknown
        pass
    counts = [int(mask.sum()) for mask in outcome.sizes.values()]
    return pd.DataFrame(
        {"k": list(outcome.sizes), "edges": counts, "value": faith, "low": low, "high": high, "n": q.runs.n}
    )


def _decisions(s: Search, outcome: Outcome) -> pd.DataFrame:
    """ACDC's decisions in their order."""
    import pandas as pd

    made = [] if outcome.walk is None else outcome.walk.decisions
    rows = [
        (i, s.units.name(d.unit, s.question.runs.spans), d.kept, d.rise, d.loss, d.how)
        for i, d in enumerate(made)
    ]
    table = pd.DataFrame(rows, columns=["order", "edge", "kept", "rise", "loss", "how"])
    return table.astype(
        {
            "order": "int64",
            "edge": "object",
            "kept": "bool",
            "rise": "float64",
            "loss": "float64",
            "how": "object",
        }
    )


def _counts(outcome: Outcome) -> pd.DataFrame:
    import pandas as pd

    table = pd.DataFrame({"name": list(outcome.counts), "value": list(outcome.counts.values())})
    return table.astype({"name": "object", "value": "int64"})


def _about(s: Search, outcome: Outcome, how: str, tau: float | None) -> pd.DataFrame:
    import pandas as pd

    q = s.question
    taken = int((outcome.raw & ~outcome.kept).sum())
    rows = {
        "how": how,
        "metric": q.setting.metrics[s.column],
        "choices": json.dumps(q.choices.data()),
        "spans": json.dumps(list(q.runs.spans)),
        "group": str(q.graph.shape[0][0] // max(1, q.graph.shape[0][1])),
        "edges of the graph": str(s.units.edges),
        "edges kept": str(int(outcome.kept.sum())),
        "edges taken out because no path uses them": str(taken),
        "units that could be left out": str(int(outcome.tested.sum())),
        "threshold": "" if tau is None else repr(tau),
    }
    if outcome.estimate is not None:
        rows["gradient passes"] = str(outcome.estimate.passes)
    if not s.options.prune or q.choices.direction == "denoise":
        rows["edges taken out because no path uses them"] = "not asked for" if not s.options.prune else \
            "none: restored edges bring clean values whether or not a path leads to them"  # fmt: skip
    return pd.DataFrame({"name": list(rows), "value": list(rows.values())})


def ends_control(s: Search) -> Control:
    """Nothing patched must be the base run, everything patched the run of the donor prompts."""
    q = s.question
    every = torch.ones(1, s.units.edges, dtype=torch.bool)
    found = q.runs.measure(torch.cat([~every, every])).numpy()
    expected = [q.runs.base().numpy(), _donor(s)]
    names = ("base", "donor")
    gaps = {
        name: float(np.abs(mine - own).max())
        for name, mine, own in zip(names, found, expected, strict=True)
        if own is not None
    }
    size = max(1.0, float(np.nanmax(np.abs(found))))
    eps = torch.finfo(next(q.model.hf.parameters()).dtype).eps
    floor = 1e4 * eps * size
    without = (
        ""
        if "donor" in gaps
        else f"; with {q.choices.ablation} ablation there is no run to hold the empty circuit against"
    )
    return Control("ends", "that patching does not span the whole model to the empty circuit", f"all edges kept is the clean run, none the corrupt run, within {floor:.1g}{without}",
                   gaps, max(gaps.values()) <= floor, 2 * q.runs.n, gates=True)  # fmt: skip


@torch.no_grad()
def _donor(s: Search) -> np.ndarray | None:
    """The metrics of the donor prompts in runs of their own; None where a mean or nothing is patched in. [prompt, metric]."""
    q = s.question
    if q.choices.ablation != "corrupt":
        return None
    bench, other = q.runs.bench, q.setting.donor_bench()
    out = np.zeros((q.runs.n, len(bench.metrics)))
    for group in q.runs.groups:
        reference, logits = (
            base_metrics(one, group, record_group(one, group, 0, eager=False))[1] for one in (bench, other)
        )
        plan = bench.scoring.select(group.prompts)
        values = [m(logits, plan, columns_of(bench), reference) for m in bench.metrics]
        out[list(group.prompts)] = torch.stack(values, -1).double().cpu().numpy()
    return out


def _connected(s: Search, outcome: Outcome) -> Control:
    kept, raw = int(outcome.kept.sum()), int(outcome.raw.sum())
    from microtome.circuits.connect import connected

    useful = int(connected(s.question.graph, outcome.kept).sum())
    return Control("connected", "that nothing goes from the embedding to the logits through these edges", "some edges lie on such a path",
                   {"edges on a path": useful, "chosen": raw, "kept": kept}, useful > 0, max(1, raw))  # fmt: skip


def _faithful(s: Search, curve: pd.DataFrame) -> Control:
    found = curve.iloc[-1]
    share = s.options.share
    seen = {name: float(found[name]) for name in ("value", "low", "high") if np.isfinite(found[name])}
    return Control("faithful", "that what was kept does not carry the behaviour even where it was found", f"faithfulness at least {share:g} on the prompts that chose it",
                   seen, bool(found["value"] >= share), s.question.runs.n, detail="other prompts, completeness and minimality: mt.circuits.evaluate")  # fmt: skip


def _drawn(s: Search, outcome: Outcome) -> tuple[np.ndarray, str]:
    """Faithfulness of random circuits with as many units of each kind and layer third, of those that could be left out.

    Shapes: -> [draw], empty where there are none, with the reason.
    """
    units, n_layers, none = s.units, len(s.question.graph.shape), np.zeros(0)
    pool = np.flatnonzero(outcome.tested)
    inside = np.zeros(len(units), dtype=bool)
    inside[units.of_edge[outcome.kept & ~units.fixed]] = True
    chosen = np.flatnonzero(inside[pool])
    if s.options.nulls < 1 / ALPHA - 1:
        return none, f"{s.options.nulls} draws cannot reach alpha {ALPHA:g}"
    if not len(chosen) or len(chosen) == len(pool):
        return none, "all or none of what could be left out is in the circuit"
    layers = np.clip(units.layers[pool], 0, n_layers - 1).tolist()
    strata = Strata.of(layers, [units.kinds[i] for i in pool], n_layers)
    try:
        sets = matched_sets(strata, chosen.tolist(), s.options.nulls, seed=s.seed, name="circuit discovery")
    except ControlError as error:
        return none, error.what
    masks = []
    for row in sets:
        kept = inside.copy()
        kept[pool] = False
        kept[pool[row]] = True
        masks.append(units.mask(kept))
    return s.question.faithfulness(s.measure(masks), s.column), ""


def _nulls(drawn: np.ndarray) -> pd.DataFrame:
    import pandas as pd

    table = pd.DataFrame({"family": ["random edges"] * len(drawn), "draw": range(len(drawn)), "value": drawn})
    return table.astype({"family": "object", "draw": "int64", "value": "float64"})


def _near(curve: pd.DataFrame, drawn: np.ndarray) -> np.ndarray:
    """Nearness to faithfulness 1, to five digits: of random circuits, then of the found one. Shapes: [draw + 1]."""
    out: np.ndarray = np.round(1 - np.abs(1 - np.append(drawn, curve["value"].iloc[-1])), 5)
    return out


def _p(curve: pd.DataFrame, drawn: np.ndarray) -> float:
    near = _near(curve, drawn)
    return float((1 + (near[:-1] >= near[-1]).sum()) / (1 + len(drawn)))


def _random_edges(curve: pd.DataFrame, drawn: np.ndarray, why: str) -> Control:
    name, rules_out = "random_edges", "that any edges of these kinds and depths would do"
    expected = f"nearer to faithfulness 1 than random circuits of its shape (alpha {ALPHA:g})"
    if why:
        return Control.not_run(name, rules_out, expected, why)
    near = _near(curve, drawn)
    made = checks.random_components(
        float(near[-1]), near[:-1], what="1 - |1 - faithfulness|", alpha=ALPHA, name=name
    )
    return replace(made, rules_out=rules_out, expected=expected)


def _completeness(outcome: Outcome, tolerance: float) -> Control:
    rules_out, expected = (
        "that the gradient misses the metric's way from base to donor",
        f"the scores of the interpolated cut add up to the metric's change, within {tolerance:.0%}",
    )
    e = outcome.estimate
    if e is None or not np.isfinite(e.gap):
        why = "no scores along a path" if e is None else "one gradient, no path along which scores add up"
        return Control.not_run("completeness", rules_out, expected, why)
    return Control(
        "completeness", rules_out, expected, {"gap": e.gap, "steps": e.steps}, e.gap <= tolerance, len(e.base)
    )


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Edges in both over edges in either; 1 where neither has any. Shapes: [edge] bool."""
    either = int((one | other).sum())
    return float((one & other).sum()) / either if either else 1.0


def _same_as_plain(s: Search, outcome: Outcome) -> Control:
    name, rules_out = "same_as_plain", "that blocks hid edges which the plain walk keeps"
    expected = f"Jaccard similarity with the plain walk's circuit at least {SAME:g}"
    if outcome.walk is None or s.options.walk != "groups":
        return Control.not_run(name, rules_out, expected, "no group testing")
    if outcome.plain is None:
        return Control.not_run(
            name, rules_out, expected,
            f"{int(outcome.tested.sum()):,} units are more than check={s.options.check:,}: the plain walk was not made",
        )  # fmt: skip
    mine, plain = outcome.walk.kept, outcome.plain.kept
    same = jaccard(mine & outcome_edges(s, outcome), plain & outcome_edges(s, outcome))
    faith = s.question.faithfulness(s.measure([mine, plain]), s.column)
    lost, more = np.flatnonzero(plain & ~mine), np.flatnonzero(mine & ~plain)
    spans = s.question.runs.spans
    words = [
        f"{len(some)} only {where}: {', '.join(_some(s, some, spans))}"
        for some, where in ((lost, "in the plain walk's"), (more, "here"))
        if len(some)
    ]
    return Control(name, rules_out, expected, {"jaccard": same, "faithfulness": float(faith[0]), "faithfulness, plain": float(faith[1])}, same >= SAME,
                   int(outcome.tested.sum()), detail="; ".join(words))  # fmt: skip


def outcome_edges(s: Search, outcome: Outcome) -> np.ndarray:
    """Edges that could have been left out. Shapes: [edge] bool."""
    out: np.ndarray = outcome.tested[s.units.of_edge] & ~s.units.fixed
    return out


def _some(s: Search, edges: np.ndarray, spans: tuple[str, ...], most: int = 6) -> list[str]:
    size = len(s.question.graph.edges)
    names = [
        s.question.graph.name(int(e) % size) + (f"@{spans[int(e) // size]}" if spans else "")
        for e in edges[:most]
    ]
    return [*names, "..."] if len(edges) > most else names


def _cancelling(s: Search, outcome: Outcome, tau: float | None) -> Control:
    name, rules_out = "cancelling", "that edges were dropped together because their removals cancel"
    expected = "no unit dropped in a block changes the loss by the threshold or more when put back alone"
    if outcome.restored is None or tau is None:
        return Control.not_run(name, rules_out, expected, "nothing was dropped in blocks")
    which, change = outcome.restored[0].astype(int), outcome.restored[1]
    bad = np.flatnonzero(np.abs(change) >= tau)
    spans = s.question.runs.spans
    named = ", ".join(f"{s.units.name(int(which[i]), spans)} ({change[i]:+.3g})" for i in bad[:6])
    return Control(name, rules_out, expected, {"largest change": float(np.abs(change).max()), "units": len(bad)}, not len(bad), len(change),
                   detail=f"put back alone: {named}" if len(bad) else "")  # fmt: skip
