"""ROC at every threshold, and dependence by permutation, against independent implementations and planted faults."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from microtome.controls.dependence import hsic, hsic_test
from microtome.controls.roc import roc
from microtome.errors import ControlError


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40))
def test_it_is_scikit_learns_at_every_threshold_with_ties(items):
    scores, truth = np.array([float(s) for s, _ in items]), np.array([t for _, t in items])
    if truth.all() or not truth.any():
        with pytest.raises(ControlError, match="rate of none"):
            roc(scores, truth)
        return
    found = roc(scores, truth)
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    np.testing.assert_allclose(found.false, false)
    np.testing.assert_allclose(found.true, true)
    assert found.area == pytest.approx(roc_auc_score(truth, scores))
    assert (found.false[0], found.true[0]) == (0, 0) and (found.false[-1], found.true[-1]) == (1, 1)
    assert found.thresholds[0] == np.inf and (np.diff(found.thresholds) < 0).all()
    assert len(found.thresholds) == len(set(scores.tolist())) + 1


def test_without_the_first_point_a_perfect_ranking_of_few_sizes_would_lose_its_area():
    """MIB's ROC starts at its smallest size: the rectangle before it is lost, here half of all."""
    found = roc([3, 2, 2, 1], [True, False, True, False])
    assert found.area == pytest.approx(0.875)
    late = np.trapezoid(found.true[2:], found.false[2:])
    assert late < found.area - 0.3


def test_items_that_were_never_chosen_come_last_together():
    found = roc([1.0, -np.inf, -np.inf, -np.inf], [True, True, False, False])
    assert found.area == pytest.approx(0.75)
    assert list(found.thresholds) == [np.inf, 1.0, -np.inf]


def test_what_has_no_rank_is_refused():
    with pytest.raises(ControlError, match="NaN"):
        roc([1.0, np.nan], [True, False])
    with pytest.raises(ControlError, match="3 scores and 2 truths"):
        roc([1, 2, 3], [True, False])


def brute(x, y):
    """HSIC by its definition, with explicit centring matrices."""
    n = len(x)
    h = np.eye(n) - 1 / n
    kernels = []
    for v in (x, y):
        gap = np.abs(v[:, None] - v[None])
        kernels.append(np.exp(-(gap**2) / (2 * np.median(gap[gap > 0]) ** 2)))
    return np.trace(kernels[0] @ h @ kernels[1] @ h) / n**2


def test_hsic_is_its_definition_and_zero_for_a_constant():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 25))
    assert hsic(x, y) == pytest.approx(brute(x, y))
    assert hsic(x, np.ones(25)) == 0


def test_dependence_without_correlation_is_seen_and_independence_is_not():
    rng = np.random.default_rng(1)
    x = rng.normal(size=60)
    groups = list(range(60))
    square = x**2 - np.mean(x**2)
    assert abs(np.corrcoef(x, square)[0, 1]) < 0.4
    assert hsic_test(x, square, groups, seed=0).p == pytest.approx(0.001)
    assert hsic_test(x, np.ones(60), groups, seed=0).p == 1
    ps = [hsic_test(*rng.normal(size=(2, 20)), range(20), seed=s, draws=99).p for s in range(200)]
    assert 0.02 < np.mean(np.array(ps) <= 0.05) < 0.1


def test_a_level_of_templates_is_no_dependence():
    """Both values rise with the template and are independent within it: permuted over all prompts this looks dependent."""
    groups = np.repeat(np.arange(6), 8)
    within, over_all = [], []
    for seed in range(100):
        x, y = groups + 0.3 * np.random.default_rng(seed).normal(size=(2, 48))
        within.append(hsic_test(x, y, groups.tolist(), seed=seed, draws=99).p)
        over_all.append(hsic_test(x, y, range(48), seed=seed, draws=99).p)
    assert max(over_all) <= 0.05 and np.mean(np.array(within) <= 0.05) < 0.12
    assert hsic_test(x, y, groups.tolist(), seed=0).within == "prompts of one group"


def test_the_smallest_p_counts_arrangements_and_one_prompt_is_refused():
    assert hsic_test([1.0, 2, 3], [1.0, 2, 3], range(3), seed=0).smallest_p == pytest.approx(1 / 6)
    with pytest.raises(ControlError, match="cannot change places"):
        hsic_test([1.0], [1.0], ["a"], seed=0)
