"""Each remaining control of a method, with a planted fault that fails it (and, elsewhere or here, a clean case)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import planted
from microtome import methods
from microtome.controls import checks
from microtome.controls.intervals import mean_interval
from microtome.dissect import _Stages
from microtome.methods import direct_attribution, gradient_attribution, lens, patterns, sets
from microtome.methods.setting import setting, sites_of
from microtome.results import Control, Result, verdict

HEAD = f"L{planted.HEAD[0]}H{planted.HEAD[1]}"
CODES = np.repeat(np.arange(12), 2)


@pytest.fixture(scope="module")
def model():
    return planted.copier()


@pytest.fixture(scope="module")
def task():
    return planted.copied(n=16)


def around(size: float) -> np.ndarray:
    return size + 0.3 * np.random.default_rng(0).standard_normal((1, 24))


def test_value_matters() -> None:
    def run(effect, real=4.0):
        return checks.value_matters(around(effect), around(real), CODES, cells=["c"])

    assert run(2.0).passed and run(0.0).passed and run(-4.0).passed and run(2.0, -4.0).passed
    assert run(4.0).passed is False  # the same whatever it brings: damage
    assert run(-4.0, -4.0).passed is False
    loud = 30 * np.random.default_rng(1).standard_normal((1, 24))  # shows nothing: no pass
    assert checks.value_matters(loud, around(4.0), CODES, cells=["c"]).passed is False


def test_other_cells() -> None:
    def run(effect):
        return checks.other_cells(around(effect), around(4.0)[0], CODES, cells=["c"])

    assert run(0.0).passed and run(1.5).passed is False and run(-1.5).passed is False


def test_sums_fails_when_a_head_is_left_out(model, task, monkeypatch) -> None:
    assert methods.direct_logit_attribution(model, task, seed=0).control("sums").passed
    real = direct_attribution._attention

    def without(*args):
        return ((name, piece) for name, piece in real(*args) if name != f"{HEAD}.head_out")

    monkeypatch.setattr(direct_attribution, "_attention", without)
    r = methods.direct_logit_attribution(model, task, seed=0)
    assert r.control("sums").passed is False and r.verdict == "invalid"


def test_corrupt_side_fails_where_a_part_writes_the_answer_whatever_the_prompt_says(model, task) -> None:
    assert direct_attribution._corrupt_side(task, np.array([[4.0], [1], [1], [1], [1]]), np.array([[-4.0], [-1], [-1], [0], [0]]), list("abcde")).passed  # fmt: skip
    same = planted.nothing()
    r = methods.direct_logit_attribution(same, planted.pairs(same, n=12), seed=0)
    assert r.control("corrupt_side").passed is False and r.verdict != "supported"
    risen = direct_attribution._corrupt_side(task, np.ones((5, 1)), 2 * np.ones((5, 1)), list("abcde"))
    assert risen.passed is False  # more of the answer on the wrong side is no turn


def test_last_layer_fails_when_the_lens_reads_with_another_norm(model, task, monkeypatch) -> None:
    assert methods.logit_lens(model, task, seed=0).control("last_layer").passed
    monkeypatch.setattr(lens, "_decode", lambda m, stream: m.binding.readout(stream[:, None])[:, 0].detach())
    assert methods.logit_lens(model, task, seed=0).verdict == "invalid"


def test_approximation_fails_when_the_estimate_is_of_other_sites(model, task, monkeypatch) -> None:
    one = planted.one_head()
    pairs = planted.pairs(one)
    sites = ["L*H*.z", "L*.resid_pre", "L*.mlp_out"]
    exact = methods.activation_patching(one, pairs, sites=sites, positions="all", controls="none", seed=0)
    real = gradient_attribution._estimate

    def turned(*args):
        found = real(*args)
        return replace(found, estimate=found.estimate[::-1])

    monkeypatch.setattr(gradient_attribution, "_estimate", turned)
    r = methods.attribution_patching(one, pairs, sites=sites, exact=exact, seed=0)
    assert r.control("approximation").passed is False and r.verdict == "not distinguishable from its null"


def detectors(**scores: float) -> pd.DataFrame:
    """One head, one detector, its score by distribution."""
    return pd.DataFrame([{"site": "L0H0.pattern", "detector": "previous", "distribution": k, "score": v, "null_high": 0.5}
                         for k, v in scores.items()])  # fmt: skip


def test_detector_controls() -> None:
    assert patterns._other_texts(detectors(task=0.9, repeated=0.8)).passed
    assert patterns._other_texts(detectors(task=0.9, repeated=0.1)).passed is False
    assert patterns._other_texts(detectors(task=0.1, repeated=0.9)).passed is None
    assert patterns._shuffled(detectors(task=0.9, repeated=0.1)).passed
    assert patterns._shuffled(detectors(task=0.45)).passed is False  # attends everywhere, and so also there
    assert patterns._shuffled(detectors(task=0.1)).passed is False


def test_the_ends_of_a_set_and_its_faithfulness(model, task) -> None:
    s = setting(model, task, "noise")
    total = (methods_total(s)).astype(float)
    assert sets._ends(s, sites_of(model, "L*H*.z"), total).passed
    assert sets._ends(s, sites_of(model, "L*H*.z"), total + 0.5).passed is False

    def carried(share):
        return sets._faithful(
            mean_interval(np.full((1, 8), share) + np.linspace(-0.1, 0.1, 8), range(8)).at(0), 0.8, ""
        )

    assert carried(0.9).passed and carried(0.6).passed is False


def methods_total(s) -> np.ndarray:
    from microtome.replay.sweep import measure

    return (measure(s.donor_bench()) - measure(s.bench))[:, 0].numpy()


def stage(word: str, **outcomes: bool) -> Result:
    controls = [Control(name, "r", "e", 1.0, passed, 1) for name, passed in outcomes.items()]
    made = Result(
        "activation_patching",
        controls=controls,
        verdict=verdict(controls, tuple(outcomes)[:1], 1e-4, 0.001, 1e-4),
    )
    assert made.verdict == word
    return made


def test_a_dissection_stands_and_falls_with_its_stages_and_names_what_was_not_ruled_out() -> None:
    names = ("behaviour", "residual stream", "components", "component set")

    def run(*stages):
        kept = _Stages({"question": "?"})
        for name, made in zip(names, stages, strict=True):
            kept(name, 4, lambda made=made: made)
        return kept.result(stopped="", alpha=0.001)

    good, doubtful = stage("supported", a=True, b=True), stage("supported", a=True, b=False)
    bad = stage("not distinguishable from its null", a=False, b=True)
    assert run(good, good, good, good).control("all_ruled_out").passed
    named = run(good, doubtful, good, good)
    assert named.verdict == "supported" and named.control("all_ruled_out").passed is False
    assert any("residual stream" in reason for reason in named.verdict.reasons)
    assert run(good, good, bad, good).verdict == "not distinguishable from its null"
    assert run(good, good, good, good).control("stages").passed
