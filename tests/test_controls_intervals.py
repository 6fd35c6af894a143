"""Coverage of intervals on clustered data, and that ignoring the clusters fails the same test."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from microtome.controls.clusters import as_clusters
from microtome.controls.intervals import (
    bootstrap_interval,
    mean_interval,
    mean_test,
    proportion_interval,
)
from microtome.controls.ratio import normalised_effect
from microtome.errors import ControlError

REPLICATES = 4000


def clustered(sizes, icc, replicates=REPLICATES, seed=0, skew=False):
    """Effects [replicate, prompt] of true mean 0, variance 1 and the given intra-cluster correlation."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(len(sizes)), sizes)
    draw = (lambda s: rng.exponential(size=s) - 1) if skew else (lambda s: rng.standard_normal(s))
    between, within = draw((replicates, len(sizes))), draw((replicates, codes.size))
    return np.sqrt(icc) * between[:, codes] + np.sqrt(1 - icc) * within, codes


def accepts(covered, level, alternative="two-sided"):
    """Exact binomial test at 1e-4 that the coverage is `level` (or, "less": not below it)."""
    return stats.binomtest(int(covered.sum()), covered.size, level, alternative=alternative).pvalue > 1e-4


def covers(interval, truth=0.0):
    return (interval.low <= truth) & (truth <= interval.high)


@pytest.mark.parametrize("icc", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("sizes", [[1] * 6, [4] * 8, [2] * 15])
@pytest.mark.parametrize("level", [0.95, 0.999])
def test_coverage_is_the_level_with_equal_clusters(sizes, icc, level):
    y, codes = clustered(sizes, icc)
    assert accepts(covers(mean_interval(y, codes, level=level)), level)


@pytest.mark.parametrize("icc", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "sizes", [[1] * 14 + [2], [1, 1, 2, 2, 3, 8, 8, 16], [1] * 7 + [20], [2] * 10 + [10] * 3]
)
def test_coverage_is_not_below_the_level_with_unequal_clusters(sizes, icc):
    y, codes = clustered(sizes, icc)
    # 94.5 %: the distance that the docstring admits for three large clusters among small ones
    assert accepts(covers(mean_interval(y, codes, level=0.95)), 0.945, "less")


def test_teeth_prompts_as_independent_fail_the_coverage_test():
    y, codes = clustered([4] * 8, icc=0.5)
    naive = mean_interval(y, np.arange(codes.size), level=0.95)
    assert not accepts(covers(naive), 0.95, "less")
    assert covers(naive).mean() < 0.85


def test_teeth_cr1_with_g_minus_one_degrees_fails_on_unequal_clusters():
    y, codes = clustered([1] * 7 + [20], icc=0.5)
    sums = (y - y.mean(axis=1, keepdims=True)) @ np.eye(8)[codes]
    half = stats.t.ppf(0.975, 7) * np.sqrt(8 / 7 * (sums**2).sum(axis=1)) / codes.size
    assert not accepts(np.abs(y.mean(axis=1)) <= half, 0.945, "less")


def test_equal_clusters_agree_with_statsmodels_and_with_the_t_of_cluster_means():
    import statsmodels.api as sm

    y, codes = clustered([3] * 9, icc=0.3, replicates=1)
    ours = mean_interval(y[0] + 2, codes)
    fit = sm.OLS(y[0] + 2, np.ones(27)).fit(cov_type="cluster", cov_kwds={"groups": codes}, use_t=True)
    assert np.allclose([ours.low, ours.high], fit.conf_int()[0])
    means = (y[0] + 2).reshape(9, 3).mean(axis=1)
    assert np.allclose([ours.low, ours.high], stats.ttest_1samp(means, 0).confidence_interval(0.95))


def test_cells_are_independent_of_each_other_and_keep_their_shape():
    y, codes = clustered([2] * 8, icc=0.2, replicates=12)
    together = mean_interval(y.reshape(3, 4, 16), codes)
    assert together.low.shape == (3, 4)
    one = mean_interval(y[7], codes)
    assert one.low == pytest.approx(together.at(1, 3).low) and one.estimate == pytest.approx(y[7].mean())
    order = np.random.default_rng(1).permutation(16)
    assert np.allclose(mean_interval(y[:, order], codes[order]).high, together.high.reshape(-1))


def test_under_six_clusters_the_interval_is_conditional_and_says_so():
    rng = np.random.default_rng(3)
    template = np.array([3.0, -1.0, 0.5, 2.0])  # fixed: the same four templates in every replicate
    codes = np.repeat(np.arange(4), [4, 4, 4, 4])
    y = template[codes] + rng.standard_normal((REPLICATES, 16))
    interval = mean_interval(y, codes)
    assert interval.conditional and "conditional on these templates" in interval.label
    assert accepts(covers(interval, template.mean()), 0.95)
    unclustered = mean_interval(y, np.arange(16))  # what ignoring the templates gives here: far too wide
    assert covers(unclustered, template.mean()).mean() > 0.999
    # and it is no statement about other templates: of a population with mean 0 it covers little
    y, codes = clustered([4] * 4, icc=0.7)
    assert not accepts(covers(mean_interval(y, codes)), 0.95, "less")


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [1, 4, 5], [1, 1, 6], [7]])
def test_single_prompts_among_few_clusters_are_collapsed_and_cover(sizes):
    rng = np.random.default_rng(4)
    codes = np.repeat(np.arange(len(sizes)), sizes)
    y = rng.standard_normal((REPLICATES, codes.size))
    interval = mean_interval(y, codes)
    assert interval.conditional and accepts(covers(interval), 0.945, "less")
    assert ("collapsed" in interval.method) == (1 in sizes)


def test_one_prompt_has_no_interval_and_no_test():
    interval = mean_interval([[1.0], [2.0]], ["a"])
    assert np.isnan(interval.low).all() and "one prompt" in interval.method and not interval.excludes().any()
    with pytest.raises(ControlError, match="One prompt"):
        mean_test([[1.0]], ["a"])


def test_structural_zeros_have_the_point_zero():
    for codes in (np.arange(8), [0, 0, 0, 0, 1, 1, 1, 1]):
        interval = mean_interval(np.zeros((2, 8)), codes)
        assert (interval.low == 0).all() and (interval.high == 0).all() and not interval.excludes().any()


@pytest.mark.parametrize(
    ("effects", "labels", "match"),
    [
        ([1.0, np.nan, 2.0], ["a", "b", "c"], "is nan"),
        ([1.0, 2.0], ["a", "b", "c"], "do not end in 3"),
        ([1.0, 2.0], ["a", ""], "no cluster label"),
        ([], [], "No cluster labels"),
    ],
)
def test_bad_input_is_refused(effects, labels, match):
    with pytest.raises(ControlError, match=match):
        mean_interval(effects, labels)


def test_a_level_in_percent_is_refused():
    with pytest.raises(ControlError, match="between 0 and 1"):
        mean_interval(np.arange(8.0), np.arange(8), level=95)


def test_the_test_is_the_dual_of_the_interval():
    y, codes = clustered([2] * 7, icc=0.4, replicates=200)
    test = mean_test(y, codes)
    assert ((test.p < 0.05) == mean_interval(y, codes, level=0.95).excludes(0)).all()


def test_copies_of_one_prompt_are_no_evidence():
    with pytest.raises(ControlError, match="same effect"):
        mean_test(np.full((1, 8), 0.7), np.arange(8))


def test_bootstrap_t_covers_skewed_clusters():
    y, codes = clustered([2] * 16, icc=0.5, replicates=600, skew=True)
    interval = bootstrap_interval(y, codes, seed=1, level=0.9, draws=1000)
    assert accepts(covers(interval), 0.9)
    naive = bootstrap_interval(y, np.arange(32), seed=1, level=0.9, draws=1000)
    assert not accepts(covers(naive), 0.9, "less")
    # the tails: the t interval misses almost only on one side, the bootstrap less so
    t = mean_interval(y, codes, level=0.9)
    assert (t.high < 0).sum() - (t.low > 0).sum() > (interval.high < 0).sum() - (interval.low > 0).sum()


def test_bootstrap_is_reproducible_and_each_cell_stands_alone():
    y, codes = clustered([2] * 8, icc=0.3, replicates=5)
    both = bootstrap_interval(y, codes, seed=4)
    assert np.array_equal(both.low, bootstrap_interval(y, codes, seed=4).low)
    assert np.allclose(both.low[2], bootstrap_interval(y[2], codes, seed=4).low)
    assert not np.array_equal(both.low, bootstrap_interval(y, codes, seed=5).low)


def test_bootstrap_refuses_few_clusters_and_few_draws():
    with pytest.raises(ControlError, match="5 clusters"):
        bootstrap_interval(np.arange(10.0), np.repeat(np.arange(5), 2), seed=0)
    with pytest.raises(ControlError, match="too few"):
        bootstrap_interval(np.arange(10.0), np.arange(10), seed=0, level=0.999, draws=4000)


def test_bootstrap_of_constant_cells_stays_at_the_constant():
    interval = bootstrap_interval(np.stack([np.zeros(8), np.full(8, 0.3)]), np.arange(8), seed=0)
    assert np.allclose(interval.low, [0, 0.3]) and np.allclose(interval.high, [0, 0.3])


def test_proportions_are_exact_and_clusters_widen_them():
    hits = np.repeat([1, 1, 1, 1, 1, 1, 0, 0], 4)
    plain = proportion_interval(hits)
    exact = stats.binomtest(24, 32).proportion_ci(0.95, method="exact")
    assert (plain.low, plain.high) == (pytest.approx(exact.low), pytest.approx(exact.high))
    nested = proportion_interval(hits, np.repeat(np.arange(8), 4))
    eight = stats.binomtest(6, 8).proportion_ci(0.95, method="exact")
    assert nested.low < plain.low and nested.high > plain.high
    # templates all right or all wrong are 8 units, not 32; the correction for few clusters costs three of them
    five = stats.beta.ppf(0.025, 0.75 * 5, 0.25 * 5 + 1)
    assert five < nested.low < eight.low
    perfect = proportion_interval(np.ones(64), np.repeat(np.arange(16), 4))
    assert perfect.high == 1 and perfect.low == pytest.approx(0.025 ** (1 / 16))


def test_proportion_coverage_on_clustered_prompts_and_its_teeth():
    rng = np.random.default_rng(5)
    codes, covered, naive = np.repeat(np.arange(12), 4), [], []
    for _ in range(300):
        rate = rng.beta(1.5, 0.5, size=12)  # mean .75
        hits = rng.random(48) < rate[codes]
        for kept, labels in ((covered, codes), (naive, None)):
            kept.append(bool(covers(proportion_interval(hits, labels), 0.75)))
    assert accepts(np.array(covered), 0.95, "less")
    assert not accepts(np.array(naive), 0.95, "less")


def test_proportion_refuses_what_is_no_proportion():
    with pytest.raises(ControlError):
        proportion_interval([0.2, 0.5])
    with pytest.raises(ControlError):
        proportion_interval([])


# the ratio


def pairs(sizes, icc, replicates, seed=6, ratio=0.4):
    """Effects and total effects that vary together; mean(total) = 2."""
    shared, codes = clustered(sizes, icc, replicates, seed)
    own, _ = clustered(sizes, icc, replicates, seed + 1)
    total = 2 + shared
    return ratio * total + 0.5 * own, total, codes


@pytest.mark.parametrize(
    ("method", "sizes", "icc"),
    [("fieller", [2] * 15, 0.4), ("bootstrap-t", [2] * 15, 0.4), ("fieller", [4] * 4, 0)],
)
def test_ratio_coverage(method, sizes, icc):
    top, bottom, codes = pairs(sizes, icc, replicates=400)
    covered, naive = [], []
    for x, y in zip(top, bottom, strict=True):
        interval = normalised_effect(x, y, codes, method=method, seed=0, level=0.9, draws=400)
        covered.append(bool(covers(interval, 0.4)))
        half = interval.high - interval.low
        fixed = mean_interval(x / 2, codes, level=0.9)  # the denominator's true value, as if known
        naive.append(float(half) / float(fixed.high - fixed.low))
    assert accepts(np.array(covered), 0.9)
    assert np.median(naive) < 1  # joint variation cancels: the ratio is known better than either mean


def test_fieller_limits_are_where_the_t_test_of_the_difference_turns():
    top, bottom, codes = pairs([2] * 9, 0.3, replicates=1)
    interval = normalised_effect(top, bottom[0], codes, level=0.95)
    for limit in (interval.low[0], interval.high[0]):
        assert mean_test(top - limit * bottom, codes).p[0] == pytest.approx(0.05)


def test_the_two_ratio_methods_agree_on_well_behaved_data_and_share_the_estimate():
    top, bottom, codes = pairs([2] * 40, 0.3, replicates=3)
    cells = np.concatenate([top, np.zeros((1, 80))])
    a = normalised_effect(cells, bottom[0], codes)
    b = normalised_effect(cells, bottom[0], codes, method="bootstrap-t", seed=2)
    assert np.allclose(a.estimate, cells.mean(axis=1) / bottom[0].mean()) and np.array_equal(
        a.estimate, b.estimate
    )
    assert np.allclose(a.low, b.low, atol=0.06) and np.allclose(a.high, b.high, atol=0.06)
    assert a.low[3] == a.high[3] == 0


@pytest.mark.parametrize("labels", [np.repeat(np.arange(8), 2), np.repeat(np.arange(2), 8)])
def test_a_denominator_that_may_be_zero_is_refused(labels):
    rng = np.random.default_rng(8)
    total = rng.standard_normal(16)
    total -= total.mean() - 0.05
    with pytest.raises(ControlError, match="contains 0"):
        normalised_effect(np.ones((3, 16)), total, labels)
    assert normalised_effect(np.ones((3, 16)), total + 5, labels).estimate.shape == (3,)


def test_a_denominator_of_many_prompts_in_few_templates_is_judged_by_clusters():
    """As independent prompts the denominator looks sure; by template it is not, and is refused."""
    codes = np.repeat(np.arange(8), 8)
    total = np.array([3.0, -2, 1, 2, -1, 3, -2, 1])[codes] + np.random.default_rng(0).normal(size=64) * 0.1
    assert normalised_effect(total, total, np.arange(64)).estimate == 1
    with pytest.raises(ControlError, match="contains 0"):
        normalised_effect(total, total, codes)


def test_ratio_refusals():
    y = np.arange(1.0, 9.0)
    with pytest.raises(ControlError, match="seed"):
        normalised_effect(y, y, np.arange(8), method="bootstrap-t")
    with pytest.raises(ControlError, match="4 clusters"):
        normalised_effect(y, y, np.repeat(np.arange(4), 2), method="bootstrap-t", seed=0)
    with pytest.raises(ControlError, match="no .*called|No interval"):
        normalised_effect(y, y, np.arange(8), method="delta")
    with pytest.raises(ControlError, match="shared"):
        normalised_effect(np.ones((2, 8)), np.ones((2, 8)), np.arange(8))
    with pytest.raises(ControlError, match="no interval"):
        normalised_effect([1.0], [1.0], ["a"])


def test_clusters_keep_their_labels_in_order_of_appearance():
    index = as_clusters(["b", "a", "b", "c"])
    assert index.labels == ("b", "a", "c") and index.sizes.tolist() == [2, 1, 1]
    assert index.sums(np.array([[1.0, 2, 3, 4]])).tolist() == [[4, 2, 4]]
