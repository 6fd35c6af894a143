"""Family-wise error of the permutation nulls, planted effects found, and exactness where it can be counted."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest
from scipy import stats

from microtome.controls import signflip
from microtome.controls.power import (
    clusters_needed,
    draws_needed,
    reach,
    smallest_p,
    smallest_p_groups,
)
from microtome.controls.signflip import permute_groups, sign_flip
from microtome.errors import ControlError


def null_map(rng, n_cells=60, clusters=12, per=2, icc=0.6, correlation=0.7):
    """Null effects [cell, prompt]: cells correlated, prompts clustered, scales over two orders of magnitude."""
    codes = np.repeat(np.arange(clusters), per)

    def field(n):
        common = rng.standard_normal((1, n))
        return np.sqrt(correlation) * common + np.sqrt(1 - correlation) * rng.standard_normal((n_cells, n))

    y = np.sqrt(icc) * field(clusters)[:, codes] + np.sqrt(1 - icc) * field(codes.size)
    return y * np.logspace(-2, 0, n_cells)[:, None], codes


def below(count, n, rate):
    """Exact binomial acceptance of an error rate not above `rate`."""
    return stats.binomtest(int(count), n, rate, alternative="greater").pvalue > 1e-4


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_family_wise_error_stays_at_alpha_and_prompts_as_units_break_it(correlation):
    rng = np.random.default_rng(0)
    hits = naive = 0
    for seed in range(300):
        y, codes = null_map(rng, correlation=correlation)
        hits += sign_flip(y, codes, seed=seed, alpha=0.05, draws=500).min_p <= 0.05
        naive += sign_flip(y, np.arange(codes.size), seed=seed, alpha=0.05, draws=500).min_p <= 0.05
    assert below(hits, 300, 0.05)
    assert not below(naive, 300, 0.05)


def test_without_the_maximum_the_error_grows_with_the_cells():
    """The tooth of the correction: the best of 60 independent cells, each tested alone, is nearly always p < .05."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(20):
        y, codes = null_map(rng, correlation=0.0)
        hits += min(sign_flip(row[None], codes, seed=0, draws=500).min_p for row in y) <= 0.05
    assert hits >= 15


def test_planted_cells_are_found_and_no_other():
    rng = np.random.default_rng(2)
    planted, found, false = [10, 45, 59], 0, 0
    for seed in range(40):
        y, codes = null_map(rng, clusters=14, icc=0.3, correlation=0.5)
        y[planted] += np.array([4.0, 4.0, 4.0])[:, None] * np.logspace(-2, 0, 60)[planted][:, None]
        test = sign_flip(y, codes, seed=seed, alpha=0.01, draws=2000)
        found += test.significant[planted].sum()
        false += np.delete(test.significant, planted).any()
    assert found >= 0.8 * 40 * 3
    assert below(false, 40, 0.01)


def test_a_tiny_consistent_cell_cannot_win():
    """Rounding noise with one sign everywhere has the largest t there is; the softening stops it."""
    rng = np.random.default_rng(3)
    y, codes = null_map(rng, clusters=12)
    y[0] = 1e-7
    y[50] += 3.0
    assert sign_flip(y, codes, seed=0, alpha=0.01).significant.nonzero()[0].tolist() == [50]
    bare = sign_flip(y, codes, seed=0, alpha=0.01, soften=0.0)
    assert np.abs(bare.statistic[0]) > np.abs(bare.statistic[1:]).max() - 1e-6 or bare.softening > 0
    floored = sign_flip(y[:1], codes, seed=0, noise_floor=1e-5)  # alone in its family the floor must do it
    assert abs(floored.statistic[0]) < 0.02 and floored.softening == 1e-5


def test_exact_enumeration_equals_brute_force():
    rng = np.random.default_rng(4)
    y = rng.standard_normal((5, 6)) + 0.7
    test = sign_flip(y, np.repeat(np.arange(3), 2), seed=0, alpha=0.3)
    sums = y.reshape(5, 3, 2).sum(axis=2)
    scale = np.sqrt((sums**2).sum(axis=1)) / 6
    scale = 6 * (scale + np.quantile(scale, 0.25))
    null = [np.abs(sums @ np.array(signs) / scale).max() for signs in product([1, -1], repeat=3)]
    observed = np.abs(sums.sum(axis=1) / scale)
    expected = [(np.array(null) >= value * (1 - 1e-10)).mean() for value in observed]
    assert test.exact and test.draws == 4 and np.allclose(test.p, expected)
    assert test.smallest_p == 0.25


def test_one_cell_equals_the_textbook_sign_flip_of_scipy():
    rng = np.random.default_rng(5)
    y = rng.standard_normal(9) + 0.5
    ours = sign_flip(y[None], np.arange(9), seed=0)
    scipy = stats.permutation_test((y,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert ours.exact and ours.p[0] == pytest.approx(scipy.pvalue)


def test_a_perfect_effect_reaches_exactly_the_smallest_p():
    for n in (3, 8, 12):
        test = sign_flip(np.full((1, n), 2.0), np.arange(n), seed=0)
        assert test.p[0] == test.smallest_p == smallest_p(n) == 2.0 ** (1 - n)
    test = sign_flip(np.full((1, 40), 2.0), np.arange(40), seed=0, draws=999)
    assert not test.exact and test.p[0] == test.smallest_p == pytest.approx(1 / 1000)


@pytest.mark.parametrize("clusters", [5, 12, 20])
def test_the_band_agrees_with_the_p_values(clusters):
    rng = np.random.default_rng(6)
    y, codes = null_map(rng, clusters=clusters)
    y += 0.5 * np.logspace(-2, 0, 60)[:, None]
    test = sign_flip(y, codes, seed=0, alpha=0.1, draws=3000)
    means = y.mean(axis=1)
    outside = (means > test.null_high * (1 + 1e-9)) | (means < test.null_low * (1 + 1e-9))
    assert np.array_equal(outside, test.significant)
    assert test.underpowered == (clusters < 5)


def test_the_band_agrees_with_the_p_values_to_the_last_draw():
    rng, decided_by_one_draw = np.random.default_rng(16), 0
    for seed in range(40):
        y, codes = null_map(rng, clusters=20)
        y += 0.5 * np.logspace(-2, 0, 60)[:, None]
        test = sign_flip(y, codes, seed=seed, alpha=0.05, draws=99)
        assert np.array_equal(np.abs(y.mean(axis=1)) > test.null_high * (1 + 1e-9), test.significant)
        decided_by_one_draw += ((test.p == 0.05) | (test.p == 0.06)).any()
    assert decided_by_one_draw > 10


def test_an_underpowered_band_is_the_whole_null():
    rng = np.random.default_rng(7)
    y = rng.standard_normal((4, 5)) + 5
    test = sign_flip(y, np.arange(5), seed=0, alpha=0.001)
    assert test.underpowered and not test.significant.any()
    assert (y.mean(axis=1) <= test.null_high * (1 + 1e-9)).all()


def test_structurally_zero_cells_leave_the_family():
    rng = np.random.default_rng(8)
    y, codes = null_map(rng, n_cells=30)
    padded = np.zeros((2, 30, y.shape[1]))
    padded[1] = y
    zero = np.zeros((2, 30), dtype=bool)
    zero[0] = True
    alone, masked = sign_flip(y, codes, seed=0), sign_flip(padded, codes, seed=0, structurally_zero=zero)
    assert masked.n_cells == 30 and np.isnan(masked.p[0]).all() and not masked.significant[0].any()
    assert np.array_equal(masked.p[1], alone.p) and np.array_equal(masked.null_low[1], alone.null_low)
    # a wrong mask would make every p too small, so it is refused
    zero[1, 3] = True
    with pytest.raises(ControlError, match=r"Cell \(1, 3\)"):
        sign_flip(padded, codes, seed=0, structurally_zero=zero)
    with pytest.raises(ControlError, match="No cell is left"):
        sign_flip(np.zeros((3, 8)), np.arange(8), seed=0, structurally_zero=np.ones(3, bool))


def test_more_null_cells_make_the_same_effect_less_sure():
    rng = np.random.default_rng(9)
    y, codes = null_map(rng, n_cells=200, correlation=0.0)
    y /= np.logspace(-2, 0, 200)[:, None]
    y[0] += 0.8
    p = [sign_flip(y[:n], codes, seed=0).p[0] for n in (1, 20, 200)]
    assert p[0] <= p[1] < p[2]


def test_unmasked_exact_zeros_do_not_remove_the_softening():
    y = np.zeros((10, 8))
    y[9] = np.random.default_rng(0).standard_normal(8)
    test = sign_flip(y, np.arange(8), seed=0)
    assert test.softening > 0 and (test.p[:9] == 1).all()
    assert sign_flip(np.zeros((3, 8)), np.arange(8), seed=0).min_p == 1


def test_chunks_and_seeds(monkeypatch):
    rng = np.random.default_rng(10)
    y, codes = null_map(rng, clusters=20)
    one = sign_flip(y, codes, seed=3, draws=700)
    monkeypatch.setattr(signflip, "BUDGET_BYTES", 8 * 60 * 33)
    small = sign_flip(y, codes, seed=3, draws=700)
    assert np.allclose(small.p, one.p) and small.critical == pytest.approx(one.critical)
    assert not np.array_equal(sign_flip(y, codes, seed=4, draws=700).p, one.p)
    y, codes = null_map(rng, clusters=9)
    small = sign_flip(y, codes, seed=3)
    monkeypatch.undo()
    assert np.array_equal(small.p, sign_flip(y, codes, seed=3).p)


def test_memory_stays_bounded():
    import tracemalloc

    y = np.random.default_rng(0).standard_normal((20_000, 16))
    tracemalloc.start()
    sign_flip(y, np.arange(16), seed=0, draws=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 250 * 2**20  # all draws at once would take 2 x 160 MB beside the data


# two samples


def test_two_samples_equal_scipy_when_each_prompt_is_a_cluster():
    rng = np.random.default_rng(11)
    y = rng.standard_normal(11)
    second = np.arange(11) >= 6
    y[second] += 1
    ours = permute_groups(y[None], second, np.arange(11), seed=0)
    scipy = stats.permutation_test(
        (y[second], y[~second]),
        lambda a, b: abs(a.mean() - b.mean()),
        n_resamples=np.inf,
        alternative="greater",
    )
    assert ours.exact and ours.draws == comb(11, 5) and ours.p[0] == pytest.approx(scipy.pvalue)
    assert np.sign(ours.statistic[0]) == np.sign(y[second].mean() - y[~second].mean())


def test_two_sample_error_with_clusters_and_its_teeth():
    rng = np.random.default_rng(12)
    hits = naive = found = 0
    for seed in range(200):
        y, codes = null_map(rng, n_cells=20, clusters=14, per=3)
        second = codes % 2 == 0
        hits += permute_groups(y, second, codes, seed=seed, draws=400).min_p <= 0.05
        naive += permute_groups(y, second, np.arange(codes.size), seed=seed, draws=400).min_p <= 0.05
        y[15] += 3 * np.logspace(-2, 0, 20)[15] * second
        found += permute_groups(y, second, codes, seed=seed, draws=400).p[15] <= 0.05
    assert below(hits, 200, 0.05)
    assert not below(naive, 200, 0.05)
    assert found > 180


def test_two_samples_within_clusters_are_a_sign_flip_of_differences():
    rng = np.random.default_rng(13)
    template = 5 * rng.standard_normal(10)
    codes, second = np.repeat(np.arange(10), 4), np.tile([True, True, False, False], 10)
    y = template[codes] + rng.standard_normal((3, 40))
    y[1] += 2 * second
    test = permute_groups(y, second, codes, seed=0, alpha=0.01)
    assert test.significant.tolist() == [False, True, False] and test.statistic[1] > 0
    with pytest.raises(ControlError, match="of both groups"):
        permute_groups(y, np.where(codes == 0, second, codes % 2 == 0), codes, seed=0)
    with pytest.raises(ControlError, match="Two groups"):
        permute_groups(y, np.ones(40, bool), codes, seed=0)


def test_two_sample_smallest_p():
    y = np.r_[np.zeros(4), np.ones(4)] + np.arange(8) * 1e-3
    test = permute_groups(y[None], np.arange(8) >= 4, np.arange(8), seed=0)
    assert test.p[0] == test.smallest_p == smallest_p_groups(4, 4) == 2 / 70
    assert smallest_p_groups(3, 5) == 1 / 56


# power


def test_power_of_a_design():
    assert clusters_needed(0.001) == 11 and clusters_needed(0.05) == 6
    for alpha in (0.2, 0.05, 0.01, 0.001, 2.0**-7):
        n = clusters_needed(alpha)
        assert smallest_p(n) <= alpha < smallest_p(n - 1)
        d = draws_needed(alpha)
        assert 1 / (d + 1) <= alpha < 1 / d
    assert reach(8).underpowered and "11 clusters" in reach(8).sentence
    assert not reach(11).underpowered and reach(16, draws=500).underpowered
    assert "999 draws" in reach(16, draws=500).sentence and "clusters and" in reach(8, draws=500).sentence
    for wrong in (0, 1, -1, 2):
        with pytest.raises(ControlError):
            clusters_needed(wrong)
    with pytest.raises(ControlError):
        smallest_p(0)


def test_no_test_can_go_below_what_power_promises():
    rng = np.random.default_rng(14)
    for clusters, draws in ((6, 10_000), (14, 10_000), (15, 300), (14, 8191)):
        y = rng.standard_normal((5, clusters)) + 3
        test = sign_flip(y, np.arange(clusters), seed=1, draws=draws)
        assert (
            test.min_p
            >= test.smallest_p
            == pytest.approx(smallest_p(clusters, None if test.exact else draws))
        )
