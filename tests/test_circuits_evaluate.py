"""Evaluation of circuits: the true one is supported, others are not, and each test comes out as what was planted."""

from __future__ import annotations

import numpy as np
import pytest

import planted
import tiny
from microtome import circuits
from microtome.circuits import Circuit
from microtome.circuits.measures import FRACTIONS
from microtome.errors import ControlError, SiteError, TaskError
from microtome.results import open_result
from microtome.results.arguments import ArgumentError

TRUE = ("embed->L1KV1.k", "embed->L1KV1.v", "L1H2.z->logits")
QUICK = {"draws": 40, "inflated": 20, "permutations": 99, "subsets": 4}


@pytest.fixture(scope="module")
def model():
    return planted.one_head()


@pytest.fixture(scope="module")
def task(model):
    return planted.pairs_done(model)


def made(model, edges=TRUE, **more):
    return Circuit(tuple(edges), circuits.graph(model).shape, model.hash, **more)


@pytest.fixture(scope="module")
def result(model, task):
    return circuits.evaluate(model, made(model), task, truth=TRUE, options=QUICK)


def value(result, quantity):
    table = result.tables["measures"].set_index("quantity")
    return float(table.loc[quantity, "value"])


def test_the_planted_circuit_is_supported_and_passes_every_test(result):
    assert result.verdict.word == "supported" and result.kind == "circuit_evaluation"
    failed = [c.name for c in result.controls if c.passed is False]
    assert failed == []
    assert value(result, "faithfulness") == pytest.approx(1, abs=1e-4)
    assert value(result, "faithfulness of the complement") == pytest.approx(0, abs=1e-4)
    assert value(result, "ROC area against the truth") == 1
    assert list(result.effects.coords["site"]) == ["circuit of 3 edges", "complement", "empty circuit"]
    np.testing.assert_allclose(result.effects.values[0, :, 0], 0, atol=1e-4)
    assert result.verdict.smallest_p == pytest.approx(0.05)


def test_every_score_stores_the_six_choices(result, task):
    table = result.tables["measures"]
    for name, stored in (
        ("granularity", "edge"),
        ("component", "all"),
        ("ablation", "corrupt"),
        ("positions", "all"),
        ("direction", "noise"),
    ):
        assert set(table[name]) == {stored}
    assert all(task.hash[:12] in text for text in table["prompts"])


def test_per_prompt_distributions_and_the_worst_case_are_kept(model, task):
    part = circuits.evaluate(model, made(model, [*TRUE[1:]]), task, options=QUICK)
    prompts = part.tables["prompts"]
    assert len(prompts) == task.n
    gap = prompts["circuit"] - prompts["whole model"]
    assert value(part, "circuit minus whole model, lowest") == pytest.approx(gap.min())
    assert value(part, "KL, worst prompt") == pytest.approx(prompts["kl"].max())
    assert value(part, "KL, mean") == pytest.approx(prompts["kl"].mean())


def test_kl_is_summed_over_the_vocabulary(model, task):
    """Against a softmax by hand: the mean over the vocabulary would be smaller by its size."""
    import torch

    result = circuits.evaluate(model, made(model, ["embed->logits"]), task, options=QUICK)
    logits = [
        model.run([list(ids) for ids in side.ids], logits="last").logits[:, -1]
        for side in (task.clean, task.corrupt)
    ]
    p = torch.log_softmax(logits[0].double(), -1)
    # the circuit embed -> logits carries nothing of what differs: its output is the corrupt run's
    q = torch.log_softmax(logits[1].double(), -1)
    by_hand = (p.exp() * (p - q)).sum(-1).numpy()
    np.testing.assert_allclose(result.tables["prompts"]["kl"], by_hand, atol=1e-4)


def test_the_whole_model_is_faithful_and_has_no_null(model, task):
    every = circuits.evaluate(model, made(model, circuits.graph(model).edges), task, options=QUICK)
    assert value(every, "faithfulness") == pytest.approx(1, abs=1e-5)
    assert every.control("random_circuits").passed is None and every.verdict.word == "unchecked"
    assert every.control("minimality").passed is None  # nothing outside to inflate it with


def test_a_circuit_that_carries_nothing_is_not_supported(model, task):
    wrong = circuits.evaluate(
        model, made(model, ["embed->L1KV0.v", "L1H0.z->logits", "embed->L1KV0.k"]), task, options=QUICK
    )
    assert value(wrong, "faithfulness") == pytest.approx(0, abs=1e-4)
    assert wrong.verdict.word == "not distinguishable from its null"
    for name in (
        "faithful",
        "random_circuits",
        "strong_circuits",
        "completeness",
        "independence",
        "minimality",
    ):
        assert wrong.control(name).passed is False, name
    assert wrong.control("shuffled_labels").passed is False
    assert wrong.control("second").passed is None  # not faithful itself


def test_an_edge_without_use_makes_it_not_minimal(model, task):
    padded = circuits.evaluate(
        model, made(model, [*TRUE, "embed->L2.ln2_out", "L2.mlp_out->logits"]), task, options=QUICK
    )
    control = padded.control("minimality")
    assert control.passed is False and control.observed["redundant"] == 2
    assert "embed->L2.ln2_out" in control.detail and "L2.mlp_out->logits" in control.detail
    units = padded.tables["units"].set_index("unit")
    assert (units.loc[list(TRUE), "p"] <= 0.05).all()
    assert padded.verdict.word == "supported" and any("minimality" in r for r in padded.verdict.reasons)


def test_areas_of_a_perfect_ranking():
    ones = np.ones(len(FRACTIONS))
    assert circuits.cpr(FRACTIONS, ones) == pytest.approx(0.999)
    assert circuits.cmd(FRACTIONS, ones) == 0
    assert circuits.cpr(FRACTIONS, ones, log=True) == pytest.approx(1)
    assert circuits.cmd(FRACTIONS, 0 * ones, log=True) == pytest.approx(1)
    late = (np.array(FRACTIONS) >= 0.2).astype(float)  # right only from a fifth of the graph on
    assert circuits.cpr(FRACTIONS, late) > 0.8 and circuits.cpr(FRACTIONS, late, log=True) < 0.3
    above = circuits.cpr(FRACTIONS, 1.5 * ones), circuits.cmd(FRACTIONS, 1.5 * ones)
    assert above == pytest.approx((0.999 * 1.5, 0.999 * 0.5))
    with pytest.raises(ControlError, match="rising"):
        circuits.cpr([0.1, 0.1], [1, 1])


def test_ten_sizes_are_one_batch_and_signed_and_absolute_differ(model, task):
    from microtome.circuits.case import case_of
    from microtome.circuits.measures import areas

    case = case_of(model, made(model), task)
    _ = case.ends
    before = case.question.runs.calls, case.question.runs.forwards
    g = circuits.graph(model)
    scores = np.linspace(1e-3, 1e-6, len(g.edges))
    scores[[g.number(e) for e in TRUE]] = (3, 2, -1)  # the head's edge counts as harmful
    table, found = areas(case, scores)
    assert case.question.runs.calls - before[0] <= 12
    assert case.question.runs.forwards - before[1] <= 20 * task.n
    table = table.set_index(["ranking", "fraction"])["value"]
    assert table["absolute", 0.02] == pytest.approx(1, abs=1e-4)  # three of 190 edges
    assert table["signed", 0.5] == pytest.approx(0, abs=1e-4) and table["signed", 1.0] == pytest.approx(1)
    assert found["CPR"] < 0.3 and found["CMD"] < 0.03


def test_held_out_prompts_are_tested_and_must_be_held_out(model, task):
    other = planted.pairs_done(model, seed=5)
    circuit = circuits.discover(model, task, "eap", size=6)
    alone = circuits.evaluate(model, circuit, task, options=QUICK)
    assert alone.verdict.word == "unchecked" and "these very prompts" in alone.control("held_out").detail
    both = circuits.evaluate(model, circuit, task, held_out=other, options=QUICK)
    assert both.verdict.word == "supported" and both.control("held_out").passed is True
    assert both.control("held_out").n == other.n
    rows = both.tables["measures"].set_index("quantity")
    assert other.hash[:12] in rows.loc["faithfulness, held out", "prompts"]
    with pytest.raises(TaskError, match="not held out"):
        circuits.evaluate(model, circuit, task, held_out=task)


def test_what_cannot_be_evaluated_is_refused(model, task):
    with pytest.raises(SiteError, match="another model"):
        circuits.evaluate(tiny.loaded("llama"), made(model), task)
    with pytest.raises(SiteError, match="another model") as error:
        circuits.evaluate(tiny.loaded("llama-mha"), made(model), task)
    assert "key/value heads" in error.value.why
    with pytest.raises(ControlError, match="no path"):
        circuits.evaluate(model, made(model, ["L1H2.z->logits"]), task)
    with pytest.raises(ArgumentError, match="draws"):
        circuits.evaluate(model, made(model), task, options={"drows": 3})
    silent = planted.nothing()
    with pytest.raises(TaskError, match="constant"):
        circuits.evaluate(silent, made(silent, ["embed->logits"]), planted.pairs(silent))


def test_a_level_that_the_draws_cannot_reach_is_said(model, task):
    few = circuits.evaluate(model, made(model), task, options={**QUICK, "alpha": 0.001})
    assert few.control("shuffled_labels").passed is None and few.verdict.word == "unchecked"
    assert "0.05 at best" in few.control("shuffled_labels").detail


def test_a_result_is_saved_and_read_again(result, tmp_path):
    again = open_result(result.save(tmp_path / "evaluated"))
    assert again == result


@pytest.mark.parametrize("how", ["eap-ig", "eap", "exact"])
def test_discoveries_on_shuffled_labels_are_those_of_a_search_on_the_exchanged_pairs(model, task, how):
    """All draws are put together from two searches: each must be what its own search on its own pairs finds."""
    from dataclasses import replace

    from microtome.circuits import ask, nulls
    from microtome.circuits.case import case_of
    from microtome.circuits.search import Search
    from microtome.circuits.units import first, ranked
    from microtome.controls.clusters import as_clusters

    case = case_of(model, made(model, how=how), task)
    codes = as_clusters(case.question.clusters).codes
    masks, effect = nulls._found_again(case, codes, how, 3, None)
    for draw in range(3):
        flip = nulls.halved(codes, case.seed, draw)
        assert 0 < flip.sum() < len(flip)
        own = ask(model, nulls.exchanged(task, flip), replace(case.question.choices, prompts=""), metrics=case.question.setting.metrics[:1])  # fmt: skip
        search = Search(own, case.units, 0, case.search.options, case.seed)
        scores = case.units.scores(nulls.importance(search, how).mean(1))
        there = first(case.units, ranked(case.units, scores, "top-n", absolute=True), len(case.chosen))
        assert set(np.flatnonzero(search.path(there))) == set(np.flatnonzero(masks[draw]))
        kept = search.measure([masks[draw]])[0, :, 0] - own.ends[1][:, 0]
        assert effect[draw] == pytest.approx(abs(float(kept.mean())), abs=1e-4)
