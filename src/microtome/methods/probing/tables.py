"""The tables and effects of a probe's result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.controls.clusters import FloatArray
from microtome.controls.discrimination import auroc, auroc_items, calibration
from microtome.controls.intervals import mean_interval, proportion_interval
from microtome.controls.shuffles import Shuffles
from microtome.methods.headlines import headline_table
from microtome.methods.probing.capture import address
from microtome.methods.probing.design import Design
from microtome.methods.probing.sweeping import Cell, Swept
from microtome.results import seeds
from microtome.results.labelled import Labelled
from microtome.results.verdicts import Control

if TYPE_CHECKING:
    import pandas as pd

    from microtome.methods.probing.asking import Asked
    from microtome.methods.probing.technique import Baseline

METRICS = ("auroc", "accuracy")
BINS = 8
SHOWN = 6


def effects(d: Design, swept: Swept) -> Labelled:
    """[site, position, prompt, metric] on the test texts, NaN where a kind has no probe."""
    sites = tuple(dict.fromkeys(c.place[0] for c in swept.cells))
    positions = tuple(dict.fromkeys(c.place[1] for c in swept.cells))
    kinds = tuple(dict.fromkeys(c.kind for c in swept.cells))
    metrics = tuple(f"{k} {m}" for k in kinds for m in METRICS)
    values = np.full((len(sites), len(positions), len(d.test), len(metrics)), np.nan)
    for c in swept.cells:
        at = sites.index(c.place[0]), positions.index(c.place[1])
        for m, item in zip(METRICS, _items(d, c), strict=True):
            values[(*at, slice(None), metrics.index(f"{c.kind} {m}"))] = item
    return Labelled(values, ("site", "position", "prompt", "metric"),
                    {"site": sites, "position": positions, "prompt": tuple(d.test.tolist()), "metric": metrics})  # fmt: skip


def _items(d: Design, c: Cell) -> tuple[FloatArray, FloatArray]:
    scores, truth = c.scores[d.test], d.truth[d.test]
    return auroc_items(scores, truth), ((scores > 0) == truth).astype(np.float64)


def all_tables(
    d: Design,
    swept: Swept,
    twin: Swept | None,
    baselines: Sequence[Baseline],
    chosen: Cell,
    shuffles: Shuffles,
    alpha: float,
) -> dict[str, Any]:
    """Every table but those of the causal test and of asking."""
    band = _band(swept, alpha)
    return {
        "cells": _cells(d, swept, band),
        "probes": _lines(d, swept, twin, baselines, band),
        "selected": _selected(d, chosen, baselines, shuffles),
        "reliability": _reliability(d, chosen),
    }


def headline(d: Design, swept: Swept, chosen: Cell, baselines: Sequence[Baseline], causal: Control, alpha: float) -> pd.DataFrame:  # fmt: skip
    """The numbers to read first: the probe beside its best rival, and what the direction does."""
    low, high = _band(swept, alpha)
    rows: list[dict[str, Any]] = [
        {"label": f"AUROC on held-out texts ({chosen.kind.replace('_', '-')} at {address(chosen.place)})", **_scored(d, chosen.scores), "null_low": low, "null_high": high,
         "null": "shuffled labels, best closed-form probe of all places"}
    ]  # fmt: skip
    best = max(baselines, key=lambda b: _scored(d, b.scores)["value"])
    rival = _scored(d, best.scores)
    rows.append(
        {
            "label": "the same, beside its best rival",
            **_scored(d, chosen.scores),
            "null_low": rival["low"],
            "null_high": rival["high"],
            "null": f"{best.name}, 95 %",
        }
    )
    seen = causal.observed
    if isinstance(seen, Mapping) and causal.null is not None:
        rows.append({"label": "answers moved by the direction", "value": float(seen["move (nats)"]), "unit": "nats", "n": causal.n,
                     "null_low": causal.null[0], "null_high": causal.null[1], "null": "shuffled-label directions of its length"})  # fmt: skip
    return headline_table(rows)


def _band(swept: Swept, alpha: float) -> tuple[float, float]:
    """Between which AUROCs all closed-form cells stay under shuffled labels, but in alpha of the shuffles."""
    return float(np.quantile(swept.lowest, alpha)), float(np.quantile(swept.highest, 1 - alpha))


def _cells(d: Design, swept: Swept, band: tuple[float, float]) -> pd.DataFrame:
    rows = []
    for c in swept.cells:
        own = swept.own.get((c.place, c.kind))
        null = band if c.kind not in ("logistic", "attention") else _range(own)
        for metric, items in zip(METRICS, _items(d, c), strict=True):
            at = mean_interval(items, d.units[d.test], of="groups")
            low, high = null if metric == "auroc" else (np.nan, np.nan)
            rows.append({"site": c.place[0], "position": c.place[1], "metric": f"{c.kind} {metric}", "low": max(0.0, float(at.low)),
                         "high": min(1.0, float(at.high)), "null_low": low, "null_high": high})  # fmt: skip
    return _table(rows)


def _range(own: FloatArray | None) -> tuple[float, float]:
    return (np.nan, np.nan) if own is None or not len(own) else (float(own.min()), float(own.max()))


def _lines(
    d: Design, swept: Swept, twin: Swept | None, baselines: Sequence[Baseline], band: tuple[float, float]
) -> pd.DataFrame:
    """What one figure draws: per site the probe that validation chose there, the twin's likewise, and the baselines."""
    rows = []
    for what, one in (("probe", swept), ("random twin", twin)):
        if one is None:
            continue
        for site in dict.fromkeys(c.place[0] for c in one.cells):
            best = max((c for c in one.cells if c.place[0] == site), key=lambda c: c.validation)
            rows.append(
                {
                    "what": what,
                    "site": site,
                    "position": str(best.place[1]),
                    "kind": best.kind,
                    **_scored(d, best.scores),
                    "null_low": band[0],
                    "null_high": band[1],
                }
            )
    rows += [
        {
            "what": b.name,
            "site": "",
            "position": "",
            "kind": b.detail,
            **_scored(d, b.scores),
            "null_low": np.nan,
            "null_high": np.nan,
        }
        for b in baselines
    ]
    return _table(rows)


def _scored(d: Design, scores: FloatArray) -> dict[str, float]:
    at = mean_interval(auroc_items(scores[d.test], d.truth[d.test]), d.units[d.test], of="groups")
    return {
        "value": float(at.estimate),
        "low": max(0.0, float(at.low)),
        "high": min(1.0, float(at.high)),
        "n": len(d.test),
    }


def probabilities(d: Design, scores: FloatArray) -> FloatArray:
    """Scores as probabilities on the test texts: a logistic curve fitted on the validation texts (Platt 1999)."""
    from sklearn.linear_model import LogisticRegression

    held = scores[d.validation]
    scale = float(held.std()) or 1.0
    curve = LogisticRegression(C=10.0).fit(held[:, None] / scale, d.truth[d.validation])
    return np.asarray(curve.predict_proba(scores[d.test][:, None] / scale)[:, 1], dtype=np.float64)


def _selected(d: Design, chosen: Cell, baselines: Sequence[Baseline], shuffles: Shuffles) -> pd.DataFrame:
    from sklearn.metrics import average_precision_score

    truth, units, scores = d.truth[d.test], d.units[d.test], chosen.scores[d.test]
    base = float(truth.mean())
    right = mean_interval(((scores > 0) == truth).astype(float), units, of="groups")
    told = calibration(probabilities(d, chosen.scores), truth)
    area = _scored(d, chosen.scores)
    n = len(truth)
    rows: list[dict[str, Any]] = [
        {"quantity": "AUROC", "value": area["value"], "low": area["low"], "high": area["high"], "n": n, "note": f"{chosen.kind} at {address(chosen.place)}, chosen on validation texts"},
        {"quantity": "AUROC on validation texts", "value": chosen.validation, "n": len(d.validation), "note": "it chose the probe, so it is too high"},
        {"quantity": "AUPRC", "value": float(average_precision_score(truth, scores)), "n": n, "note": f"base rate {base:.3g}"},
        {"quantity": "AUPRC by chance", "value": base, "n": n, "note": "share of the positive class"},
        {"quantity": "accuracy", "value": float(right.estimate), "low": float(right.low), "high": float(right.high), "n": n, "note": f"larger class {max(base, 1 - base):.3g}"},
        {"quantity": "calibration error", "value": told.ece, "n": n, "note": "mean |said - seen|, probabilities from a curve fitted on validation texts"},
        {"quantity": "Brier score", "value": told.brier, "n": n, "note": f"{told.brier_base:.3g} for always saying the base rate"},
        {"quantity": "smallest p within reach", "value": shuffles.smallest_p, "n": shuffles.labels.shape[1], "note": f"{shuffles.labels.shape[1]} shuffles of {len(set(d.units))} groups"},
    ]  # fmt: skip
    for b in baselines:
        area = _scored(d, b.scores)
        rows.append(
            {
                "quantity": f"AUROC of {b.name}",
                "value": area["value"],
                "low": area["low"],
                "high": area["high"],
                "n": n,
                "note": b.detail,
            }
        )
    made = _table(rows)
    made["note"] = made["note"].fillna("")
    return made


def _reliability(d: Design, chosen: Cell) -> pd.DataFrame:
    said = probabilities(d, chosen.scores)
    truth = d.truth[d.test]
    parts = np.array_split(np.argsort(said, kind="stable"), min(BINS, len(said)))
    rows = []
    for part in parts:
        share = proportion_interval(truth[part].astype(float))
        rows.append({"predicted": float(said[part].mean()), "observed": float(share.estimate), "low": float(share.low), "high": float(share.high),
                     "n": len(part)})  # fmt: skip
    return _table(rows)


def places(tensors: Mapping[str, Any], site: str, kind: str, moved: str) -> pd.DataFrame:
    """Which direction belongs to which address; "chosen" is the linear probe that validation chose."""
    return _table([
        {"direction": name.removeprefix("direction/"), "site": moved if name == "displacement" else site, "chosen": name == f"direction/{kind}"}
        for name in tensors
    ])  # fmt: skip


def asked(
    d: Design, tried: Sequence[tuple[Asked, float]], best: Asked, scores: FloatArray, n: int
) -> pd.DataFrame:
    """Every wording with its AUROC on validation texts; the chosen one's on test texts too."""
    test = float(auroc(scores[d.test], d.truth[d.test])[0])
    return _table([{"wording": one.name, "validation": held, "n": n, "test": test if one is best else np.nan, "chosen": one is best, "template": one.template}
                   for one, held in tried])  # fmt: skip


def examples(d: Design, chosen: Cell, seed: int) -> list[dict[str, Any]]:
    """Test texts drawn at random, with label and score."""
    rows = seeds.rng(seed, "examples").permutation(d.test)[:SHOWN]
    return [{"prompt": d.data.texts[i], "label": d.names[int(d.truth[i])], "score": float(chosen.scores[i]), "group": str(d.units[i])}
            for i in rows.tolist()]  # fmt: skip


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows)
