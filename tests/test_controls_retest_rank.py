"""Held-out re-tests, and agreement of two maps."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from microtome.controls.multiple import holm, retest
from microtome.controls.rank import rank_agreement, top_k_overlap
from microtome.errors import ControlError


def held_out(rng, means, clusters=10, per=4, icc=0.5):
    codes = np.repeat(np.arange(clusters), per)
    between = rng.standard_normal((len(means), clusters))[:, codes]
    y = np.sqrt(icc) * between + np.sqrt(1 - icc) * rng.standard_normal((len(means), codes.size))
    return y + np.asarray(means)[:, None], [f"held{c}" for c in codes]


def test_holm_by_hand():
    assert np.allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    with pytest.raises(ControlError):
        holm([])
    with pytest.raises(ControlError):
        holm([0.1, np.nan])


@pytest.mark.parametrize("test", ["t", "sign-flip"])
def test_null_cells_rarely_pass_and_unclustered_ones_do(test, monkeypatch):
    monkeypatch.setattr("gc.collect", lambda *a: 0)  # statsmodels collects on every call: .1 s each
    rng, wrong, naive, replicates = np.random.default_rng(0), 0, 0, 250
    for _ in range(replicates):
        y, codes = held_out(rng, [0.0] * 5)
        common = {"selected_on": ["a", "b"], "selected_sign": np.sign(y.mean(axis=1)), "seed": 0}
        wrong += retest(y, codes, split="template", test=test, alpha=0.05, **common).passed.any()
        if test == "t":
            naive += retest(y, np.arange(40), split="template", alpha=0.05, **common).passed.any()
    assert stats.binomtest(int(wrong), replicates, 0.05, alternative="greater").pvalue > 1e-4
    if test == "t":
        assert stats.binomtest(int(naive), replicates, 0.05, alternative="greater").pvalue < 1e-4


def test_real_cells_pass_and_a_reversed_one_does_not():
    y, codes = held_out(np.random.default_rng(1), [3.0, -3.0, 3.0, 0.0])
    result = retest(y, codes, selected_on=["x"], selected_sign=[1, -1, -1, 1], split="template")
    assert result.passed.tolist() == [True, True, False, False]
    assert result.p_holm[2] < 0.001 and not result.same_sign[2]
    assert (result.p_holm >= result.p).all() and result.cap == "" and result.smallest_p == 0


def test_selection_on_the_same_prompts_is_what_the_protocol_prevents():
    """Of 300 null cells the best always looks good on the prompts that selected it, and fails on others."""
    rng = np.random.default_rng(2)
    y, codes = held_out(rng, [0.0] * 300, clusters=20, per=2)
    index = np.array([int(c.removeprefix("held")) for c in codes])
    first = index < 10
    best = np.argsort(-np.abs(y[:, first].mean(axis=1)))[:5]
    sign = np.sign(y[best][:, first].mean(axis=1))
    labels = [f"t{c}" for c in index]
    leaked = retest(
        y[best][:, first], [f"copy{c}" for c in index[first]], selected_on=labels[:1], selected_sign=sign,
        split="template", alpha=0.05,
    )  # fmt: skip
    honest = retest(
        y[best][:, ~first],
        index[~first],
        selected_on=index[first],
        selected_sign=sign,
        split="template",
        alpha=0.05,
    )
    assert leaked.passed.any() and not honest.passed.any()
    with pytest.raises(ControlError, match="used for selection"):
        retest(y[best], index, selected_on=index[first], selected_sign=sign, split="template")


def test_few_templates_cap_what_may_be_said():
    rng = np.random.default_rng(3)
    for n, split, capped in (
        (7, "template", True),
        (8, "template", False),
        (7, "entity", False),
        (5, "entity", True),
    ):
        y, codes = held_out(rng, [2.0], clusters=n)
        result = retest(y, codes, selected_on=["x"], selected_sign=[1], split=split)
        assert bool(result.cap) == capped
        assert not capped or f"these {n}" in result.cap
    y, codes = held_out(rng, [9.0, 9.0, 9.0], clusters=8)
    flips = retest(
        y, codes, selected_on=["x"], selected_sign=[1] * 3, split="template", test="sign-flip", seed=0
    )
    assert flips.smallest_p == 3 * 2.0**-7 and not flips.passed.any()


def test_retest_refusals():
    y, codes = held_out(np.random.default_rng(4), [1.0])
    good = {"selected_on": ["x"], "selected_sign": [1], "split": "template"}
    for change in ({"selected_sign": [0]}, {"selected_sign": [1, 1]}, {"split": "prompt"}, {"test": "z"}):
        with pytest.raises(ControlError):
            retest(y, codes, **{**good, **change})
    with pytest.raises(ControlError, match="seed"):
        retest(y, codes, test="sign-flip", **good)


# rank agreement


def maps(rng, noise, cells=80, clusters=12, per=2, strength=1.0):
    """A true map, its exact measurement, and an estimate with an error of its own, [cell, prompt]."""
    codes = np.repeat(np.arange(clusters), per)
    truth, error = rng.standard_normal(cells), rng.standard_normal(cells)
    shared = rng.standard_normal((cells, clusters))[:, codes]
    exact = strength * truth[:, None] + 0.5 * shared + 0.3 * rng.standard_normal((cells, codes.size))
    estimate = exact + strength * noise * error[:, None] + 0.2 * rng.standard_normal((cells, codes.size))
    return estimate, exact, codes, stats.spearmanr(truth, truth + noise * error).statistic


@pytest.mark.parametrize("kind", ["spearman", "kendall"])
def test_point_estimates_are_scipys(kind):
    estimate, exact, codes, _ = maps(np.random.default_rng(0), 0.5)
    result = rank_agreement(estimate, exact, codes, seed=0, kind=kind, draws=400)
    function = stats.spearmanr if kind == "spearman" else stats.kendalltau
    expected = function(estimate.mean(axis=1), exact.mean(axis=1)).statistic
    assert result.estimate == pytest.approx(expected) and result.low < expected < result.high


def test_interval_covers_the_correlation_of_the_true_maps():
    rng, covered, conditional = np.random.default_rng(1), [], []
    for seed in range(100):
        estimate, exact, codes, truth = maps(rng, 0.7, clusters=16)
        interval = rank_agreement(estimate, exact, codes, seed=seed, level=0.9, draws=300)
        covered.append(bool(interval.low <= truth <= interval.high))
        flat = rank_agreement(estimate, exact, np.repeat(np.arange(4), 8), seed=seed, level=0.9, draws=300)
        conditional.append(bool(flat.low <= truth <= flat.high))
    # 85 %: what the docstring admits at a level of 90 %
    assert stats.binomtest(sum(covered), 100, 0.85, alternative="less").pvalue > 1e-3
    assert sum(conditional) < sum(covered)  # four clusters of four templates each: the true ones are wider


def test_unrelated_maps_do_not_agree_and_equal_maps_do():
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((2, 60, 20))
    result = rank_agreement(a, b, np.arange(20), seed=0)
    assert result.low < 0 < result.high
    same = rank_agreement(a, a, np.arange(20), seed=0)
    assert same.low > 0.999 and same.high <= 1


def test_shared_structural_zeros_are_no_agreement():
    rng = np.random.default_rng(3)
    a, b = (np.concatenate([np.abs(rng.standard_normal((30, 12))), np.zeros((70, 12))]) for _ in range(2))
    zero = np.arange(100) >= 30
    inflated = rank_agreement(a, b, np.arange(12), seed=0)
    honest = rank_agreement(a, b, np.arange(12), seed=0, structurally_zero=zero)
    assert inflated.estimate > 0.8 > 0.5 > abs(honest.estimate)


def test_few_clusters_are_conditional_and_bad_maps_refused():
    estimate, exact, codes, _ = maps(np.random.default_rng(4), 0.5, clusters=4, per=4)
    assert rank_agreement(estimate, exact, codes, seed=0).conditional
    for bad in (
        lambda: rank_agreement(np.ones((5, 8)), np.ones((5, 8)), np.arange(8), seed=0),
        lambda: rank_agreement(np.ones((2, 8)), np.ones((2, 8)), np.arange(8), seed=0),
        lambda: rank_agreement(np.ones((5, 8)), np.ones((4, 8)), np.arange(8), seed=0),
        lambda: rank_agreement(estimate, exact, codes, seed=0, draws=50),
        lambda: rank_agreement(estimate, exact, codes, seed=0, kind="pearson"),
        lambda: top_k_overlap(np.ones(4), np.ones(4), k=5),
    ):
        with pytest.raises(ControlError):
            bad()


def test_top_k_overlap_by_hand_and_by_chance():
    exact = np.array([[9.0, -8, 7], [0, 0, 1]])
    estimate = np.array([[9.0, 0.1, -7], [0, 5, 1]])
    overlap = top_k_overlap(estimate, exact, k=3)
    assert overlap.shared == 2 and overlap.missed == (1,) and overlap.expected == 1.5
    assert top_k_overlap(estimate, exact, k=3, structurally_zero=[[0, 0, 0], [1, 1, 1]]).shared == 3
    rng = np.random.default_rng(5)
    draws = [
        top_k_overlap(rng.standard_normal(40), exact_map, k=8) for exact_map in rng.standard_normal((600, 40))
    ]
    assert np.mean([d.shared for d in draws]) == pytest.approx(1.6, abs=0.15)
    assert np.mean([d.p <= 0.05 for d in draws]) <= 0.07
