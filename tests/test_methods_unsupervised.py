"""Directions without labels: they find what stands out most, and the result says when that is not the label."""

from __future__ import annotations

import numpy as np
import pytest

import probed
from microtome import methods
from microtome.controls.discrimination import auroc
from microtome.errors import ControlError, TaskError
from microtome.methods.probing.contrastive import ccs, components

SITE = "L3.resid_post@-1"


def pairs(distractor: float, n: int = 300, seed: int = 0):
    """Contrast pairs in 20 dimensions: the truth turns one coordinate round, a word that has nothing to do with it three others."""
    rng = np.random.default_rng(seed)
    truth, word = (rng.random(n) < 0.5 for _ in range(2))
    sides = []
    for sign in (1, -1):
        rows = rng.standard_normal((n, 20))
        rows[:, 0] += sign * np.where(truth, 3.0, -3.0)
        rows[:, 1:4] += sign * distractor * np.where(word, 3.0, -3.0)[:, None]
        sides.append(rows + (0.5 if sign == 1 else -0.5))
    return sides[0], sides[1], truth, word


def either(scores, truth):
    area = float(auroc(scores, truth)[0])
    return max(area, 1 - area)


def test_ccs_finds_the_truth_where_nothing_else_is_turned_round():
    plus, minus, truth, _ = pairs(0.0)
    found = ccs(plus[:200], minus[:200], seed=0)
    assert either(found.scores(plus[200:], minus[200:]), truth[200:]) > 0.95
    assert (found.cosines > 0.9).mean() >= 0.5


def test_its_known_failure_a_prominent_word_is_found_in_place_of_the_truth():
    plus, minus, truth, word = pairs(1.0)
    scores = ccs(plus[:200], minus[:200], seed=0).scores(plus[200:], minus[200:])
    assert either(scores, word[200:]) > 0.95 > 0.8 > either(scores, truth[200:])
    axis = components(plus[:200] - minus[:200], 1).scores(plus[200:] - minus[200:])[:, 0]
    assert either(axis, word[200:]) > 0.95 > 0.8 > either(axis, truth[200:])


def test_its_sign_is_not_known():
    ends = set()
    for seed in range(12):
        plus, minus, truth, _ = pairs(0.0, seed=seed)
        ends.add(float(auroc(ccs(plus, minus, seed=seed, restarts=1).scores(plus, minus), truth)[0]) > 0.5)
    assert ends == {True, False}


def test_what_tells_the_two_wordings_apart_is_taken_out():
    plus, minus, truth, _ = pairs(0.0)
    scores = ccs(plus + 50.0, minus - 50.0, seed=0).scores(plus + 50.0, minus - 50.0)
    assert either(scores, truth) > 0.95


def test_pairs_that_are_no_pairs_are_refused():
    plus, minus, *_ = pairs(0.0)
    with pytest.raises(ControlError):
        ccs(plus, minus[:-1], seed=0)
    with pytest.raises(ControlError):
        ccs(np.where(plus > 3, np.nan, plus), minus, seed=0)


@pytest.fixture(scope="module")
def model():
    return probed.model()


def test_a_planted_label_is_told_and_everything_else_told_is_listed(model):
    data = probed.texts()
    first = [text.split()[0] > "n" for text in data.texts]
    result = methods.unsupervised(
        model, data, site=SITE, pairs=probed.contrasts(data), features={"first": first}, options=probed.FAST
    )
    table = result.tables["predicts"].set_index(["direction", "target"])["value"]
    assert table["CCS", "label"] > 0.95 > 0.8 > table["CCS", "first: True"]
    assert result.verdict == "supported", result.verdict.reasons


def test_a_direction_that_tells_a_distractor_better_is_not_supported(model):
    """The label asked about is a coin per word; what the direction finds, the sign, is named among the features."""
    data = probed.texts()
    coins = probed.relabelled(data)
    sign = ["good" if y else "bad" for y in data.labels]
    result = methods.unsupervised(
        model,
        coins,
        site=SITE,
        pairs=probed.contrasts(data),
        features={"sign": sign},
        options=probed.FAST,
        seed=0,
    )
    control = {c.name: c for c in result.controls}["other_features"]
    table = result.tables["predicts"].set_index(["direction", "target"])["value"]
    assert table["CCS", "sign: good"] > 0.95 > 0.8 > table["CCS", "label"]
    assert not control.passed
    assert result.verdict == "not distinguishable from its null"


@pytest.mark.parametrize(
    "change, said",
    [({"site": "L*.resid_post@-1"}, "places"), ({"pairs": (["a"], ["b"])}, "pairs of"), ({"features": {"x": [1]}}, "has 1 values")],
)  # fmt: skip
def test_bad_input_is_refused(model, change, said):
    with pytest.raises(TaskError, match=said):
        methods.unsupervised(model, probed.texts(), **({"site": SITE, "options": probed.FAST} | change))


def test_without_pairs_only_components_are_taken(model):
    result = methods.unsupervised(model, probed.texts(), site=SITE, options=probed.FAST)
    assert set(result.tables["predicts"]["direction"]) == {"component 1", "component 2", "component 3"}
    assert {c.name: c.outcome for c in result.controls}["restarts"] == "did not run"
