"""Null directions and random samples: what is drawn is what the null says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from microtome.controls.directions import (
    isotropic,
    likeness,
    noise_donor,
    norm_matched,
    shuffled_directions,
    unexplained,
)
from microtome.controls.sampling import Strata, matched_sets, stratified_sample, top_pool_sets
from microtome.errors import ControlError


def differences(rng, n=40, d=24, rank=5):
    """Natural differences in a `rank`-dimensional subspace, unequal variances, with a common offset."""
    basis = np.linalg.qr(rng.standard_normal((d, rank)))[0]
    return rng.standard_normal((n, rank)) * np.array([5, 3, 2, 1, 0.5]) @ basis.T + 7 * basis[:, 0], basis


def test_noise_has_the_patch_norm_and_spans_natural_differences_only():
    rng = np.random.default_rng(0)
    rows, basis = differences(rng)
    norms = rng.uniform(0.1, 9, size=(6, 7))
    noise = noise_donor(rows, norms, seed=0)
    assert noise.shape == (6, 7, 24) and np.allclose(np.linalg.norm(noise, axis=-1), norms)
    assert np.allclose(noise @ basis @ basis.T, noise)
    leak = isotropic(24, norms, seed=0)  # the same check must fail for isotropic noise
    assert np.allclose(np.linalg.norm(leak, axis=-1), norms) and not np.allclose(leak @ basis @ basis.T, leak)


def test_noise_has_the_natural_covariance_without_the_mean():
    rng = np.random.default_rng(1)
    rows, basis = differences(rng, n=300)
    noise = noise_donor(rows, np.ones(20_000), seed=1)
    assert np.abs(noise.mean(axis=0)).max() < 0.02  # the offset of 7 is no part of the noise
    share = ((noise @ basis) ** 2).mean(axis=0)
    natural = np.var(rows @ basis, axis=0)
    assert np.all(np.diff(share) < 0)
    # on the sphere the ratio shrinks towards 1, but the order and the rough sizes are the natural ones
    assert share[0] / share[4] > 0.3 * natural[0] / natural[4]
    flat = ((isotropic(24, np.ones(20_000), seed=1) @ basis) ** 2).mean(axis=0)
    assert np.allclose(flat, 1 / 24, rtol=0.05)


def test_noise_is_seeded_by_name():
    rows, _ = differences(np.random.default_rng(2))
    a = noise_donor(rows, [1.0, 2.0], seed=0, name="L3.resid_pre")
    assert np.array_equal(a, noise_donor(rows, [1.0, 2.0], seed=0, name="L3.resid_pre"))
    assert not np.allclose(a, noise_donor(rows, [1.0, 2.0], seed=0, name="L4.resid_pre"))
    assert not np.allclose(a, noise_donor(rows, [1.0, 2.0], seed=1, name="L3.resid_pre"))
    assert noise_donor(rows, [0.0], seed=0).any() == False  # noqa: E712 - a patch of norm 0 has noise of norm 0


@pytest.mark.parametrize(
    "bad",
    [
        lambda: noise_donor(np.ones((1, 4)), [1.0], seed=0),
        lambda: noise_donor(np.ones((5, 4)), [1.0], seed=0),
        lambda: noise_donor(np.full((5, 4), np.nan), [1.0], seed=0),
        lambda: noise_donor(np.eye(4), [-1.0], seed=0),
        lambda: noise_donor(np.eye(4), [np.inf], seed=0),
        lambda: norm_matched(np.zeros((2, 4)), 1.0),
        lambda: isotropic(0, [1.0], seed=0),
        lambda: shuffled_directions(means, np.eye(3), [1, 1, 1], "abc", norm=None, draws=9, seed=0),
        lambda: shuffled_directions(means, np.eye(3), [0, 1, 2], "abc", norm=None, draws=9, seed=0),
        lambda: shuffled_directions(means, np.eye(2), [1, 0], "abc", norm=None, draws=9, seed=0),
    ],
)
def test_directions_refuse(bad):
    with pytest.raises(ControlError):
        bad()


def test_shuffled_directions_lose_the_label_but_keep_estimator_and_norm():
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(20), 3)
    labels = groups % 2
    concept = np.zeros(30)
    concept[0] = 1
    data = rng.standard_normal((60, 30)) + 3 * labels[:, None] * concept

    def estimator(x, y):
        return x[y == 1].mean(axis=0) - x[y == 0].mean(axis=0)

    real = estimator(data, labels)
    null = shuffled_directions(
        estimator, data, labels, groups, norm=float(np.linalg.norm(real)), draws=200, seed=0
    )
    assert null.shape == (200, 30) and np.allclose(np.linalg.norm(null, axis=1), np.linalg.norm(real))
    assert real[0] > np.quantile(null[:, 0], 0.99)
    assert abs(null[:, 0].mean()) < 0.2 * real[0]


def test_a_label_that_belongs_to_the_template_needs_group_wise_shuffles():
    """Template offsets without any concept: item-wise shuffles call them a direction, group-wise ones do not."""
    rng, wrong, right = np.random.default_rng(5), 0, 0

    def estimator(x, y):
        return x[y == 1].mean(axis=0) - x[y == 0].mean(axis=0)

    groups = np.repeat(np.arange(10), 6)
    labels = groups % 2
    for seed in range(24):
        data = 2 * rng.standard_normal((10, 1))[groups] + 0.3 * rng.standard_normal((60, 1))
        real = abs(estimator(data, labels)[0])
        for units in ("items", "groups"):
            by = np.arange(60) if units == "items" else groups
            null = abs(shuffled_directions(estimator, data, labels, by, norm=None, draws=39, seed=seed)[:, 0])
            p = (1 + np.sum(null >= real)) / 40
            wrong, right = wrong + (units == "items" and p <= 0.05), right + (units == "groups" and p <= 0.05)
    assert right <= 5 and wrong >= 10


def test_two_groups_with_nothing_to_exchange_are_not_their_own_null():
    data = np.arange(8.0).reshape(4, 2)
    null = shuffled_directions(
        lambda x, y: x[y == 1].mean(0) - x[y == 0].mean(0),
        data,
        [0, 0, 1, 1],
        [0, 0, 1, 1],
        norm=1.0,
        draws=5,
        seed=0,
    )
    assert len(null) == 1 and null[0, 0] < 0  # the only other labelling, once; the real one is never drawn


def means(x, y):
    return x[y == 1].mean(axis=0) - x[y == 0].mean(axis=0)


@pytest.mark.parametrize("n_groups, size", [(6, 2), (4, 3), (12, 1)])
def test_ranks_among_few_arrangements_have_the_chance_that_p_says(n_groups, size):
    """2,000 runs without any effect; drawn with replacement, the first of these gives p <= 0.05 in 7 %."""
    rng, runs, hits, reached = np.random.default_rng(n_groups), 2000, 0, 0.0
    groups = np.repeat(np.arange(n_groups), size)
    for i in range(runs):
        labels = rng.permutation(np.arange(n_groups) % 2)[groups]
        data = rng.standard_normal((len(groups), 2)) + rng.standard_normal((n_groups, 2))[groups]
        null = shuffled_directions(means, data, labels, groups, norm=None, draws=19, seed=i)
        p = (1 + (null[:, 0] >= means(data, labels)[0]).sum()) / (1 + len(null))
        hits, reached = hits + (p <= 0.05), 1 / (1 + len(null))
    low, high = stats.binom.ppf([0.0005, 0.9995], runs, 0.05 if reached <= 0.05 else 0.0)
    assert low <= hits <= high, hits
    assert reached == pytest.approx(
        1 / 6 if n_groups == 4 else 0.05
    )  # of 4 choose 2 arrangements, 5 are left


def test_what_labels_and_groups_do_not_explain_has_neither():
    """Groups of either kind: mixed ones lose their own mean, pure ones the mean of all such; both lose their classes' means."""
    rng = np.random.default_rng(7)
    groups = np.repeat(np.arange(10), 4)
    labels = np.where(groups < 6, np.arange(40) % 2, groups % 2)
    data = rng.standard_normal((40, 12))
    data[:, 0] += 20 * (2 * labels - 1)
    mixed = groups < 6
    data[mixed, 1] += 30 * groups[mixed]
    rest = unexplained(data, labels, groups)
    assert np.abs(rest[:, :2]).max() < 4 and rest[:, 2:].std() > 0.8
    noise = noise_donor(rest, np.full(50, 3.0), seed=0)
    assert likeness(noise, np.eye(12)[0]) < 0.6 < likeness(np.eye(12)[:1] * -2, np.eye(12)[0]) == 1.0
    pairs = np.repeat(np.arange(20), 2)  # one of each class: what is left is how differences differ
    assert np.abs(unexplained(data, np.arange(40) % 2, pairs)).max() > 0.1


# samples


def grid(n_layers=30, heads=9):
    layers = [layer for layer in range(n_layers) for _ in range(heads + 1)]
    kinds = (["head"] * heads + ["mlp"]) * n_layers
    return Strata.of(layers, kinds, n_layers), np.array(layers), np.array(kinds)


def test_strata_are_thirds_by_kind():
    strata, layers, kinds = grid()
    assert set(strata.names) == {f"{k}/{t}" for k in ("head", "mlp") for t in ("early", "middle", "late")}
    assert strata.names[strata.codes[0]] == "head/early"
    assert strata.names[strata.codes[(layers == 10) & (kinds == "mlp")][0]] == "mlp/middle"
    assert strata.names[strata.codes[-1]] == "mlp/late"
    with pytest.raises(ControlError, match="Layer 30"):
        Strata.of([30], ["head"], 30)
    with pytest.raises(ControlError):
        Strata.of([1, 2], ["head"], 30)


def test_sample_is_stratified_random_and_never_selected():
    strata, _, _ = grid()
    selected = list(range(0, 300, 7))
    sample = stratified_sample(strata, selected, seed=0)
    assert sample.size == 32 == np.unique(sample).size and not set(sample) & set(selected)
    counts = np.bincount(strata.codes[sample], minlength=6)
    left = np.bincount(strata.codes[np.setdiff1d(np.arange(300), selected)], minlength=6)
    assert (counts >= 1).all() and np.abs(counts - 32 * left / left.sum()).max() < 2
    assert np.array_equal(sample, stratified_sample(strata, selected, seed=0))
    assert not np.array_equal(sample, stratified_sample(strata, selected, seed=1))
    drawn = np.bincount(
        np.concatenate([stratified_sample(strata, selected, seed=s) for s in range(400)]), minlength=300
    )
    heads = np.setdiff1d(np.flatnonzero(strata.codes == 0), selected)
    assert stats.chisquare(drawn[heads]).pvalue > 1e-4


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 7, 20, 293])
def test_sample_sizes_are_exact(n):
    strata, _, _ = grid()
    assert stratified_sample(strata, range(6), seed=0, n=n).size == n


def test_a_sample_of_few_cells_is_all_of_them_and_of_none_refused():
    strata, _, _ = grid(n_layers=3, heads=2)
    assert stratified_sample(strata, [0, 4], seed=0).tolist() == [1, 2, 3, 5, 6, 7, 8]
    with pytest.raises(ControlError):
        stratified_sample(strata, range(9), seed=0)


def test_null_sets_have_the_shape_of_the_circuit_and_are_not_the_circuit():
    strata, _, _ = grid()
    target = [3, 13, 150, 151, 152, 200, 269, 299]
    sets = matched_sets(strata, target, 50, seed=0)
    shape = np.bincount(strata.codes[target], minlength=6)
    assert (
        sets.shape == (50, 8)
        and len({tuple(s) for s in sets}) == 50
        and tuple(target) not in map(tuple, sets)
    )
    for one in sets:
        assert np.unique(one).size == 8 and (np.bincount(strata.codes[one], minlength=6) == shape).all()
    assert np.array_equal(sets, matched_sets(strata, target, 50, seed=0))
    even = matched_sets(strata, target, 10, seed=0, accept=lambda s: s[0] % 2 == 0)
    assert (even[:, 0] % 2 == 0).all()


def test_top_pool_sets_come_from_the_top_three_n():
    rng = np.random.default_rng(6)
    scores = rng.standard_normal(300)
    order = np.argsort(-np.abs(scores))
    sets = top_pool_sets(scores, order[:6], 40, seed=0)
    assert set(sets.ravel()) <= set(order[:18]) and sorted(order[:6]) not in sets.tolist()
    assert len(set(sets.ravel())) == 18


def test_sets_that_do_not_exist_are_refused():
    strata = Strata.of([0, 0, 1], ["head"] * 3, 3)
    assert matched_sets(strata, [0], 1, seed=0).tolist() == [[1]]  # one of two early heads: one other set
    with pytest.raises(ControlError, match="1 exist"):
        matched_sets(strata, [0], 2, seed=0)
    with pytest.raises(ControlError, match="0 exist"):
        matched_sets(strata, [2], 1, seed=0)
    with pytest.raises(ControlError, match="of 5 null sets were found"):
        matched_sets(grid()[0], [1, 2], 5, seed=0, accept=lambda s: False)
    with pytest.raises(ControlError, match="NaN"):
        top_pool_sets([1.0, np.nan, 2.0], [0], 1, seed=0)
    for target in ([], [-1], [3]):
        with pytest.raises(ControlError):
            matched_sets(strata, target, 1, seed=0)
