"""Marks and rates: an oracle is perfect, a blind guesser gets what it should, ties and empty sets count as they must."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import microtome.zoo as zoo
from microtome.errors import ControlError, ModelError
from microtome.zoo import Decoys
from microtome.zoo.calibrate import Reading, Truth, mark, truth
from microtome.zoo.calibrate.measures import auroc, rate


def reading(t, flag, rng=None):
    """Every part of a truth; flagged by `flag`, scored by chance or by the flag."""
    names = sorted(t.true | t.null | t.undecided)
    flags = np.array([flag(n) for n in names], dtype=bool)
    scores = flags.astype(float) if rng is None else rng.random(len(names))
    return Reading(tuple(names), scores, flags)


@pytest.fixture(scope="module")
def specimen():
    return zoo.build("reverse", seed=0, decoys=Decoys())


@pytest.mark.parametrize("kind", ["nodes", "edges", "direct", "streams"])
@pytest.mark.parametrize("by", ["zero", "mean", "resample", "corrupt", "clean"])
def test_an_oracle_is_never_wrong(specimen, kind, by):
    t = truth(specimen, kind, by)
    made = mark(reading(t, lambda n: n in t.true), t)
    assert made.rates() == {"recall": 1, "false discoveries": 0, "false alarms": 0, "auroc": 1}
    assert not t.true & t.null and not t.undecided & (t.true | t.null) and t.by == "ablation"
    worst = mark(reading(t, lambda n: n in t.null), t)
    assert worst.rates() == {"recall": 0, "false discoveries": 1, "false alarms": 1, "auroc": 0}


def test_a_blind_guesser_gets_what_it_should(specimen):
    t, rng = truth(specimen, "edges", "zero"), np.random.default_rng(0)
    every = [mark(reading(t, lambda n: rng.random() < 0.3, rng), t).rates() for _ in range(400)]
    mean = {k: np.mean([r[k] for r in every]) for k in every[0]}
    share = len(t.null) / (len(t.null) + len(t.true))
    wanted = {"recall": 0.3, "false alarms": 0.3, "auroc": 0.5, "false discoveries": share}
    assert all(abs(mean[k] - v) < 0.02 for k, v in wanted.items()), mean


def test_truth_depends_on_what_a_part_is_replaced_by(specimen):
    by = {a: truth(specimen, "edges", a).true for a in ("zero", "corrupt", "resample")}
    assert by["zero"] == set(specimen.true_edges("zero")) and by["corrupt"] == set(
        specimen.true_edges("resample")
    )
    assert by["corrupt"] < by["zero"] == set(specimen.mechanism.confirmed_last)
    assert truth(specimen, "edges", "corrupt").undecided == by["zero"] - by["corrupt"]
    with pytest.raises(ModelError, match="'neurons'"):
        truth(specimen, "neurons", "zero")


def test_nodes_and_streams_follow_the_edges(specimen):
    m = specimen.mechanism
    assert truth(specimen, "nodes", "zero").true == set(m.nodes)
    direct = truth(specimen, "direct", "zero").true
    assert direct == {e.split("->")[0] for e in m.confirmed_last if e.endswith("->logits")}
    streams = truth(specimen, "streams", "zero")
    assert (
        streams.true == {"final_resid"} and "L0.resid_pre" in streams.null
    )  # its last layer writes the answer


def test_a_model_with_norms_falls_back_on_its_mechanism(specimen, monkeypatch):
    def refuses(*_):
        raise ModelError("this model has norms")

    monkeypatch.setattr("microtome.zoo.calibrate.truths.forward", refuses)
    for kind in ("nodes", "edges", "direct"):
        t = truth(specimen, kind, "zero")
        monkeypatch.undo()
        assert t == replace(truth(specimen, kind, "zero"), by="mechanism")
        monkeypatch.setattr("microtome.zoo.calibrate.truths.forward", refuses)


def test_ties_count_one_half():
    assert auroc(np.array([1.0, 1.0]), np.array([1.0, 1.0, 1.0])) == 0.5
    assert auroc(np.array([2.0, 1.0]), np.array([1.0, 0.0])) == (1 + 1 + 0.5 + 1) / 4
    assert auroc(np.zeros(0), np.ones(2)) is None
    rng = np.random.default_rng(1)
    from sklearn.metrics import roc_auc_score

    for _ in range(20):
        scores, labels = rng.integers(0, 5, 30).astype(float), rng.random(30) < 0.4
        assert auroc(scores[labels], scores[~labels]) == pytest.approx(roc_auc_score(labels, scores))


T = Truth(frozenset({"a"}), frozenset({"b", "c"}), frozenset({"d"}))


def test_what_the_mechanism_leaves_open_counts_for_nothing():
    one = Reading(("a", "b", "c", "d"), np.array([3.0, 0.0, 1.0, 2.0]), np.array([True, False, False, True]),
                  np.array([1.0, -1e-9, 0.5, 1.0]), np.array([2.0, -1e-9, 0.6, 2.0]))  # fmt: skip
    made = mark(one, T)
    assert (made.true, made.null, made.undecided, made.hits, made.alarms, made.auroc) == (1, 2, 1, 1, 0, 1.0)
    assert (made.covered, made.intervals) == (1, 2)  # b's lies beside 0 by rounding alone
    nothing = mark(replace(one, flags=np.zeros(4, bool)), T).rates()
    assert nothing["recall"] == 0 and np.isnan(nothing["false discoveries"])


@pytest.mark.parametrize("names", [("a", "x"), ("a", "a")])
def test_a_part_that_the_truth_does_not_know_is_an_error(names):
    with pytest.raises(ControlError, match="a reading about"):
        mark(Reading(names, np.ones(2), np.ones(2, bool)), T)


def test_intervals_are_over_models_and_variants_are_one():
    ones = rate([1.0] * 9, ["a", "b", "c"] * 3)
    assert (
        ones["value"] == ones["high"] == 1
        and ones["low"] == pytest.approx(0.025 ** (1 / 3))
        and ones["clusters"] == 3
    )
    rng = np.random.default_rng(0)
    x = rng.random(30)
    alone, together = (rate(np.repeat(x, 3), c) for c in (range(90), np.repeat(range(30), 3)))
    assert together["high"] - together["low"] > 1.5 * (alone["high"] - alone["low"])
    assert rate([float("nan")], ["a"]) == {"value": None, "low": None, "high": None, "n": 0, "clusters": 0}
    assert rate([0.5], ["a"])["low"] is None
    wide = rate([0.0, 0.0, 0.9], ["a", "b", "c"])
    assert wide["low"] == 0 and wide["high"] <= 1


@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_a_rates_interval_covers(spread):
    """Models of 40 parts whose true rate is .7, with some spread between programs."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(300):
        own = np.repeat(np.clip(0.7 + spread * rng.standard_normal(15), 0, 1), 2)
        made = rate(rng.binomial(40, own) / 40, np.repeat(range(15), 2))
        hits += made["low"] <= 0.7 <= made["high"]
    assert 0.92 < hits / 300 < 0.98


def test_tokens_are_true_where_another_one_changes_the_answer():
    shifted = zoo.build("shift", seed=0, n=8)
    t = truth(shifted, "tokens", "none")
    assert (
        t.true == {"4"} and t.null == {"1", "2", "3", "5"} and t.by == "inputs"
    )  # the answer is the token before
    with pytest.raises(ModelError, match="tokens"):
        truth(shifted, "tokens", "zero")


def test_a_copy_that_lacks_a_part_differs_in_it_alone_and_what_follows_is_true_too():
    from microtome.zoo.calibrate.twins import lacking, placebo, without

    z = zoo.build("planted_backdoor", seed=0, decoys=Decoys())
    assert lacking(z) == z.mechanism.variable("trigger").site == "L1H3.z"
    first = without(z)
    t = truth(z, "nodes", "lacking")
    assert t.true == {"L1H3.z", "L2.mlp_out"} and "L1H1.z" in t.undecided and not t.true & t.null
    one, other = (m.run(list(z.task.clean.ids), ["L1.z"], logits="last") for m in (first, z.model))
    same = one["L1.z"] == other["L1.z"]
    assert same[:, :, [0, 1, 2]].all() and not same[:, :, 3].all() and (one["L1.z"][:, :, 3] == 0).all()
    again = placebo(z, first, 0)
    moved = [n for n, p in again.hf.named_parameters() if (p != dict(first.hf.named_parameters())[n]).any()]
    real = [n for n, p in z.model.hf.named_parameters() if (p != dict(first.hf.named_parameters())[n]).any()]
    assert moved == real == ["model.layers.1.self_attn.v_proj.weight"]
