"""AUROC by items and by columns, reliability, and group-wise shuffles as columns."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from microtome.controls.discrimination import auroc, auroc_items, calibration
from microtome.controls.intervals import mean_interval
from microtome.controls.shuffles import shuffled_columns
from microtome.errors import ControlError


def test_columns_and_items_are_the_usual_area_with_ties_as_halves():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(80, 7)).round(1)
    truth = rng.random((80, 7)) < 0.3
    usual = [roc_auc_score(truth[:, k], scores[:, k]) for k in range(7)]
    np.testing.assert_allclose(auroc(scores, truth), usual)
    np.testing.assert_allclose([auroc_items(scores[:, k], truth[:, k]).mean() for k in range(7)], usual)
    np.testing.assert_allclose(
        auroc(scores[:, 0], truth), [roc_auc_score(truth[:, k], scores[:, 0]) for k in range(7)]
    )


def test_the_variance_over_items_is_delongs():
    rng = np.random.default_rng(1)
    truth = np.arange(60) < 20
    scores = rng.normal(size=60) + truth
    items = auroc_items(scores, truth)
    wins = (scores[truth][:, None] > scores[~truth][None]).astype(float)
    delong = wins.mean(1).var() / 20 + wins.mean(0).var() / 40
    assert (items - items.mean()) @ (items - items.mean()) / 60**2 == pytest.approx(delong)


def test_an_interval_of_an_area_covers_as_often_as_it_says():
    """Clusters of two that share a shift; 600 replicates of a 95 % interval, by the exact binomial."""
    rng = np.random.default_rng(2)
    clusters = np.repeat(np.arange(40), 2)
    true = stats.norm.cdf(1 / math.sqrt(2 * 1.5))
    hits = 0
    for _ in range(600):
        truth = np.repeat(rng.permutation(np.arange(40) < 20), 2)
        scores = rng.normal(size=80) + truth + np.repeat(rng.normal(size=40) * math.sqrt(0.5), 2)
        at = mean_interval(auroc_items(scores, truth), clusters)
        hits += bool(at.low <= true <= at.high)
    assert stats.binom.cdf(hits, 600, 0.95) > 0.001, hits / 600


def test_calibrated_probabilities_are_and_others_are_not():
    rng = np.random.default_rng(3)
    p = rng.random(4000)
    y = rng.random(4000) < p
    assert calibration(p, y).ece < 0.03 < 0.2 < calibration(np.where(p > 0.5, 1.0, 0.0), y).ece
    assert calibration(p, y).brier < calibration(p, y).brier_base
    assert calibration(p, y).n.sum() == 4000


@pytest.mark.parametrize(
    "bad", [([1.0, 2.0], [True, True]), ([1.0, float("nan")], [True, False]), ([1.0], [True, False])]
)
def test_scores_without_an_area_are_refused(bad):
    with pytest.raises(ControlError):
        auroc(*bad)


def test_shuffles_keep_groups_and_draw_every_arrangement_alike():
    labels = np.array([1, 1, 0, 0, 1, 0, 0, 0, 1], bool)
    groups = ["a", "a", "b", "b", "c", "c", "d", "e", "f"]  # pure: a, b, d, e, f; mixed: c
    columns = shuffled_columns(labels, groups, draws=6000, seed=0).labels
    for at in ([0, 1], [2, 3]):
        assert (columns[at[0]] == columns[at[1]]).all()
    assert (columns[4] != columns[5]).all()
    pure = columns[[0, 2, 6, 7, 8]]
    assert (pure.sum(0) == 2).all()
    seen = {tuple(c) for c in columns.T}
    assert len(seen) == math.comb(5, 2) * 2
    counts = [int((np.array(s) == columns.T).all(1).sum()) for s in seen]
    assert stats.chisquare(counts).pvalue > 1e-4


def test_every_part_keeps_both_classes_and_null_directions_differ_from_the_truth():
    labels = np.arange(12) % 2 == 0
    parts = [range(4), range(4, 8), range(8, 12)]
    columns = shuffled_columns(labels, range(12), draws=500, seed=1, parts=parts, differ=True).labels
    assert columns.shape == (12, 500)
    for part in parts:
        assert (columns[list(part)].any(0) & ~columns[list(part)].all(0)).all()
    assert (columns != labels[:, None]).any(0).all()


def test_the_smallest_p_counts_arrangements_of_the_items_scored():
    labels = np.arange(24) % 2 == 0
    groups = np.arange(24) // 2  # twelve pairs, each with both labels
    assert shuffled_columns(labels, groups, draws=99999, seed=0).smallest_p == pytest.approx(2**-12)
    assert shuffled_columns(labels, groups, draws=99, seed=0, scored=range(8)).smallest_p == pytest.approx(
        2**-4
    )
    assert shuffled_columns(labels, range(24), draws=99, seed=0).smallest_p == pytest.approx(0.01)


@pytest.mark.parametrize("labels, groups", [([1, 1, 1], "abc"), ([1, 0], ["a"]), ([1, 1, 0, 0], "aaaa")])
def test_labels_that_cannot_be_shuffled_are_refused(labels, groups):
    if groups == "aaaa":
        assert len({tuple(c) for c in shuffled_columns(labels, list(groups), draws=99, seed=0).labels.T}) == 6
        return
    with pytest.raises(ControlError):
        shuffled_columns(np.array(labels, bool), list(groups), draws=20, seed=0)


def test_two_groups_of_one_label_each_and_a_part_each_leave_no_shuffle():
    with pytest.raises(ControlError, match="Almost no shuffle"):
        shuffled_columns(np.array([1, 0]), ["a", "b"], draws=20, seed=0, parts=[[0], [1]])


def test_all_arrangements_of_a_small_case_are_reached():
    labels = np.array([1, 1, 0, 0], bool)
    columns = shuffled_columns(labels, range(4), draws=400, seed=0).labels
    assert {tuple(c) for c in columns.T} == {
        tuple(np.isin(range(4), c)) for c in itertools.combinations(range(4), 2)
    }
