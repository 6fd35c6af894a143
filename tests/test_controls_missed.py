"""The error certificate's statistics: chances add up, limits hold, planted faults are caught and clean cases pass."""

from __future__ import annotations

import numpy as np
import pytest

from microtome.controls.missed import (
    completeness_control,
    count_missed,
    draw_verified,
    missed_control,
    needed,
    remainder_control,
    saturation_control,
    slope,
)
from microtome.errors import ControlError

RNG = np.random.default_rng(0)


def _verified(estimate, exact, *, top, n, seed, weight=None, boost=None):
    sample = draw_verified(
        estimate, np.abs(estimate) if weight is None else weight, top=top, n=n, seed=seed, boost=boost
    )
    return sample, count_missed(estimate, exact[sample.index], sample, limit=top)


def test_the_flagged_are_always_verified_and_chances_add_up() -> None:
    estimate = RNG.standard_normal(500)
    weight = np.abs(RNG.standard_normal(500)) ** 4
    boost = np.where(np.arange(500) < 50, 4.0, 1.0)
    sizes = []
    for seed in range(60):
        sample = draw_verified(estimate, weight, top=10, n=60, seed=seed, boost=boost)
        top = set(np.argsort(-np.abs(estimate))[:10].tolist())
        assert (
            set(sample.index[sample.flagged].tolist()) == top
            and (sample.inclusion[sample.flagged] == 1).all()
        )
        sizes.append(int((~sample.flagged).sum()))
        assert sample.least > 0 and (sample.inclusion >= sample.least).all()
    assert np.mean(sizes) == pytest.approx(60, abs=3)
    again = draw_verified(estimate, weight, top=10, n=60, seed=59, boost=boost)
    assert np.array_equal(again.index, sample.index)
    zero = draw_verified(estimate, np.zeros(500), top=10, n=60, seed=0, boost=boost)
    chance = dict(zip(zero.index.tolist(), zero.inclusion, strict=True))
    low = [c for i, c in chance.items() if i >= 50 and c < 1]
    high = [c for i, c in chance.items() if i < 50 and c < 1]
    assert np.allclose(np.array(high), 4 * low[0])  # boosted cells get four times the floor
    every = draw_verified(estimate, weight, top=10, n=500, seed=0)
    assert every.index.size == 500 and every.least == 1


def test_a_linear_network_has_error_zero() -> None:
    exact = RNG.standard_normal(300)
    sample, m = _verified(exact, exact, top=16, n=200, seed=0)
    assert (
        m.found == ()
        and m.estimate == 0
        and m.low == 0
        and slope(exact[sample.index], exact[sample.index], sample.inclusion) == pytest.approx(1)
    )
    assert missed_control(m).passed
    sample, m = _verified(exact, exact, top=16, n=300, seed=0)
    assert m.high == 0


def test_a_saturated_head_that_the_gradient_does_not_see_is_caught() -> None:
    """Its estimate and its weight are 0: only the floor can find it, and a boost finds it more often."""
    exact = np.concatenate([0.1 * RNG.standard_normal(199), [5.0]])
    estimate = exact.copy()
    estimate[-1] = 0.0
    names = [f"L{i}" for i in range(200)]
    sample, m = _verified(estimate, exact, top=8, n=200, seed=0)
    assert m.found[0] == 199 and m.strongest > 1
    control = missed_control(m, names)
    assert control.passed is False and "L199" in control.detail
    found = {
        b: np.mean(
            [
                199
                in draw_verified(
                    estimate,
                    np.abs(estimate),
                    top=8,
                    n=40,
                    seed=s,
                    boost=np.where(np.arange(200) == 199, b, 1.0),
                ).index
                for s in range(200)
            ]
        )
        for b in (1.0, 5.0)
    }
    assert found[5.0] > 2 * found[1.0] > 0.1


def test_limits_hold_over_many_samples_and_populations() -> None:
    """The number of missed components lies within its limits in at least 95 % of samples, whatever their chances."""
    outside = 0
    draws = 0
    for population in range(12):
        rng = np.random.default_rng(population)
        n, k = 400, 10
        estimate = rng.standard_normal(n) * (1 + np.arange(n) % 3)
        order = np.argsort(-np.abs(estimate))
        exact = estimate.copy()
        kind = population % 3
        missed = {0: order[-20:], 1: order[k : k + 15], 2: rng.choice(order[k:], 60, replace=False)}[kind]
        exact[missed] = 20.0
        for seed in range(60):
            _, m = _verified(estimate, exact, top=k, n=80, seed=1000 * population + seed)
            # all that count are the planted ones: the threshold is the smallest flagged estimate
            true = int((np.abs(exact)[order[k:]] >= m.threshold).sum())
            outside += not m.low <= true <= m.high
            draws += 1
            assert m.low >= len(m.found)
    assert outside <= 0.05 * draws


def test_too_small_a_sample_is_not_certified_and_says_what_would_do() -> None:
    exact = RNG.standard_normal(5000)
    sample, m = _verified(exact, exact, top=10, n=50, seed=0)
    control = missed_control(m)
    assert control.passed is None and "not certified" in control.detail and str(m.needed) in control.detail
    _, enough = _verified(exact, exact, top=10, n=m.needed, seed=1)
    assert missed_control(enough).passed
    assert needed(draw_verified(exact[:20], np.ones(20), top=10, n=5, seed=0), 10) == 0
    assert needed(draw_verified(exact[:20], np.ones(20), top=1, n=5, seed=0), 1) == 16


def test_paths_that_cancel_show_in_the_joint_run_of_the_remainder() -> None:
    clusters = list(range(12))
    total = 4 + 0.1 * RNG.standard_normal(12)
    assert remainder_control(0.1 * total, total, 0.4, clusters).passed
    # a strong part and what cancels it: with only one of the two flagged the rest moves the metric the other way
    gone = remainder_control(-0.9 * total, total, -3.6, clusters)
    assert gone.passed is False and gone.observed["share"] == pytest.approx(-0.9, abs=0.01)
    nothing = remainder_control(total, RNG.standard_normal(12), 0.0, clusters)
    assert nothing.passed is None


def test_completeness_and_saturation() -> None:
    assert completeness_control(0.01, 8).passed and completeness_control(0.3, 64).passed is False
    assert completeness_control(float("nan"), 1).passed is None
    assert (
        saturation_control(0.01, 100, repaired=False).passed
        and saturation_control(0.4, 100, repaired=False).passed is False
    )
    assert (
        saturation_control(0.4, 100, repaired=True).passed
        and saturation_control(float("nan"), 0, repaired=False).passed is None
    )


def test_bad_maps_are_refused() -> None:
    for bad in (
        {"estimate": [], "weight": []},
        {"estimate": [1.0, np.nan], "weight": [1, 1]},
        {"estimate": [1.0, 2], "weight": [1, -1]},
        {"estimate": [1.0, 2], "weight": [1]},
    ):
        with pytest.raises(ControlError):
            draw_verified(**bad, top=1, n=1, seed=0)
    with pytest.raises(ControlError):
        draw_verified([1.0, 2], [1, 1], top=3, n=1, seed=0)
    sample = draw_verified([1.0, 2], [1, 1], top=1, n=1, seed=0)
    with pytest.raises(ControlError):
        count_missed([1.0, 2], [np.nan] * sample.index.size, sample, limit=1)
