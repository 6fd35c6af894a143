"""Do the statistics keep their promises? Small deterministic simulations; the tables behind them are in the docstrings."""

from __future__ import annotations

import numpy as np
import pytest

from microtome.controls import checks
from microtome.controls.intervals import bootstrap_interval, mean_interval, mean_test
from microtome.controls.multiple import retest
from microtome.controls.rank import rank_agreement
from microtome.controls.ratio import normalised_effect
from microtome.controls.signflip import sign_flip
from microtome.results.verdicts import SUPPORTED, verdict


def clusters(rng, n: int) -> np.ndarray:
    """1 to 3 prompts in each of n clusters."""
    return np.repeat(np.arange(n), rng.integers(1, 4, n))


def noise(rng, codes, shape, kind="normal", within=0.5):
    """Mean 0, variance 1, [*shape, prompt]; half of the variance is shared within a cluster."""

    def draw(size):
        return {"normal": rng.standard_normal, "heavy": lambda s: rng.standard_t(3, s) / 3**0.5,
                "skewed": lambda s: rng.exponential(1, s) - 1}[kind](size)  # fmt: skip

    own = draw((*shape, codes.size))
    return within**0.5 * draw((*shape, codes.max() + 1))[..., codes] + (1 - within) ** 0.5 * own


@pytest.mark.parametrize("kind", ["normal", "heavy"])
@pytest.mark.parametrize("n", [6, 9, 15])
def test_intervals_of_a_mean_cover(kind, n) -> None:
    rng = np.random.default_rng(n)
    t, boot = [], []
    for seed in range(8):
        codes = clusters(rng, n)
        y = noise(rng, codes, (400,), kind)
        one, other = mean_interval(y, codes), bootstrap_interval(y, codes, seed=seed, draws=1000)
        t.append((one.low <= 0) & (one.high >= 0))
        boot.append((other.low <= 0) & (other.high >= 0))
    assert 0.935 < np.mean(t) < 0.98 and 0.92 < np.mean(boot) < 0.97  # nominal .95, standard error .004


@pytest.mark.parametrize("n", [6, 15])
def test_the_interval_of_a_ratio_covers_although_both_means_vary(n) -> None:
    rng = np.random.default_rng(n)
    hits = []
    for _ in range(150):
        codes = clusters(rng, n)
        total = 4 + 1.5 * noise(rng, codes, (1,))[0]
        found = normalised_effect(0.6 * total + 0.8 * noise(rng, codes, (20,)), total, codes)
        hits.append((found.low <= 0.6) & (found.high >= 0.6))
    assert 0.92 < np.mean(hits) < 0.98


@pytest.mark.parametrize(("kind", "most"), [("normal", 0.08), ("heavy", 0.08), ("skewed", 0.16)])
def test_false_alarms_of_the_family_are_rare(kind, most) -> None:
    """Skewed effects of mean 0 are not the null of a sign-flip: about .11 at .05, as its docstring says."""
    rng = np.random.default_rng(1)
    alarms = []
    for seed in range(250):
        codes = clusters(rng, 10)
        y = noise(rng, codes, (25,), kind) * np.exp(rng.standard_normal((25, 1)))
        alarms.append(sign_flip(y, codes, seed=seed, alpha=0.05).significant.any())
    assert np.mean(alarms) < most


def test_false_alarms_of_the_retest_are_rare_and_skew_is_said() -> None:
    rng = np.random.default_rng(2)
    small = []
    for _ in range(10):
        codes = clusters(rng, 12)
        small.append(4 * mean_test(noise(rng, codes, (1600,)), codes).p.reshape(-1, 4).min(1))
    assert (
        0.03 < np.mean(np.concatenate(small) <= 0.05) < 0.065
        and np.mean(np.concatenate(small) <= 0.001) < 0.003
    )
    asked = {"selected_on": ["x"], "selected_sign": [1], "split": "entity"}
    codes = np.arange(14)
    even = np.linspace(-1, 1, 14)[None]
    assert retest(even, codes, **asked).cap == ""
    assert "skewed" in retest(np.exp(3 * even), codes, **asked).cap


def test_the_lower_limit_of_a_rank_correlation_rarely_exceeds_the_truth() -> None:
    rng = np.random.default_rng(3)
    above = []
    for seed in range(40):
        base = rng.standard_normal((40, 1))
        estimate = 0.8 * base + 0.6 * rng.standard_normal((40, 1))
        truth = np.corrcoef(base[:, 0].argsort().argsort(), estimate[:, 0].argsort().argsort())[0, 1]
        codes = clusters(rng, 12)
        maps = [m + 0.5 * noise(rng, codes, (40,)) for m in (estimate, base)]
        above.append(rank_agreement(*maps, codes, seed=seed, draws=200).low > truth)
    assert np.mean(above) <= 0.1


def whole(rng, seed, effect, irrelevant):
    """The verdict of one simulated patching: 20 cells, 24 prompts in 12 clusters, the strongest cell checked."""
    codes = np.repeat(np.arange(12), 2)
    y = noise(rng, codes, (20,))
    y[0] += effect
    total = 4 + 0.5 * noise(rng, codes, (1,))[0]
    test = sign_flip(y, codes, seed=seed, alpha=0.05)
    best = int(np.abs(y.mean(1)).argmax())
    mean = effect if best == 0 else 0.0
    real, again = y[[best]], noise(rng, codes, (1,)) + mean
    kinds = {"cells": ["best"]}
    ran = [
        checks.same_value(real + 0.3 * noise(rng, codes, (1,)), real, codes, **kinds),
        checks.irrelevant_donor(0.3 * noise(rng, codes, (1,)) + irrelevant * mean, real, total, codes, **kinds),
        checks.held_out(retest(again, codes, selected_on=["x"], selected_sign=np.sign(real.mean(1)), split="entity", alpha=0.05), **kinds),
    ]  # fmt: skip
    return (
        verdict(ran, ("same_value", "irrelevant", "held_out"), test.min_p, 0.05, test.smallest_p) == SUPPORTED
    )


def test_the_whole_verdict_is_rarely_wrong_and_often_right(monkeypatch) -> None:
    monkeypatch.setattr("gc.collect", lambda *_: 0)  # statsmodels collects at each of its corrections
    rng = np.random.default_rng(4)
    rates = {}
    for name, effect, irrelevant in (
        ("nothing there", 0.0, 0.0),
        ("any text does it", 3.0, 1.0),
        ("there", 3.0, 0.0),
    ):
        rates[name] = np.mean([whole(rng, seed, effect, irrelevant) for seed in range(50)])
    assert rates["nothing there"] <= 0.02 and rates["any text does it"] <= 0.1 and rates["there"] > 0.8
