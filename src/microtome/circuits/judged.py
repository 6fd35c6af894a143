"""From the tests of a circuit to a Result: tables, controls, verdict."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from microtome.circuits import measures, nulls, second, stability
from microtome.circuits.case import Case
from microtome.circuits.circuit import Circuit
from microtome.circuits.connect import connected
from microtome.circuits.found import ends_control
from microtome.circuits.hypotheses import Minimal
from microtome.controls import checks
from microtome.controls.dependence import Dependence
from microtome.controls.intervals import mean_interval
from microtome.methods.setting import examples
from microtome.results.labelled import Labelled
from microtome.results.result import Result
from microtome.results.verdicts import Control, verdict

if TYPE_CHECKING:
    import pandas as pd

    from microtome.circuits.evaluating import Checks

KIND = "circuit_evaluation"
MANDATORY = ("ends", "contrast", "faithful", "random_circuits", "strong_circuits", "shuffled_labels")
CONTROLS = (
    *MANDATORY,
    "held_out",
    "completeness",
    "stability",
    "equivalence",
    "independence",
    "minimality",
    "second",
)
SIX = ("granularity", "component", "ablation", "positions", "direction", "prompts")


@dataclass(frozen=True)
class Found:
    """Everything that was measured of one circuit."""

    checks: Checks
    case: Case
    small: Case
    circuit: Circuit
    origin: str
    sizes: pd.DataFrame
    areas: dict[str, float]
    shape: tuple[nulls.Drawn, np.ndarray]
    strong: tuple[nulls.Drawn, np.ndarray]
    shuffled: nulls.Shuffled
    completeness: pd.DataFrame
    equivalence: Control
    independence: tuple[Control, Dependence, Dependence]
    minimality: tuple[Control, Minimal]
    stable: stability.Stable | None
    edges: pd.DataFrame | None
    second: second.Second | None
    held: tuple[Case, np.ndarray] | None
    roc: measures.Roc | None


def assemble(f: Found) -> Result:
    """The result of an evaluation."""
    case, q = f.case, f.case.question
    share = case.share(case.measured[..., case.search.column])
    small = float(f.small.share(f.small.driver([f.small.kept]))[0])
    ran = [*_gates(f), _faithful(f, float(share[0])), *_nulls(f, small), _held_out(f), *_tests(f, small)]
    mandatory = (*MANDATORY, *(("held_out",) if _chosen_here(f) else ()))
    p, least = _p(f, small)
    rows = case.measured
    values = {i: {"circuit": float(v)} for i, v in enumerate(rows[0, :, case.search.column])}
    sites = (f"circuit of {len(case.chosen):,} {case.noun}s", "complement", "empty circuit")
    return Result(
        KIND,
        effects=Labelled(
            np.stack([*rows, q.ends[1]]) - q.ends[0],
            ("site", "prompt", "metric"),
            {"site": sites, "prompt": tuple(range(q.runs.n)), "metric": q.setting.metrics},
        ),
        tables=_tables(f),
        controls=ran,
        verdict=verdict(ran, mandatory, p, f.checks.alpha, least),
        raw_examples=examples(q.model, q.setting.base, values, case.seed),
    )


def _chosen_here(f: Found) -> bool:
    """Whether these prompts chose the circuit."""
    return f.case.question.task.hash[:12] in f.circuit.choices.prompts


def _p(f: Found, small: float) -> tuple[float | None, float | None]:
    """The largest p of the nulls that ran, and the smallest that all of them can reach."""
    each = [(nulls.p_of(small, v), 1 / (1 + len(v))) for d, v in (f.shape, f.strong) if not d.why and len(v)]
    s = f.shuffled
    if not s.why:
        each.append((float((1 + (s.effect >= s.real).sum()) / (1 + len(s.effect))), 1 / (1 + len(s.effect))))
    if not each:
        return None, None
    return max(p for p, _ in each), max(reach for _, reach in each)


def _gates(f: Found) -> list[Control]:
    full, empty = f.case.ends
    name, rules_out = "contrast", "that there is no effect of which a circuit could carry a share"
    expected = "the interval of whole model minus empty circuit excludes 0"
    if len(full) < 2:
        return [ends_control(f.case.search), Control.not_run(name, rules_out, expected, "one prompt")]
    interval = mean_interval(full - empty, f.case.question.clusters)
    seen = {"effect": float(interval.estimate), "low": float(interval.low), "high": float(interval.high)}
    return [ends_control(f.case.search), Control(name, rules_out, expected, seen, bool(interval.excludes(0.0)), len(full), detail=interval.label)]  # fmt: skip


def _faithful(f: Found, share: float) -> Control:
    least = f.checks.share
    low, high = (float(v[0]) for v in measures.limits(f.case, f.case.measured[:1, :, f.case.search.column]))
    seen = {k: v for k, v in (("value", share), ("low", low), ("high", high)) if np.isfinite(v)}
    return Control("faithful", "that the circuit does not carry the behaviour, or carries what the whole model does not", f"faithfulness within {1 - least:.3g} of 1",
                   seen, abs(1 - share) <= 1 - least + 1e-9, f.case.question.runs.n)  # fmt: skip


def _nulls(f: Found, small: float) -> list[Control]:
    alpha = f.checks.alpha
    out = [
        nulls.control("random_circuits", "that any circuit of this shape would do", small, f.shape[1], f.shape[0], alpha),
        nulls.control("strong_circuits", "that any choice of the strongest parts would do", small, f.strong[1], f.strong[0], alpha),
    ]  # fmt: skip
    s = f.shuffled
    name, rules_out = "shuffled_labels", "that the search finds as much where clean and corrupt mean nothing"
    expected = f"a larger effect than circuits found on shuffled labels keep there (alpha {alpha:g})"
    if s.why:
        return [*out, Control.not_run(name, rules_out, expected, s.why)]
    made = checks.random_components(s.real, s.effect, what="effect kept", alpha=alpha, name=name)
    stand_in = (
        ""
        if s.how == f.circuit.how
        else f"; the circuit was found {f.circuit.how!r}, the search repeated by {s.how}"
    )
    detail = f"smallest p within reach {1 / (1 + len(s.effect)):.2g}; their Jaccard similarity with this circuit: median {np.median(s.same):.2f}{stand_in}"
    return [
        *out,
        replace(
            made,
            rules_out=rules_out,
            expected=expected,
            detail=detail if made.passed is not None else made.detail,
        ),
    ]


def _held_out(f: Found) -> Control:
    name, rules_out = "held_out", "that the circuit carries the behaviour only on the prompts that chose it"
    expected = f"faithfulness within {1 - f.checks.share:.3g} of 1 on held-out prompts, and nearer to 1 than random circuits there (alpha {f.checks.alpha:g})"
    if f.held is None:
        why = "the circuit was found on these very prompts, and no others were given" if _chosen_here(f) else "no held-out prompts were given"  # fmt: skip
        return Control.not_run(name, rules_out, expected, why)
    case, values = f.held
    drive = case.measured[:1, :, case.search.column]
    share = float(case.share(drive)[0])
    low, high = (float(v[0]) for v in measures.limits(case, drive))
    seen = {k: v for k, v in (("value", share), ("low", low), ("high", high)) if np.isfinite(v)}
    good = abs(1 - share) <= 1 - f.checks.share + 1e-9
    if len(values):
        seen["p"] = nulls.p_of(share, values)
        good = good and seen["p"] <= f.checks.alpha
    return Control(name, rules_out, expected, seen, good, case.question.runs.n, detail="" if len(values) else "no random circuits to compare with")  # fmt: skip


def _tests(f: Found, small: float) -> list[Control]:
    worst = _largest_gap(f.completeness)
    most = 1 - f.checks.share
    complete = Control(
        "completeness",
        "that the model has, outside the circuit, what stands in for parts of it",
        f"with any tried part of the circuit out, circuit and model differ by at most {most:.3g} of the effect",
        {"largest gap": float(worst["gap"]), "without": str(worst["subset"])},
        bool(abs(worst["gap"]) <= most + 1e-9),
        len(f.completeness),
    )
    name = "stability"
    stable = (
        Control.not_run(name, "that other prompts would have given another circuit", "bootstrap circuits alike", "no bootstraps were asked for")
        if f.stable is None
        else stability.control(f.case, f.stable)
    )  # fmt: skip
    other = (
        Control.not_run("second", "that another circuit does as well", "no disjoint circuit does as well", "not asked for")
        if f.second is None
        else second.control(f.small, f.second, small, f.checks.share)
    )  # fmt: skip
    return [complete, stable, f.equivalence, f.independence[0], f.minimality[0], other]


def _largest_gap(table: pd.DataFrame) -> pd.Series:
    return table.iloc[int(table["gap"].abs().to_numpy().argmax())]


def _tables(f: Found) -> dict[str, pd.DataFrame]:
    import pandas as pd

    out = {
        "measures": _measures(f),
        "prompts": measures.by_prompt(f.case),
        "sizes": f.sizes,
        "completeness": f.completeness,
        "units": _units(f),
        "nulls": _families(f),
        "about": _about(f),
    }
    if f.edges is not None:
        out["edges"] = f.edges
    if f.second is not None and f.second.sizes:
        s = f.second
        out["second"] = pd.DataFrame({"size": s.sizes, "edges": s.edges, "value": s.share, "as_well": [i == s.found for i in range(len(s.sizes))]})  # fmt: skip
    if f.roc is not None:
        out["roc"] = pd.DataFrame({"threshold": f.roc.thresholds, "false": f.roc.false, "true": f.roc.true})
    return out


def _measures(f: Found) -> pd.DataFrame:
    """Every score with its interval, and in each row the six choices that change it."""
    import pandas as pd

    case = f.case
    drive, n = case.measured[..., case.search.column], case.question.runs.n
    low, high = measures.limits(case, drive)
    share = case.share(drive)
    nan = float("nan")
    rows = [
        ("faithfulness", share[0], low[0], high[0], n),
        ("faithfulness of the complement", share[1], low[1], high[1], n),
        ("largest gap of completeness", f.completeness["gap"].abs().max(), nan, nan, f.small.question.runs.n),
        *((name, value, nan, nan, n) for name, value in f.areas.items()),
    ]
    gap = drive[0] - case.ends[0]
    rows += [
        (f"circuit minus whole model, {name}", v, nan, nan, n) for name, v in measures.spread(gap).items()
    ]
    names = case.question.setting.metrics
    if "kl" in names:
        kl = case.measured[0, :, names.index("kl")]
        inner = mean_interval(kl, case.question.clusters) if n > 1 else None
        rows.append(
            (
                "KL, mean",
                kl.mean(),
                nan if inner is None else inner.low,
                nan if inner is None else inner.high,
                n,
            )
        )
        rows.append(("KL, worst prompt", kl.max(), nan, nan, n))
    if f.stable is not None:
        rows.append(("pairwise Jaccard of bootstrap circuits", f.stable.pairwise, nan, nan, f.stable.draws))
    if f.held is not None:
        other = f.held[0]
        drive = other.measured[:1, :, other.search.column]
        lo, hi = measures.limits(other, drive)
        rows.append(("faithfulness, held out", other.share(drive)[0], lo[0], hi[0], other.question.runs.n))
    if f.roc is not None:
        rows.append(("ROC area against the truth", f.roc.area, nan, nan, f.roc.positives + f.roc.negatives))
    table = pd.DataFrame(rows, columns=["quantity", "value", "low", "high", "n"])
    table = table.astype({"value": float, "low": float, "high": float, "n": "int64"})
    choices = case.question.choices.data()
    for name in SIX:
        table[name] = choices[name]
    if f.held is not None:
        table.loc[table["quantity"] == "faithfulness, held out", "prompts"] = f.held[
            0
        ].question.choices.prompts
    return table


def _units(f: Found) -> pd.DataFrame:
    import pandas as pd

    m, spans = f.minimality[1], f.small.question.runs.spans
    names = [f.small.units.name(int(u), spans) for u in m.units]
    table = pd.DataFrame({"unit": names, "change": m.change, "p": m.p})
    return table.astype({"unit": object, "change": float, "p": float})


def _families(f: Found) -> pd.DataFrame:
    import pandas as pd

    rows = [("of its shape", i, v, float("nan")) for i, v in enumerate(f.shape[1])]
    rows += [("of the strongest", i, v, float("nan")) for i, v in enumerate(f.strong[1])]
    s = f.shuffled
    rows += [("shuffled labels", i, v, e) for i, (v, e) in enumerate(zip(s.share, s.effect, strict=True))]
    table = pd.DataFrame(rows, columns=["family", "draw", "value", "effect"])
    return table.astype({"family": object, "draw": "int64", "value": float, "effect": float})


def _about(f: Found) -> pd.DataFrame:
    import pandas as pd

    q = f.case.question
    free = ~f.case.units.fixed
    off = int((f.case.kept & free & ~connected(q.graph, f.case.kept)).sum())
    rows = {
        "circuit": f"{len(f.case.chosen):,} {f.case.noun}s of {int(f.case.units.free.sum()):,}; found by: {f.circuit.how}",
        "metric": q.setting.metrics[0],
        "choices": json.dumps(q.choices.data()),
        "spans": json.dumps(list(q.runs.spans)),
        "group": str(q.graph.shape[0][0] // max(1, q.graph.shape[0][1])),
        "how": f.circuit.how,
        "scores": f.origin,
        "edges on no path": str(off),
        "prompts of the tests with many circuits": str(f.small.question.runs.n),
        "forwards (circuit x prompt)": str(
            q.runs.forwards + (f.small.question.runs.forwards if f.small is not f.case else 0)
        ),
        "random circuits have": f.shape[0].label or f.shape[0].why,
    }
    return pd.DataFrame({"name": list(rows), "value": list(rows.values())})
