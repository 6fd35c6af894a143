"""How far a circuit's faithfulness depends on the six choices behind it (Miller et al. 2024): sweep them all.

The circuit stays; one choice at a time is changed (or all combinations, grid=True), and each setting has random circuits of the
circuit's shape measured under the same choices. Positions are swept in two ways: one mask per span, and left-out edges ablated
at one span only. Prompts: each template, or random halves where there is one template, and whatever sets are given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from microtome.circuits import measures, nulls
from microtome.circuits.case import Case, case_of, check_model, settle
from microtome.circuits.circuit import (
    ABLATIONS,
    COMPONENTS,
    DIRECTIONS,
    GRANULARITIES,
    POSITIONS,
    Choices,
    Circuit,
)
from microtome.circuits.found import ends_control
from microtome.circuits.judged import SIX
from microtome.circuits.question import ask
from microtome.errors import MicrotomeError, SiteError
from microtome.methods.setting import common
from microtome.results import seeds
from microtome.results.labelled import Labelled
from microtome.results.result import Result
from microtome.results.technique import progress, technique
from microtome.results.verdicts import Control, verdict

if TYPE_CHECKING:
    from microtome.facade import Model
    from microtome.tasks.pairs import PairTask

KIND = "circuit_robustness"
CONTROLS = ("ends", "robust", "random_circuits", "all_six")
MANDATORY = CONTROLS[:3]
VALUES = {
    "granularity": GRANULARITIES,
    "component": COMPONENTS,
    "ablation": ABLATIONS,
    "positions": POSITIONS,
    "direction": DIRECTIONS,
}
MOST_SETS = 8
"""Most templates, and most spans, that are swept by themselves."""


@dataclass(frozen=True)
class Variant:
    """One setting. choice: which of the six differs ("" for the circuit's own); only: the span where edges are ablated."""

    choice: str
    setting: str
    choices: Choices
    task: PairTask
    only: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a setting: the case with its null circuits, or why it could not be measured."""

    variant: Variant
    case: Case | None = None
    null: np.ndarray = field(default_factory=lambda: np.zeros(0))
    why: str = ""


@technique(KIND, "1", controls=CONTROLS, mandatory=MANDATORY, figure="microtome.figures.robustness:draw", random=True)  # fmt: skip
def circuit_robustness(
    model: Model,
    circuit: Circuit,
    task: PairTask,
    *,
    sets: Mapping[str, PairTask] | None = None,
    metric: str = "",
    scored: Literal["last", "all"] = "last",
    grid: bool = False,
    prompts: int = 32,
    draws: int = 20,
    share: float = 0.8,
    alpha: float = 0.05,
    seed: int = 0,
) -> Result:
    """Measure a circuit under every setting of the six choices.

    Parameters
    ----------
    sets: further prompt sets by name. grid: all combinations of the first five choices, not one change at a time.
    prompts: at most so many of each set, drawn at random. draws: random circuits per setting. share: faithfulness has to lie
    within 1 - share of 1 everywhere. alpha: level of the random circuits; every setting must reach it, so it needs no correction.

    Effects: [setting, prompt, metric] circuit minus whole model, for the settings on `task` itself. Tables: settings (with the
    six choices in every row; those that could not be measured say why), nulls, about.

    Raises
    ------
    SiteError, ControlError, TaskError: as `evaluate`, where the circuit's own choices cannot be measured.
    """
    check_model(model, circuit)
    task = _some(task, prompts, seed)
    base = Variant("", "as found", replace(circuit.choices, prompts=""), task)
    first = _measured(model, circuit, base, metric, scored, draws, alpha, seed)
    variants = [*_variants(base, grid), *_prompt_sets(base, sets or {}, prompts, seed)]
    done = [first]
    for i, variant in enumerate(variants):
        try:
            done.append(_measured(model, circuit, variant, metric, scored, draws, alpha, seed, first.case))
        except (
            MicrotomeError
        ) as error:  # a setting that this model, task or circuit does not have is said, not skipped
            done.append(Outcome(variant, why=f"{error.what}: {error.why}"))
        progress(i + 1, len(variants), "settings", f"{variant.choice}: {variant.setting}")
    return _assemble(done, share, alpha)


def _some(task: PairTask, prompts: int, seed: int) -> PairTask:
    if task.n <= prompts:
        return task
    return task.subset(sorted(seeds.rng(seed, "robustness prompts").permutation(task.n)[:prompts].tolist()))


def _variants(base: Variant, grid: bool) -> Iterator[Variant]:
    """Changed choices that can be asked; denoising goes with corrupt ablation only."""
    own = base.choices
    if grid:
        for values in product(*VALUES.values()):
            changed = {n: v for n, v in zip(VALUES, values, strict=True) if v != getattr(own, n)}
            if changed and _possible({**own.data(), **changed}):
                yield Variant(
                    " and ".join(changed), ", ".join(changed.values()), _changed(own, changed), base.task
                )
    else:
        for name, values in VALUES.items():
            for value in values:
                changed = {name: value}
                if value == "denoise" and own.ablation != "corrupt":
                    changed["ablation"] = "corrupt"
                if name == "ablation" and own.direction == "denoise" and value != "corrupt":
                    changed["direction"] = "noise"
                if value != getattr(own, name):
                    yield Variant(name, ", ".join(changed.values()), _changed(own, changed), base.task)
    side = base.task.clean if own.direction == "noise" else base.task.corrupt
    for span in common(side)[:MOST_SETS]:
        yield Variant("positions", f"only @{span}", replace(own, positions="spans"), base.task, span)


def _changed(own: Choices, changed: Mapping[str, str]) -> Choices:
    return Choices(**{**own.data(), **changed})


def _possible(data: dict[str, object]) -> bool:
    return data["direction"] != "denoise" or data["ablation"] == "corrupt"


def _prompt_sets(base: Variant, sets: Mapping[str, PairTask], prompts: int, seed: int) -> Iterator[Variant]:
    task = base.task
    labels = task.groups.get("template", ())
    parts = {
        f"template {name}": [i for i, x in enumerate(labels) if x == name] for name in dict.fromkeys(labels)
    }
    if len(parts) < 2 and task.n > 3:
        order = seeds.rng(seed, "robustness halves").permutation(task.n).tolist()
        parts = {"one half": sorted(order[::2]), "other half": sorted(order[1::2])}
    for name, which in list(parts.items())[:MOST_SETS]:
        yield Variant("prompts", name, base.choices, task.subset(which))
    for name, other in sets.items():
        yield Variant("prompts", name, base.choices, _some(other, prompts, seed))


def _measured(
    model: Model,
    circuit: Circuit,
    v: Variant,
    metric: str,
    scored: str,
    draws: int,
    alpha: float,
    seed: int,
    first: Case | None = None,
) -> Outcome:
    case = _case(model, circuit, v, metric, scored, seed)
    spans = case.question.runs.spans
    if spans and not circuit.spans and first is not None and v.choices.granularity == first.question.choices.granularity:  # fmt: skip
        # a circuit without spans is laid on every span, and so are its null circuits
        drawn = nulls.of_shape(first, draws, alpha)
        masks = [np.tile(first.mask(s), len(spans)) | case.units.fixed for s in drawn.sets]
        return Outcome(v, case, case.share(case.driver(masks)) if masks else np.zeros(0), drawn.why)
    drawn = nulls.of_shape(case, draws, alpha)
    return Outcome(v, case, nulls.shares(case, drawn), drawn.why)


def _case(model: Model, circuit: Circuit, v: Variant, metric: str, scored: str, seed: int) -> Case:
    if v.choices.positions == "spans" and not common(v.task.clean):
        raise SiteError("these prompts have no spans in common", why="one mask per span would be one mask", instead="positions='all'")  # fmt: skip
    if not v.only:
        return case_of(model, circuit, v.task, v.choices, metric=metric, scored=scored, seed=seed)
    driver = metric or ("kl" if scored == "all" else v.task.metric)
    question = ask(model, v.task, v.choices, metrics=(driver,), scored=scored)
    size, spans = len(question.graph.edges), question.runs.spans
    elsewhere = torch.ones(len(spans), size, dtype=torch.bool)
    elsewhere[spans.index(v.only)] = False
    question.fixed = question.fixed | elsewhere.reshape(-1)
    return settle(question, circuit, seed)


def _assemble(done: list[Outcome], share: float, alpha: float) -> Result:
    import pandas as pd

    rows = [_row(o) for o in done]
    table = pd.DataFrame(rows)
    for name in SIX:
        table[name] = [
            o.variant.choices.data()[name] if o.case is None else o.case.question.choices.data()[name]
            for o in done
        ]
    ran = [o for o in done if o.case is not None]
    tested = [(nulls.p_of(_share(o), o.null), len(o.null)) for o in ran if len(o.null)]
    p = max((v for v, _ in tested), default=None)
    least = max((1 / (1 + n) for _, n in tested), default=None)
    first = ran[0].case
    assert first is not None
    controls = [ends_control(first.search), _robust(ran, share), _random(ran, alpha), _all_six(done)]
    drawn = [{"family": _label(o), "draw": i, "value": float(v)} for o in ran for i, v in enumerate(o.null)]
    about = {
        "circuit": f"{len(first.chosen):,} {first.noun}s",
        "metric": first.question.setting.metrics[0],
        "settings": str(len(done)),
    }
    return Result(
        KIND,
        effects=_effects(ran),
        tables={
            "settings": table,
            "nulls": pd.DataFrame(drawn, columns=["family", "draw", "value"]).astype({"family": object, "draw": "int64", "value": float}),
            "about": pd.DataFrame({"name": list(about), "value": list(about.values())}),
        },
        controls=controls,
        verdict=verdict(controls, MANDATORY, p, alpha, least),
    )  # fmt: skip


def _label(o: Outcome) -> str:
    return f"{o.variant.choice}: {o.variant.setting}" if o.variant.choice else o.variant.setting


def _share(o: Outcome) -> float:
    assert o.case is not None
    return float(o.case.share(o.case.measured[:1, :, o.case.search.column])[0])


def _row(o: Outcome) -> dict[str, object]:
    nan = float("nan")
    row: dict[str, object] = {"choice": o.variant.choice, "setting": o.variant.setting, "value": nan, "low": nan, "high": nan, "kl": nan,
                              "effect": nan, "null_low": nan, "null_high": nan, "p": nan, "n": o.variant.task.n, "why": o.why}  # fmt: skip
    if o.case is None:
        return row
    drive = o.case.measured[:1, :, o.case.search.column]
    low, high = measures.limits(o.case, drive)
    names = o.case.question.setting.metrics
    row |= {"value": _share(o), "low": float(low[0]), "high": float(high[0]), "effect": o.case.total}
    if "kl" in names:
        row["kl"] = float(o.case.measured[0, :, names.index("kl")].mean())
    if len(o.null):
        row |= {
            "null_low": float(o.null.min()),
            "null_high": float(o.null.max()),
            "p": nulls.p_of(_share(o), o.null),
        }
    return row


def _effects(ran: list[Outcome]) -> Labelled:
    """Circuit minus whole model where the prompts are the task's own. Shapes: [setting, prompt, metric]."""
    n = ran[0].variant.task.n
    same = [o for o in ran if o.variant.choice != "prompts"]
    rows = []
    for o in same:
        assert o.case is not None
        rows.append(o.case.measured[0, :, o.case.search.column] - o.case.ends[0])
    case = ran[0].case
    assert case is not None
    coords: dict[str, tuple[str | int, ...]] = {
        "site": tuple(_label(o) for o in same),
        "prompt": tuple(range(n)),
        "metric": case.question.setting.metrics[:1],
    }
    return Labelled(np.stack(rows)[..., None], ("site", "prompt", "metric"), coords)


def _robust(ran: list[Outcome], share: float) -> Control:
    found = {_label(o): _share(o) for o in ran}
    worst = max(found, key=lambda name: abs(1 - found[name]))
    observed = {"lowest": min(found.values()), "highest": max(found.values()), "worst": worst}
    passed = abs(1 - found[worst]) <= 1 - share + 1e-9
    bad = [f"{name} {value:.2f}" for name, value in found.items() if abs(1 - value) > 1 - share + 1e-9]
    return Control("robust", "that the circuit is faithful under some choices only", f"faithfulness within {1 - share:.3g} of 1 under every choice",
                   observed, passed, len(found), detail="; ".join(bad[:6]))  # fmt: skip


def _random(ran: list[Outcome], alpha: float) -> Control:
    name, rules_out = "random_circuits", "that under some choice any circuit of this shape would do"
    expected = (
        f"under every choice nearer to faithfulness 1 than random circuits of its shape (alpha {alpha:g})"
    )
    each = {_label(o): (nulls.p_of(_share(o), o.null), len(o.null)) for o in ran if len(o.null)}
    lacking = [_label(o) for o in ran if not len(o.null)]
    weak = [n for _, n in each.values() if 1 / (1 + n) > alpha]
    if not each or weak:
        why = (
            "no random circuits could be drawn"
            if not each
            else f"{min(weak)} random circuits cannot reach alpha {alpha:g}"
        )
        return Control.not_run(name, rules_out, expected, why)
    worst = max(each, key=lambda k: each[k][0])
    failed = [k for k, (p, _) in each.items() if p > alpha]
    detail = "; ".join(filter(None, [f"not under {', '.join(failed)}" if failed else "", f"none could be drawn under {', '.join(lacking)}" if lacking else ""]))  # fmt: skip
    return Control(
        name,
        rules_out,
        expected,
        {"largest p": each[worst][0], "under": worst},
        not failed,
        len(each),
        detail=detail,
    )


def _all_six(done: list[Outcome]) -> Control:
    """Whether each choice could be changed at all."""
    varied = {name for name in SIX for o in done if o.case is not None and name in o.variant.choice}
    missing = {
        name: next((o.why for o in done if name in o.variant.choice), "there is nothing to change it to")
        for name in SIX
        if name not in varied
    }
    detail = "; ".join(f"{name}: {why}" for name, why in missing.items())
    return Control("all_six", "that a choice which was never changed is the one that matters", "each of the six choices was changed at least once",
                   {"changed": len(varied)}, not missing, len(SIX), detail=detail)  # fmt: skip
