"""The estimators of probes against others' formulas, and their null: as many false alarms as it says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.covariance import ledoit_wolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from microtome.controls.shuffles import shuffled_columns
from microtome.errors import ControlError
from microtome.methods.probing import controls as check
from microtome.methods.probing.closed import factored, fit
from microtome.methods.probing.design import design
from microtome.methods.probing.fitted import Standardised, attention, logistic
from microtome.methods.probing.options import CLOSED, ProbeOptions
from microtome.methods.probing.sweeping import sweep_places
from microtome.tasks.labelled import of_lists


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    truth = rng.random(150) < 0.4
    values = (
        rng.normal(size=(150, 12)) @ rng.normal(size=(12, 12)) + np.outer(truth, rng.normal(size=12)) + 3.0
    )
    return values, truth


def cosine(a, b):
    return float(np.ravel(a) @ np.ravel(b) / np.linalg.norm(a) / np.linalg.norm(b))


def test_mass_mean_is_the_difference_of_means_and_splits_them_in_the_middle(rows):
    values, truth = rows
    probe = fit(factored(values, ["mass_mean"], ridge=0.1), truth, ["mass_mean"])["mass_mean"]
    np.testing.assert_allclose(probe.weights[:, 0], values[truth].mean(0) - values[~truth].mean(0))
    scores = probe.scores(values)[:, 0]
    assert scores[truth].mean() == pytest.approx(-scores[~truth].mean())


def test_whitened_is_linear_discriminant_analysis(rows):
    values, truth = rows
    probe = fit(factored(values, ["whitened"], ridge=0.1), truth, ["whitened"])["whitened"]
    delta = values[truth].mean(0) - values[~truth].mean(0)
    assert cosine(probe.weights, np.linalg.solve(ledoit_wolf(values)[0], delta)) == pytest.approx(
        1.0, abs=1e-6
    )
    easy = np.random.default_rng(1).normal(size=(4000, 6)) * np.arange(1, 7)
    label = easy[:, 0] + easy[:, 1] > 0
    plain = fit(factored(easy, ["whitened"], ridge=0.1), label, ["whitened"])["whitened"]
    assert (
        cosine(plain.weights, LinearDiscriminantAnalysis().fit(easy, label).coef_) > 0.999
    )  # little is shrunk here
    # the total covariance gives the direction of the within-class one: Sherman & Morrison, with the same ridge
    centred = values - values.mean(0)
    p = truth.mean()
    total = centred.T @ centred / len(values) + 0.3 * np.eye(12)
    within = total - p * (1 - p) * np.outer(delta, delta)
    assert cosine(np.linalg.solve(total, delta), np.linalg.solve(within, delta)) == pytest.approx(1.0)


def test_ridge_is_scikit_learns(rows):
    values, truth = rows
    probe = fit(factored(values, ["ridge"], ridge=0.1), truth, ["ridge"])["ridge"]
    scaler = StandardScaler().fit(values)
    other = Ridge(alpha=0.1 * len(values)).fit(
        scaler.transform(values), truth
    )  # mean eigenvalue 1 after scaling
    assert cosine(probe.weights, other.coef_ / scaler.scale_) == pytest.approx(1.0, abs=1e-9)


def test_logistic_is_scikit_learns_in_raw_units(rows):
    values, truth = rows
    probe = logistic(values, truth, C=0.5)
    scaler = StandardScaler().fit(values)
    other = LogisticRegression(C=0.5, tol=1e-9, max_iter=20_000).fit(scaler.transform(values), truth)
    np.testing.assert_allclose(
        probe.scores(values)[:, 0], other.decision_function(scaler.transform(values)), atol=1e-4
    )
    same = LogisticRegression(C=0.5, solver="newton-cholesky", tol=1e-8).fit(scaler.transform(values), truth)
    np.testing.assert_allclose(
        probe.scores(values)[:, 0], same.decision_function(scaler.transform(values)), atol=1e-8
    )
    assert slope(probe, values, truth, 0.5) < 1e-8


def slope(probe, values, labels, C):
    """Largest derivative of the penalised mean loss by a weight of the scaled rows, or by the offset: 0 at the optimum."""
    scaler = StandardScaler().fit(values)
    rows, weights = scaler.transform(values), probe.weights[:, 0] * scaler.scale_
    off = 1 / (1 + np.exp(-probe.scores(values)[:, 0])) - np.asarray(labels, float)
    return max(np.abs(C * rows.T @ off + weights).max(), abs(C * off.sum())) / (C * len(rows))


def test_a_logistic_probe_of_few_rows_is_fitted_in_their_span_and_is_the_same():
    rng = np.random.default_rng(3)
    values, truth = rng.standard_normal((40, 120)) * 3 + 1, rng.random(40) < 0.5
    rows, unseen = Standardised(values), rng.standard_normal((10, 120))
    assert rows.rows.shape == (40, 39)  # centred: one rank less
    scaled = StandardScaler().fit(values)
    for labels in (truth, ~truth, rng.random(40) < 0.3):
        other = LogisticRegression(C=0.5, tol=1e-9, max_iter=20_000).fit(scaled.transform(values), labels)
        np.testing.assert_allclose(
            rows.logistic(labels, C=0.5).scores(unseen)[:, 0],
            other.decision_function(scaled.transform(unseen)),
            atol=1e-4,
        )
        assert slope(rows.logistic(labels, C=0.5), values, labels, 0.5) < 1e-7
    flat = Standardised(np.ones((4, 9))).logistic([True, False, True, False], C=1.0)
    assert np.allclose(flat.weights, 0)


def test_a_thousand_columns_at_once_are_a_thousand_fits(rows):
    values, truth = rows
    rng = np.random.default_rng(1)
    columns = np.stack([rng.permutation(truth) for _ in range(5)], 1)
    site = factored(values, CLOSED, ridge=0.1)
    together = fit(site, columns, CLOSED)
    for k in range(5):
        for kind, one in fit(site, columns[:, k], CLOSED).items():
            np.testing.assert_allclose(
                together[kind].scores(values)[:, k], one.scores(values)[:, 0], atol=1e-9
            )


def test_more_dimensions_than_texts_and_constant_ones_are_fitted():
    rng = np.random.default_rng(2)
    values = np.hstack([rng.normal(size=(20, 60)), np.ones((20, 3)), np.zeros((20, 2))])
    truth = np.arange(20) % 2 == 0
    for probe in fit(factored(values, CLOSED, ridge=0.1), truth, CLOSED).values():
        assert np.isfinite(probe.weights).all()


def test_values_of_another_width_or_not_finite_are_refused(rows):
    values, truth = rows
    probe = fit(factored(values, ["mass_mean"], ridge=0.1), truth, ["mass_mean"])["mass_mean"]
    with pytest.raises(ControlError, match="width 12"):
        probe.scores(values[:, :11])
    with pytest.raises(ControlError, match="finite"):
        factored(np.where(np.arange(12) == 3, np.nan, values), CLOSED, ridge=0.1)


def test_attention_finds_the_token_and_pads_weigh_nothing():
    rng = np.random.default_rng(3)
    values = rng.normal(size=(120, 6, 8)).astype(np.float32)
    lengths = rng.integers(3, 7, 120)
    mask = np.arange(6)[None] < lengths[:, None]
    truth = rng.random(120) < 0.5
    where = rng.integers(0, 3, 120)
    values[np.arange(120), where, 0] = 6.0  # the mark of the token that carries the label
    values[np.arange(120), where, 1] = np.where(truth, 4.0, -4.0)
    values[~mask] = 1e4
    train = np.arange(80)
    probe = attention(values[train], mask[train], truth[train], seed=0)
    scores = probe.scores(values[80:], mask[80:])
    assert ((scores > 0) == truth[80:]).mean() > 0.9
    changed = values[80:].copy()
    changed[~mask[80:]] = -1e4
    np.testing.assert_array_equal(scores, probe.scores(changed, mask[80:]))


def false_alarms(runs, leak, seed):
    """How often a probe of labels that mean nothing reaches p <= 0.05 over two places and two kinds."""
    rng = np.random.default_rng(seed)
    data = of_lists(
        [f"text {i}" for i in range(60)], [i % 2 for i in range(60)], {"pair": [i // 4 for i in range(60)]}
    )
    options = ProbeOptions()
    hits = 0
    for run in range(runs):
        d = design(data, options, run)
        shuffles = shuffled_columns(d.truth, d.units, draws=39, seed=run, parts=d.parts)
        values = {("L0.resid_post", k): rng.standard_normal((60, 3)).astype(np.float32) for k in (-1, -2)}
        for rows in values.values():
            rows += np.repeat(
                rng.standard_normal((15, 3)), 4, axis=0
            )  # texts of a group resemble one another
            rows[:, 0] += leak * d.truth
        swept = sweep_places(values, d, ("mass_mean", "ridge"), shuffles, options)
        hits += check.shuffled(swept.best(), swept, d)[1] <= 0.05
    return hits


def test_false_alarms_stay_at_the_stated_rate_over_2000_runs():
    """Family-wise over all cells though one is reported, so at most 5 %; exact binomial, one-sided at .001."""
    hits = false_alarms(2000, 0.0, 0)
    assert stats.binom.sf(hits - 1, 2000, 0.05) > 0.001, hits
    assert hits > 0  # a test that never fires would pass the line above


def test_the_same_runs_with_a_planted_label_are_found():
    assert false_alarms(40, 4.0, 1) >= 36
