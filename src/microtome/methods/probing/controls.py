"""The controls of a probe: each says what else the score could come from, and compares on the same test texts."""

from __future__ import annotations

import numpy as np

from microtome.controls.clusters import FloatArray
from microtome.controls.discrimination import auroc, auroc_items
from microtome.controls.intervals import Interval, mean_interval
from microtome.controls.shuffles import shuffled_columns
from microtome.methods.probing.capture import Matrix, address
from microtome.methods.probing.closed import factored, fit
from microtome.methods.probing.design import Design
from microtome.methods.probing.fitted import Standardised, logistic
from microtome.methods.probing.options import ProbeOptions
from microtome.methods.probing.sweeping import Cell, Swept
from microtome.results import seeds
from microtome.results.technique import progress
from microtome.results.verdicts import Control

LEAK = 0.55
"""Mean AUROC of shuffled labels from which something is learned that labels cannot carry."""
LEVEL = 0.95


def interval(d: Design, scores: FloatArray, level: float = LEVEL) -> Interval:
    """The AUROC on the test texts, with an interval clustered by unit."""
    return mean_interval(
        auroc_items(scores[d.test], d.truth[d.test]), d.units[d.test], level=level, of="groups"
    )


def shuffled(cell: Cell, swept: Swept, d: Design) -> tuple[Control, float]:
    """Labels shuffled between groups, and the family-wise p of the best closed-form probe.

    Fails where shuffled labels can be predicted (a group on both sides of the split), and where the probe does no better.
    """
    own = swept.own[cell.place, cell.kind]
    seen = float(auroc(cell.scores[d.test], d.truth[d.test])[0])
    p = (1 + int((swept.highest >= seen - 1e-12).sum())) / (1 + len(swept.highest))
    mean = float(own.mean())
    return Control(
        "shuffled_labels", "that a probe of this size scores so on any labels, or that the split leaks",
        f"shuffled labels at chance (mean AUROC at most {LEAK:g}), and the best closed-form probe above the best of them over all places and kinds",
        {"mean of shuffled": mean, "largest of all cells": float(swept.highest.max()), "probe": seen, "p": p},
        bool(mean <= LEAK and p <= 0.05), len(own), null=(float(swept.lowest.min()), float(swept.highest.max())),
    ), p  # fmt: skip


def shuffled_logistic(
    cell: Cell, values: Matrix, d: Design, options: ProbeOptions, seed: int
) -> tuple[Control, FloatArray]:
    """The logistic probe at one site refitted on shuffled labels."""
    draws = options.logistic_permutations
    labels = shuffled_columns(
        d.truth, d.units, draws=draws, seed=seed, parts=d.parts, name="logistic shuffles"
    ).labels
    null, rows = np.empty(draws), Standardised(values[d.train])
    for k in range(draws):
        probe = rows.logistic(labels[d.train, k], C=options.C)
        null[k] = auroc(probe.scores(values[d.test])[:, 0], labels[d.test, k])[0]
        progress(k + 1, draws, "shuffles", "logistic")
    seen = float(auroc(cell.scores[d.test], d.truth[d.test])[0])
    p = (1 + int((null >= seen - 1e-12).sum())) / (1 + draws)
    return Control(
        "shuffled_logistic", "that logistic regression scores so on any labels", f"at chance on shuffled labels, the probe above 95 % of them; p no smaller than {1 / (draws + 1):.2g}",
        {"probe": seen, "mean of shuffled": float(null.mean()), "p": p}, bool(null.mean() <= LEAK and p <= 0.05), draws,
        null=(float(null.min()), float(null.max())), detail=f"at {address(cell.place)}",
    ), null  # fmt: skip


def random_direction(cell: Cell, values: Matrix, d: Design, draws: int, seed: int) -> Control:
    """Isotropic directions, each turned the way that fits the training texts."""
    rows = values.astype(np.float64)
    random = seeds.rng(seed, "probe/random direction").standard_normal((rows.shape[1], draws))
    scores = rows @ random
    turn = np.where(auroc(scores[d.train], d.truth[d.train]) >= 0.5, 1.0, -1.0)
    null = auroc(scores[d.test] * turn, d.truth[d.test])
    seen = float(auroc(cell.scores[d.test], d.truth[d.test])[0])
    p = (1 + int((null >= seen - 1e-12).sum())) / (1 + draws)
    return Control("random_direction", "that any direction of this site tells the classes apart", "the probe above 95 % of random directions",
                   {"probe": seen, "median of random": float(np.median(null)), "p": p}, p <= 0.05, draws,
                   null=(float(null.min()), float(null.max())))  # fmt: skip


def beats(name: str, rules_out: str, d: Design, probe: FloatArray, other: FloatArray, detail: str = "") -> Control:  # fmt: skip
    """Whether the probe's AUROC exceeds another's on the same test texts, by an interval of the difference."""
    mine, theirs = (auroc_items(s[d.test], d.truth[d.test]) for s in (probe, other))
    gap = mean_interval(mine - theirs, d.units[d.test], level=LEVEL, of="groups")
    return Control(name, rules_out, "the probe's AUROC above it, the 95 % interval of the difference above 0",
                   {"probe": float(mine.mean()), "baseline": float(theirs.mean()), "difference at least": float(np.nan_to_num(gap.low, nan=-1.0))},
                   bool(gap.low > 0), len(d.test), detail=detail)  # fmt: skip


def selectivity(cell: Cell, values: Matrix, d: Design, options: ProbeOptions, seed: int) -> Control:
    """Accuracy on the labels minus accuracy on control labels (Hewitt & Liang 2019).

    Control labels: a coin per type, the same in training and test, so that they can only be known by heart; split by text,
    since types must recur, in parts of the sizes of the real ones. Types: the grouping with most groups that recur, else the
    last word.
    """
    rules_out = "that the probe is large enough to know anything by heart"
    expected = "accuracy on the labels above accuracy on a coin per type"
    types, what = _types(d)
    rng = seeds.rng(seed, "control task")
    coin = dict(zip(sorted(set(types)), rng.random(len(set(types))) < 0.5, strict=True))
    labels = np.array([coin[t] for t in types])
    order = rng.permutation(len(types))
    train, rest = order[: len(d.train)], order[len(d.train) :]
    known = {types[i] for i in train}
    test = np.array([i for i in rest if types[i] in known], dtype=np.int64)
    if len(test) < 10 or len(set(labels[train])) < 2:
        return Control.not_run("selectivity", rules_out, expected, f"types ({what}) do not recur, so that a coin per type cannot be learned")  # fmt: skip
    real = float(((cell.scores[d.test] > 0) == d.truth[d.test]).mean())
    by_heart = _accuracy(cell.kind, values, labels, train, test, options)
    return Control("selectivity", rules_out, expected, {"selectivity": real - by_heart, "labels": real, "control labels": by_heart}, real > by_heart,
                   len(test), detail=f"types: {what}")  # fmt: skip


def _types(d: Design) -> tuple[list[str], str]:
    n = len(d.data)
    recurring = {k: v for k, v in d.data.groups.items() if 2 <= len(set(v)) < n}
    if recurring:
        name = max(recurring, key=lambda k: len(set(recurring[k])))
        return list(recurring[name]), name
    return [t.split()[-1].lower() for t in d.data.texts], "last word"


def _accuracy(
    kind: str,
    values: Matrix,
    labels: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    options: ProbeOptions,
) -> float:
    if kind == "logistic":
        probe = logistic(values[train], labels[train], C=options.C)
    else:
        probe = fit(factored(values[train], [kind], ridge=options.ridge), labels[train], [kind])[kind]
    return float(((probe.scores(values[test])[:, 0] > 0) == labels[test]).mean())
