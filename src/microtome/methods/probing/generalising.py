"""The generalisation matrix: probes trained on one dataset, tested on another.

High accuracy at home is not a common direction (Marks & Tegmark 2023): rows are trained on, columns tested on, with the cosines
between the directions, each beside what shuffled training labels give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.controls.clusters import FloatArray
from microtome.controls.discrimination import auroc, auroc_items
from microtome.controls.intervals import mean_interval
from microtome.controls.shuffles import shuffled_columns
from microtome.errors import ModelError, TaskError
from microtome.methods.headlines import headlined
from microtome.methods.probing.capture import (
    MEAN,
    Matrix,
    Place,
    address,
    capture,
    encoded,
    own_token,
    places_of,
)
from microtome.methods.probing.closed import factored, fit
from microtome.methods.probing.controls import LEAK
from microtome.methods.probing.design import Design, design, split_control
from microtome.methods.probing.options import CLOSED, ProbeOptions, checked_kinds
from microtome.methods.probing.surface import bag_of_words
from microtome.methods.probing.technique import probe
from microtome.methods.probing.twin import random_twin
from microtome.results import seeds
from microtome.results.labelled import Labelled
from microtome.results.result import Result
from microtome.results.technique import progress, technique
from microtome.results.verdicts import Control, verdict

if TYPE_CHECKING:
    import pandas as pd

    from microtome.facade import Model
    from microtome.tasks.labelled import LabelledText

MANDATORY = ("split", "own_token", "shuffled_labels", "random_twin", "bag_of_words")
LEAST = 8
"""Texts of a column that share no group with the row's training texts, below which it is not scored."""


@dataclass(frozen=True)
class _Set:
    """One dataset: its design, activations by place, and which of its test texts each other dataset may be tested on."""

    d: Design
    values: dict[Place, Matrix]


@technique(
    "generalisation",
    "1",
    controls=MANDATORY,
    mandatory=MANDATORY,
    figure="microtome.figures.generalisation:draw",
    random=True,
)
def generalisation(
    model: Model,
    data: Sequence[LabelledText],
    *,
    sites: str | Sequence[str] = "L*.resid_post@-1",
    kinds: str | Sequence[str] = CLOSED,
    each: bool = False,
    options: ProbeOptions | Mapping[str, Any] | None = None,
    alpha: float = 0.001,
    seed: int = 0,
) -> Result:
    """Whether a probe trained on one dataset tells the classes of another apart.

    data: two or more datasets, whose positive classes are meant to be one concept. sites, kinds: as in `probe` (kinds with a
    closed form); one place and kind for all, chosen by the mean AUROC on each dataset's own validation texts, so that no
    number of the matrix had a part in it. each: run `probe` on every dataset as well (with all of `kinds`), as children. Test texts that share a group with the row's training texts are left out.

    Returns a Result: effects [site, prompt, metric], metric "<trained on> -> <tested on>", as in `probe`; tables "matrix"
    (AUROC, interval, null, bag of words and random twin per pair) and "cosines". The verdict's p is of the mean over all pairs
    of different datasets, against shuffled training labels.

    Raises
    ------
    TaskError: fewer than two datasets, two of one name, kinds without a closed form; else as `probe`.
    """
    o = ProbeOptions.of(options)
    wanted = [k for k in checked_kinds(kinds) if k in (*CLOSED, "mean_pooled")]
    names = [one.name for one in data]
    if len(data) < 2 or len(set(names)) < len(names):
        raise TaskError(f"{len(data)} datasets called {', '.join(names)}", why="a matrix compares two or more, by name",
                        instead="dataclasses.replace(data, name=...) for those of one name")  # fmt: skip
    places = places_of(model, sites)
    every = [
        *places,
        *([(b, MEAN) for b in dict.fromkeys(p[0] for p in places)] if "mean_pooled" in wanted else []),
    ]
    designs = [design(one, o, seed) for one in data]
    texts = [encoded(model, one, places) for one in data]
    sets = [_Set(d, capture(model, t, every, batch=o.batch)) for d, t in zip(designs, texts, strict=True)]
    children = []
    for k, one in enumerate(data if each else ()):
        progress(k, len(data), "datasets", one.name)
        children.append(probe(model, one, sites=sites, kinds=kinds, options=o, alpha=alpha, seed=seed))
    place, kind = _choose(sets, every, [k for k in wanted if k in CLOSED], o)
    scored = _matrix(sets, place, kind, o, seed)
    twin = _twin(model, sets, texts, place, kind, o, seed)
    words = [_words(s.d, sets) for s in sets]
    ran = [_splits(designs), own_token(model, texts[0], sets[0].values, seed)]
    control, p, least = _shuffled(sets, scored)
    ran.append(control)
    ran += [
        _twin_control(sets, scored, twin),
        _beats(
            "bag_of_words",
            "that the words the datasets share tell the classes apart",
            sets,
            scored.scores,
            words,
        ),
    ]
    return headlined(Result(
        "generalisation", effects=_effects(sets, place, scored.scores, names),
        tables={"matrix": _table(sets, scored, words, twin, alpha), "cosines": _cosines(sets, scored, alpha),
                "about": _frame([{"name": "place", "value": address(place)}, {"name": "kind", "value": kind}]),
                **_stages(names, children)},
        tensors={f"direction/{n}": scored.real[i].astype(np.float32) for i, n in enumerate(names)}, controls=ran,
        verdict=verdict(ran, MANDATORY, p, alpha, least), children=children,
        raw_examples=[{"prompt": s.d.data.texts[int(i)], "dataset": s.d.data.name, "label": s.d.names[int(s.d.truth[i])]}
                      for s in sets for i in seeds.rng(seed, "examples").permutation(s.d.test)[:2]],
    ))  # fmt: skip


def _stages(names: Sequence[str], children: Sequence[Result]) -> dict[str, Any]:
    """The names by which the probes of single datasets are told apart, where there are some."""
    rows = [
        {"stage": f"probe of {name}", "verdict": one.verdict.word}
        for name, one in zip(names, children, strict=False)
    ]
    return {"stages": _frame(rows)} if rows else {}


@dataclass(frozen=True)
class _Scored:
    """scores[i][j] [item of j] of the probe trained on i; null[i][j] [draw]; real [set, d]; fakes[i] [draw, d]; least p."""

    scores: list[list[FloatArray]]
    null: list[list[FloatArray]]
    real: FloatArray
    fakes: list[FloatArray]
    least: float


def _choose(
    sets: Sequence[_Set], places: Sequence[Place], kinds: Sequence[str], o: ProbeOptions
) -> tuple[Place, str]:
    found: dict[tuple[Place, str], float] = {}
    for done, place in enumerate(places):
        for s in sets:
            site = factored(s.values[place][s.d.train], kinds, ridge=o.ridge)
            for kind, one in fit(site, s.d.truth[s.d.train], kinds).items():
                held = one.scores(s.values[place][s.d.validation])[:, 0]
                found[place, kind] = found.get((place, kind), 0.0) + float(
                    auroc(held, s.d.truth[s.d.validation])[0]
                )
        progress(done + 1, len(places), "places", "probing")
    return max(found, key=lambda k: found[k])


def _matrix(sets: Sequence[_Set], place: Place, kind: str, o: ProbeOptions, seed: int) -> _Scored:
    scores, null, real, fakes, least = [], [], [], [], 0.0
    for s in sets:
        d, rows = s.d, s.values[place].astype(np.float64)
        site = factored(rows[d.train], [kind], ridge=o.ridge)
        shuffles = shuffled_columns(
            d.truth[d.train],
            d.units[d.train],
            draws=o.permutations,
            seed=seed,
            name=f"generalisation/{d.data.name}",
        )
        one = fit(site, d.truth[d.train], [kind])[kind]
        many = fit(site, shuffles.labels, [kind])[kind]
        scores.append([one.scores(t.values[place])[:, 0] for t in sets])
        null.append([_area(many.scores(t.values[place]), t, s) for t in sets])
        real.append(one.weights[:, 0])
        fakes.append(many.weights.T)
        least = max(least, shuffles.smallest_p)
    return _Scored(scores, null, np.array(real), fakes, least)


def fair(s: _Set, t: _Set) -> np.ndarray:
    """Test texts of t that share no group and no wording with the training texts of s; [] where too few of a class are left.

    Groups are those of the groupings that the split of s holds apart.
    """
    held = [k for k in s.d.held if k in t.d.data.groups]
    met = {(k, s.d.data.groups[k][i]) for k in held for i in s.d.train.tolist()}
    said = {s.d.data.texts[i] for i in s.d.train.tolist()}
    rows = np.array([i for i in t.d.test.tolist() if t.d.data.texts[i] not in said
                     and not any((k, t.d.data.groups[k][i]) in met for k in held)], dtype=np.int64)  # fmt: skip
    both = len(rows) >= LEAST and len(set(t.d.truth[rows].tolist())) == 2
    return rows if both else np.array([], dtype=np.int64)


def _area(scores: FloatArray, t: _Set, s: _Set) -> FloatArray:
    rows = fair(s, t)
    return auroc(scores[rows], t.d.truth[rows]) if len(rows) else np.full(scores.shape[1], np.nan)


def _mean(values: list[list[FloatArray]]) -> FloatArray:
    """The mean over pairs of different datasets, [draw]."""
    off = [v for i, row in enumerate(values) for j, v in enumerate(row) if i != j and np.isfinite(v).all()]
    if not off:
        raise TaskError("no pair of datasets can be tested", why="their texts share groups with one another's training texts",
                        instead="datasets about other entities, or more of them")  # fmt: skip
    return np.asarray(np.mean(off, axis=0), dtype=np.float64)


def _shuffled(sets: Sequence[_Set], scored: _Scored) -> tuple[Control, float, float]:
    real = [
        [_area(s[:, None], t, sets[i]) for s, t in zip(row, sets, strict=True)]
        for i, row in enumerate(scored.scores)
    ]
    seen, null = float(_mean(real)[0]), _mean(scored.null)
    p = (1 + int((null >= seen - 1e-12).sum())) / (1 + len(null))
    own = float(np.mean([scored.null[i][i].mean() for i in range(len(sets))]))
    return Control(
        "shuffled_labels", "that any probe of the one dataset does so on the others", f"shuffled training labels at chance (mean AUROC at most {LEAK:g}), the mean over other datasets above 95 % of theirs",
        {"mean over other datasets": seen, "p": p, "mean of shuffled": float(null.mean()), "at home, shuffled": own}, bool(p <= 0.05 and max(null.mean(), own) <= LEAK), len(null),
        null=(float(null.min()), float(null.max())),
    ), max(p, scored.least), scored.least  # fmt: skip


def _splits(designs: Sequence[Design]) -> Control:
    """The split control of every dataset at once."""
    each = [split_control(d) for d in designs]
    return Control(each[0].name, each[0].rules_out, each[0].expected, {d.data.name: _said(c) for d, c in zip(designs, each, strict=True)},
                   all(c.passed for c in each), sum(c.n for c in each), gates=True, detail="; ".join(dict.fromkeys(c.detail for c in each if c.detail)))  # fmt: skip


def _said(control: Control) -> str:
    """What a control observed, in words."""
    seen = control.observed
    return ", ".join(f"{k}: {v}" for k, v in seen.items()) if isinstance(seen, Mapping) else str(seen)


def _twin(model: Model, sets: Sequence[_Set], texts: Sequence[Any], place: Place, kind: str, o: ProbeOptions, seed: int) -> list[list[FloatArray]] | str:  # fmt: skip
    """The twin's scores at the same place, or why there are none."""
    if not o.twin:
        return "it was switched off"
    try:
        twin = random_twin(model, seed)
    except ModelError as error:
        return f"{error.what}: {error.why}"
    values = [
        _Set(s.d, capture(twin, t, [place], batch=o.batch, note="reading the random twin"))
        for s, t in zip(sets, texts, strict=True)
    ]
    return _matrix(values, place, kind, o, seed).scores


def _twin_control(sets: Sequence[_Set], scored: _Scored, twin: list[list[FloatArray]] | str) -> Control:
    rules_out = "that untrained weights generalise as well: then it is in the words and the wiring"
    if isinstance(twin, str):
        return Control.not_run(
            "random_twin", rules_out, "the mean over other datasets above the twin's", twin
        )
    return _beats("random_twin", rules_out, sets, scored.scores, twin)


def _words(d: Design, sets: Sequence[_Set]) -> list[FloatArray]:
    return [bag_of_words(d, t.d.data.texts) for t in sets]


def _beats(name: str, rules_out: str, sets: Sequence[_Set], mine: list[list[FloatArray]], other: list[list[FloatArray]]) -> Control:  # fmt: skip
    """The mean over pairs of different datasets, by an interval of the difference over the test texts' groups."""
    gaps, units, areas = [], [], ([], [])  # type: ignore[var-annotated]
    for i, s in enumerate(sets):
        for j, t in enumerate(sets):
            rows = fair(s, t)
            if i == j or not len(rows):
                continue
            items = [auroc_items(scores[i][j][rows], t.d.truth[rows]) for scores in (mine, other)]
            weight = 1 / len(rows)
            gaps.append((items[0] - items[1]) * weight)
            units += [f"{t.d.data.name}/{u}" for u in t.d.units[rows]]
            for side, values in zip(areas, items, strict=True):
                side.append(float(values.mean()))
    joined = np.concatenate(gaps)
    gap = mean_interval(joined * len(joined) / len(gaps), units, of="groups")
    return Control(name, rules_out, "the mean over other datasets above it, the 95 % interval of the difference above 0",
                   {"probe": float(np.mean(areas[0])), "baseline": float(np.mean(areas[1])), "difference at least": float(gap.low)}, bool(gap.low > 0), len(joined))  # fmt: skip


def _effects(
    sets: Sequence[_Set], place: Place, scores: list[list[FloatArray]], names: list[str]
) -> Labelled:
    prompts = [f"{s.d.data.name} {i}" for s in sets for i in s.d.test.tolist()]
    metrics = tuple(f"{a} -> {b}" for a in names for b in names)
    values = np.full((1, len(prompts), len(metrics)), np.nan)
    for i, s in enumerate(sets):
        for j, t in enumerate(sets):
            rows = fair(s, t)
            if len(rows):
                at = [prompts.index(f"{names[j]} {r}") for r in rows.tolist()]
                values[0, at, metrics.index(f"{names[i]} -> {names[j]}")] = auroc_items(
                    scores[i][j][rows], t.d.truth[rows]
                )
    return Labelled(
        values,
        ("site", "prompt", "metric"),
        {"site": (address(place),), "prompt": tuple(prompts), "metric": metrics},
    )


def _table(sets: Sequence[_Set], scored: _Scored, words: list[list[FloatArray]], twin: list[list[FloatArray]] | str, alpha: float) -> pd.DataFrame:  # fmt: skip
    off = [v for row in scored.null for v in row if np.isfinite(v).all()]
    low, high = float(np.quantile(np.min(off, 0), alpha)), float(np.quantile(np.max(off, 0), 1 - alpha))
    largest = np.max(off, 0)
    rows = []
    for i, s in enumerate(sets):
        for j, t in enumerate(sets):
            at = fair(s, t)
            row: dict[str, Any] = {"trained": s.d.data.name, "tested": t.d.data.name, "n": len(at)}
            if len(at):
                items = auroc_items(scored.scores[i][j][at], t.d.truth[at])
                limits = mean_interval(items, t.d.units[at], of="groups")
                value = float(items.mean())
                row |= {"value": value, "low": max(0.0, float(limits.low)), "high": min(1.0, float(limits.high)), "null_low": low, "null_high": high,
                        "p": (1 + int((largest >= value - 1e-12).sum())) / (1 + len(largest)),
                        "words": float(auroc(words[i][j][at], t.d.truth[at])[0]),
                        "twin": np.nan if isinstance(twin, str) else float(auroc(twin[i][j][at], t.d.truth[at])[0])}  # fmt: skip
            rows.append(row)
    return _frame(rows)


def _cosines(sets: Sequence[_Set], scored: _Scored, alpha: float) -> pd.DataFrame:
    """Cosine of each two directions; null_high: what |cosine| of shuffled-label directions stays below, but in alpha."""
    unit = scored.real / np.linalg.norm(scored.real, axis=1, keepdims=True)
    fakes = [f / np.linalg.norm(f, axis=1, keepdims=True) for f in scored.fakes]
    rows = []
    for i, s in enumerate(sets):
        for j, t in enumerate(sets):
            null = np.abs((fakes[i] * fakes[j]).sum(1)) if i != j else np.array([np.nan])
            rows.append({"first": s.d.data.name, "second": t.d.data.name, "value": float(unit[i] @ unit[j]), "null_high": float(np.quantile(null, 1 - alpha))})  # fmt: skip
    return _frame(rows)


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows)
