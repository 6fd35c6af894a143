"""Every control passes on the truth and fails on its planted fault; none passes on too little data."""

from __future__ import annotations

import numpy as np
import pytest

from microtome.controls import checks
from microtome.controls.checks import Damage
from microtome.controls.multiple import retest
from microtome.controls.rank import rank_agreement, top_k_overlap
from microtome.controls.signflip import sign_flip
from microtome.errors import ControlError
from microtome.results.verdicts import INVALID, NULL, SUPPORTED, UNCHECKED, UNDERPOWERED, verdict

CELLS = ("L5H1.z", "L9H6.z", "L11.resid_pre")
CODES = np.repeat(np.arange(12), 2)
KL = "KL at the answer position, nats"


def real_effects(rng, sizes=(2.0, -1.0, 3.0)):
    """The task's own donor: effects [cell, prompt] with template and prompt noise."""
    noise = 0.2 * rng.standard_normal((3, 12))[:, CODES] + 0.1 * rng.standard_normal((3, 24))
    return np.array(sizes)[:, None] * (1 + noise)


def around(rng, effects, scale=0.15):
    return effects + scale * rng.standard_normal(effects.shape)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def real(rng):
    return real_effects(rng)


@pytest.fixture
def total(rng):
    return 4 + 0.3 * rng.standard_normal(24)


# deterministic: these gate


def test_identity():
    rng = np.random.default_rng(0)
    quiet = 1e-6 * rng.uniform(-1, 1, (30, 14))
    good = checks.identity(quiet, 1e-6)
    assert good.passed and good.gates and good.n == 420 and good.observed <= 1e-6
    quiet[17, 3] = 0.01  # one cell writes back something else
    assert checks.identity(quiet, 1e-6).passed is False
    assert checks.identity([0.0, np.nan], 1e-6).passed is False
    assert checks.identity([-1.0], 0.5).passed is False
    assert checks.identity([], 1e-6).passed is None
    for floor in (-1.0, np.inf, np.nan):
        with pytest.raises(ControlError):
            checks.identity([0.0], floor)


def test_receipts():
    asked = {"patch L3.resid_pre@5": 4, "ablate L9H6.z": 4}
    assert checks.receipts(asked, asked).passed and checks.receipts(asked, asked).gates
    for wrong in (
        {**asked, "ablate L9H6.z": 0},
        {"patch L3.resid_pre@5": 4},
        {**asked, "ablate L9H6.z": 8},
        {**asked, "left from an earlier run": 1},
    ):
        control = checks.receipts(wrong, asked)
        assert control.passed is False and control.observed == 1 and control.detail
    assert checks.receipts({}, {}).passed is None
    with pytest.raises(ControlError):
        checks.receipts({}, {"a": 0})


def test_sums(rng):
    pieces = rng.standard_normal((50, 8))
    whole = pieces.sum(axis=0)
    scale = np.abs(pieces).sum(axis=0)
    assert checks.sums(pieces.sum(axis=0) - whole, scale).passed
    assert checks.sums(pieces[1:].sum(axis=0) - whole, scale).passed is False  # a piece is missing
    assert checks.sums(np.array([0.0, np.nan]), np.ones(2)).passed is False
    assert checks.sums([1e-3], [0.0]).passed is False and checks.sums([0.0], [0.0]).passed
    # a whole near 0 with large pieces must not fail: the scale is the pieces, not the whole
    assert checks.sums(1e-5, 100.0).passed
    with pytest.raises(ControlError):
        checks.sums([0.0], [-1.0])


# the family test, held-out, random sets, approximation


def test_sign_flip(rng, real):
    cells = np.concatenate([real, 0.3 * rng.standard_normal((50, 24))])
    good = checks.sign_flip_control(sign_flip(cells, CODES, seed=0))
    assert good.passed and good.observed["cells"] >= 1 and good.null is not None and good.n == 53
    assert checks.sign_flip_control(sign_flip(cells[3:], CODES, seed=0)).passed is False
    few = checks.sign_flip_control(sign_flip(cells, CODES // 2, seed=0))
    assert few.passed is False and "underpowered" in few.detail


def test_held_out(real):
    def run(y, labels=CODES):
        result = retest(y, labels, selected_on=["other"], selected_sign=[1, -1, 1], split="template")
        return checks.held_out(result, cells=CELLS)

    assert run(real).passed and run(real).n == 24
    fault = real.copy()
    fault[1] -= fault[1].mean()  # gone on held-out prompts
    assert run(fault).passed is False and "L9H6.z" in run(fault).detail
    fault[1] = -real[1]  # there, with the other sign
    assert run(fault).passed is False
    assert "conditional on these 6" in run(real, CODES // 2).detail


def test_random_components(rng):
    null = rng.uniform(-0.2, 0.3, 40)
    good = checks.random_components(0.8, null, what="faithfulness")
    assert (
        good.passed and good.observed["p"] == pytest.approx(1 / 41) and good.null == (null.min(), null.max())
    )
    assert checks.random_components(float(np.median(null)), null).passed is False
    assert checks.random_components(0.8, [0.8] * 40).passed is False  # a tie is no victory
    assert checks.random_components(0.8, null[:10]).passed is None  # ten sets cannot reach .05
    with pytest.raises(ControlError):
        checks.random_components(np.nan, null)


def test_random_components_rejects_a_random_circuit_at_its_level(rng):
    hits = [checks.random_components(x[0], x[1:]).passed for x in rng.standard_normal((2000, 40))]
    assert 0.025 < np.mean(hits) < 0.075  # 2/41 = .049


def test_approximation(rng):
    exact = rng.standard_normal((60, 1)) + 0.1 * rng.standard_normal((60, 24))
    good, bad = around(rng, exact, 0.1), exact[rng.permutation(60)]

    def run(estimate):
        overlap = top_k_overlap(estimate.mean(axis=1), exact.mean(axis=1), k=10)
        return checks.approximation(rank_agreement(estimate, exact, CODES, seed=0), overlap)

    assert run(good).passed and run(bad).passed is False
    # right ranks in general, but blind to the largest cells (saturated attention): the overlap catches it
    blind = exact.copy()
    blind[np.argsort(-np.abs(exact.mean(axis=1)))[:6]] = 0
    correlation = rank_agreement(blind, exact, CODES, seed=0)
    assert correlation.low > 0.6
    assert not checks.approximation(
        correlation, top_k_overlap(blind.mean(1), exact.mean(1), k=10), least_correlation=0.6
    ).passed


# donors


def test_same_value(rng, real):
    def run(y, **kw):
        return checks.same_value(y, real, CODES, cells=CELLS, **kw)

    good = run(around(rng, 0.9 * real))
    assert good.passed and set(good.observed) == set(CELLS) and not good.gates
    for factor in (0.0, 0.3, 1.8, -1.0):  # words matter: nothing, a third, nearly double, the opposite
        fault = real.copy()
        fault[1] *= factor
        control = run(around(rng, fault))
        assert control.passed is False and "L9H6.z" in control.detail and "L5H1.z" not in control.detail
    assert run(around(rng, real, 6.0)).passed is False  # too noisy to show anything: not a pass
    assert run(around(rng, 0.7 * real), margin=0.1).passed is False


def test_irrelevant_donor(rng, real, total):
    def run(y, who=real, whole=total, labels=CODES):
        return checks.irrelevant_donor(y, who, whole, labels, cells=CELLS)

    assert run(around(rng, 0 * real)).passed
    assert run(around(rng, 0.5 * real)).passed is False  # any other text has half of the effect
    assert (
        run(around(rng, 0 * real, 8.0)).passed is False
    )  # p > .05 for "no effect", and yet nothing was shown
    assert run(-1.0 + around(rng, 0 * real)).passed is False  # damage in the other direction
    few = slice(0, 3)
    assert run(around(rng, 0 * real, 1.5)[:, few], real[:, few], total[few], CODES[few]).passed is False
    # a small cell whose whole effect an irrelevant donor reproduces lies within the margin of the total
    small = real_effects(rng, (0.4, -0.4, 0.4))
    control = run(around(rng, small, 0.05), small)
    assert np.abs(list(control.observed.values())).max() < 0.2 and control.passed is False
    # a total effect that may be 0 gives a margin of 0
    assert run(around(rng, 0 * real), real, total - total.mean()).passed is False


def test_irrelevant_donor_ignores_no_cluster(rng, real, total):
    """Effects that differ by template but not within: as independent prompts they would seem known to be 0."""
    offsets = np.tile([1.8, -1.8], 6)[CODES] * rng.uniform(0.7, 1.3, 12)[CODES]
    shaky = np.stack([offsets] * 3)
    run = lambda labels: checks.irrelevant_donor(shaky, real * 3, total, labels, cells=CELLS)  # noqa: E731
    assert run(np.arange(24)).passed and not run(CODES).passed


def test_wrong_value(rng, real):
    def run(y):
        return checks.wrong_value(y, real, CODES, cells=CELLS)

    assert run(around(rng, 0.9 * real)).passed
    assert (
        run(around(rng, 0.1 * real)).passed is False
    )  # away from the base's answer, not towards the donor's
    assert run(around(rng, -real)).passed is False
    assert run(around(rng, real, 9.0)).passed is False


def test_noise_donor(rng, real):
    def run(noise, own=real):
        return checks.noise_donor_control(noise, own, CODES, cells=CELLS)

    quiet = 0.2 * rng.standard_normal((4, 3, 24))
    good = run(quiet)
    assert good.passed and good.n == 96 and good.null[0] < 0 < good.null[1]
    # the site is fragile: noise of this size moves the metric as much, in either direction, so its mean is 0
    fragile = np.abs(real).mean(axis=1)[:, None] * rng.choice([-1.3, 1.3], size=(4, 3, 24))
    assert abs(fragile.mean()) < 0.3 and run(fragile).passed is False
    assert run(quiet[:, :, ::-1], real * np.array([1, 0, 1])[:, None]).passed is False
    with pytest.raises(ControlError, match="draw, cell, prompt"):
        run(quiet[0])


def test_off_task(rng):
    on = Damage(rng.gamma(4, 0.25, 24), CODES, KL)
    quiet = Damage(rng.gamma(2, 0.05, 32), np.repeat(np.arange(8), 4), KL)
    good = checks.off_task(on, quiet)
    assert good.passed and good.n == 56 and good.observed["on"] > 5 * good.observed["off"]
    everywhere = Damage(rng.gamma(4, 0.25, 32), quiet.clusters, KL)  # MLP 0 matters for every text
    assert checks.off_task(on, everywhere).passed is False
    two = Damage(np.array([0.4, 2.0]), [0, 1], KL)  # two prompts show little
    assert checks.off_task(two, quiet).passed is False
    with pytest.raises(ControlError, match="different quantities"):
        checks.off_task(on, Damage(quiet.values, quiet.clusters, "logit difference"))
    with pytest.raises(ControlError, match=">= 0"):
        checks.off_task(on, Damage(quiet.values - 1, quiet.clusters, KL))


def test_equivalence_passes_a_donor_at_the_margin_at_most_at_alpha():
    """The rule's own error rate: an irrelevant donor with exactly the margin's effect passes in at most 5 %."""
    rng = np.random.default_rng(9)
    passes = 0
    for _ in range(400):
        own = 3 + rng.standard_normal((1, 24))
        whole = 4 + 0 * own[0]
        effect = 0.8 + 0.4 * rng.standard_normal((1, 12))[:, CODES]
        passes += checks.irrelevant_donor(effect, own, whole, CODES, cells=["c"]).passed
    assert passes <= 37  # binomial(400, .05), 1e-4


@pytest.mark.parametrize(
    "bad",
    [
        lambda y: checks.same_value(y, y, CODES, cells=CELLS[:2]),
        lambda y: checks.same_value(y, y[:2], CODES, cells=CELLS),
        lambda y: checks.same_value(y[:, :1], y[:, :1], [0], cells=CELLS),
        lambda y: checks.irrelevant_donor(y, y, y, CODES, cells=CELLS),
        lambda y: checks.wrong_value(y * np.nan, y, CODES, cells=CELLS),
    ],
)
def test_donor_controls_refuse_what_does_not_fit(bad, real):
    with pytest.raises(ControlError):
        bad(real)


def test_controls_decide_verdicts(rng, real, total):
    cells = np.concatenate([real, 0.1 * rng.standard_normal((20, 24))])
    test = sign_flip(cells, CODES, seed=0)
    irrelevant = checks.irrelevant_donor(around(rng, 0 * real), real, total, CODES, cells=CELLS)
    failed = checks.irrelevant_donor(around(rng, real), real, total, CODES, cells=CELLS)
    gate, broken = checks.identity([0.0], 1e-6), checks.identity([1.0], 1e-6)

    def decide(controls, t=test):
        return verdict(controls, ["irrelevant"], p=t.min_p, alpha=t.alpha, smallest_p=t.smallest_p)

    assert decide([gate, irrelevant]) == SUPPORTED
    assert decide([gate, failed]) == NULL
    assert decide([broken, irrelevant]) == INVALID
    assert decide([gate]) == UNCHECKED
    assert decide([gate, irrelevant], sign_flip(cells, CODES // 3, seed=0)) == UNDERPOWERED
    assert decide([checks.identity([], 1e-6), irrelevant]) == UNCHECKED
