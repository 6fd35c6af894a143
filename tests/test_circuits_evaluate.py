"""Evaluation of circuits: the true one is supported, others are not, and each test comes out as what was planted."""

from __future__ import annotations

import numpy as np
import pytest

import planted
import tiny
from microtome import circuits
from microtome.circuits import Choices, Circuit
from microtome.circuits.circuit import named_edges
from microtome.circuits.measures import FRACTIONS, areas
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
    assert any("minimality" in r for r in padded.verdict.reasons)
    # as one of twelve heads does it all, one in twelve linked circuits of this shape has it too: size alone weakens a circuit
    assert 0.02 < padded.control("random_circuits").observed["p"] < 0.3


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


def test_two_copies_of_a_mechanism_are_two_circuits():
    """Either copy is faithful, and none is complete, independent of the rest, or the only one."""
    twins, pairs = planted.twins(), planted.copied()
    copy = ("embed->L1H2.q", "embed->L1H2.k", "embed->L1H2.v", "L1H2.z->logits")
    circuit = Circuit(copy, circuits.graph(twins).shape, twins.hash, Choices(ablation="zero"))
    light = {**QUICK, "draws": 20, "shuffles": 0, "inflated": 0, "bootstraps": 0}
    result = circuits.evaluate(twins, circuit, pairs, options=light)
    assert result.control("minimality").passed is None and result.control("stability").passed is None
    assert value(result, "faithfulness") == pytest.approx(1, abs=1e-3)
    for name in ("second", "completeness", "independence"):
        assert result.control(name).passed is False, name
    found = result.tables["second"]
    assert bool(found["as_well"].iloc[0]) and found["edges"].iloc[0] == 4
    title = " ".join(
        result.figure().layout.title.text.replace("<br>", " ").replace("<b>", "").replace("</b>", "").split()
    )
    assert title.startswith("Circuit of 4 edges: fails completeness, independence") and "second" in title


def test_an_effect_that_may_be_zero_is_no_contrast(model, task):
    """Answers turned in half of the pairs: the mean effect's interval contains 0."""
    from dataclasses import replace

    turn = [i % 2 for i in range(task.n)]
    answers, wrong = zip(
        *((w, a) if t else (a, w) for a, w, t in zip(task.answers, task.wrong, turn, strict=True)),
        strict=True,
    )
    mixed = replace(task, answers=answers, wrong=wrong)
    result = circuits.evaluate(model, made(model), mixed, options={**QUICK, "shuffles": 0})
    assert result.control("contrast").passed is False and result.verdict.word != "supported"
    assert (
        result.tables["measures"]["low"].iloc[0] != result.tables["measures"]["low"].iloc[0]
    )  # no interval of such a share


def test_scores_that_are_noise_are_not_stable(model, task, monkeypatch):
    from microtome.circuits import evaluating

    rng = np.random.default_rng(0)
    monkeypatch.setattr(evaluating, "_scores", lambda case: (rng.normal(size=(190, task.n)), "noise"))
    result = circuits.evaluate(
        model,
        made(model, [*TRUE, *circuits.graph(model).edges[:40]]),
        task,
        options=QUICK | {"bootstraps": 100},
    )
    assert result.control("stability").passed is False
    assert result.control("stability").observed["pairwise"] < 0.7
    edges = result.tables["edges"]
    inside = (edges["low"] <= edges["score"]) & (edges["score"] <= edges["high"])
    assert len(edges) == 190 and inside.all() and edges["frequency"].between(0, 1).all()


def test_a_leak_in_patching_makes_it_invalid(model, task, monkeypatch):
    from microtome.graph.patched import EdgeRuns

    whole = EdgeRuns.measure

    def leaky(self, patched):
        patched = patched.clone()
        patched[:, [self.graph.number(e) for e in ("embed->L1KV1.k", "L1H2.z->logits")]] = False
        return whole(self, patched)

    from microtome.circuits.case import case_of
    from microtome.circuits.judged import ends_control

    case = case_of(model, made(model), task)
    monkeypatch.setattr(EdgeRuns, "measure", leaky)
    control = ends_control(case.search)
    assert control.gates and control.passed is False


def test_a_circuit_that_fails_elsewhere_fails_held_out(model, task):
    wrong = made(model, ["embed->L1KV0.v", "L1H0.z->logits", "embed->L1KV0.k"])
    result = circuits.evaluate(
        model,
        wrong,
        task,
        held_out=planted.pairs_done(model, seed=5),
        options={**QUICK, "shuffles": 0, "second": False},
    )
    assert result.control("held_out").passed is False
    assert result.control("shuffled_labels").passed is None and result.control("second").passed is None


def test_labels_are_exchanged_in_half_of_the_clusters_and_answers_stay(task):
    from microtome.circuits.nulls import exchanged, halved

    codes = np.repeat(np.arange(7), 2)
    which = halved(codes, seed=0, draw=0)
    assert (
        which.reshape(7, 2).all(1).sum() == 3
        and (which.reshape(7, 2).any(1) == which.reshape(7, 2).all(1)).all()
    )
    assert any((halved(codes, 0, d) != which).any() for d in range(1, 5))
    other = exchanged(task, which)
    for i, turn in enumerate(which):
        sides = (other.clean.ids[i], other.corrupt.ids[i])
        assert sides == (
            (task.corrupt.ids[i], task.clean.ids[i]) if turn else (task.clean.ids[i], task.corrupt.ids[i])
        )
    assert other.answers == task.answers and other.wrong == task.wrong


def test_the_planted_circuit_beats_shuffled_labels(model, task):
    """Under labels that mean nothing the same edges are found, and no effect."""
    from microtome.circuits.case import case_of
    from microtome.circuits.nulls import shuffled

    circuit = made(model)
    found = shuffled(case_of(model, circuit, task), circuit, 19)
    assert (found.effect < found.real).all() and np.median(found.same) == 1


def test_null_circuits_have_the_shape_are_linked_and_are_not_the_circuit(model, task):
    from microtome.circuits.case import case_of
    from microtome.circuits.connect import connected
    from microtome.circuits.nulls import of_shape, of_strongest

    padded = made(
        model,
        ["embed->L0.ln2_out", "L0.mlp_out->L2.ln2_out", "L2.mlp_out->logits", *TRUE, "embed->L2.ln2_out"],
    )
    case = case_of(model, padded, task)
    drawn = of_shape(case, 30, 0.05)
    kinds = np.array(case.units.kinds)
    assert len(drawn.sets) == 30 == len({s.tobytes() for s in drawn.sets}) and "all on paths" in drawn.label
    for s in drawn.sets:
        assert sorted(kinds[s]) == sorted(kinds[case.chosen]) and set(s) != set(case.chosen)
        mask = case.mask(s)
        assert (connected(case.question.graph, mask) == mask).all()
    scores = np.arange(190.0)
    top = of_strongest(case, scores, 30, 0.05)
    assert min(int(s.min()) for s in top.sets) >= 190 - 3 * len(case.chosen)


def test_random_paths_of_inflated_circuits_go_from_the_embedding_to_the_logits(model, task):
    from microtome.circuits.case import case_of
    from microtome.circuits.connect import all_on_paths
    from microtome.circuits.hypotheses import _inflated, _path

    case = case_of(model, made(model), task)
    for seed in range(20):
        assert all_on_paths(case.question.graph, _path(case, np.random.default_rng(seed)))
    pairs = _inflated(case, 10)
    assert len(pairs) == 10
    for more, less in pairs:
        assert (
            (more & ~less).sum() == 1
            and not (less & ~more).any()
            and (more >= case.kept).all()
            and (less >= case.kept).all()
        )


def test_the_cost_is_known_before_and_holds(model, task):
    circuit = made(model)
    cost = circuits.estimate_cost(model, circuit, task, options=QUICK)
    from microtome.graph.patched import EdgeRuns

    spent, run = [0], EdgeRuns.measure

    def counting(self, patched):
        before = self.forwards
        out = run(self, patched)
        spent[0] += self.forwards - before
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EdgeRuns, "measure", counting)
        circuits.evaluate(model, circuit, task, options=QUICK)
    gradients = 3 * 8 * task.n  # once: exchanged labels turn the signs of the scores
    assert 0.6 * (cost["all"] - gradients) <= spent[0] <= cost["all"] - gradients
    assert cost["all"] == sum(v for k, v in cost.items() if k != "all")


def test_nodes_spans_and_distances_go_through(model, task):
    node = circuits.evaluate(
        model, made(model, choices=Choices(granularity="node")), task, options={**QUICK, "shuffles": 0}
    )
    assert value(node, "faithfulness") == pytest.approx(1, abs=1e-3)
    assert list(node.tables["units"]["unit"]) == ["embed", "L1H2.z"]
    spans = circuits.evaluate(
        model, made(model, choices=Choices(positions="spans")), task, options={**QUICK, "shuffles": 0}
    )
    assert value(spans, "faithfulness") == pytest.approx(1, abs=1e-3)
    assert {u.partition("@")[2] for u in spans.tables["units"]["unit"]} == {"subject", "end", "rest"}
    assert spans.control("minimality").passed is False  # a value is needed at one span only
    distance = circuits.evaluate(model, made(model), task, metric="kl", options=QUICK)
    assert (
        distance.control("shuffled_labels").passed is True
        and "logit_diff" not in distance.effects.coords["metric"]
    )


def test_spans_in_another_order_are_the_same_circuit(model, task):
    from microtome.circuits.case import case_of

    names = ("subject", "end", "rest")
    edges = (
        "embed->L1KV1.k@subject",
        "embed->L1KV1.v@subject",
        "L1H2.z->logits@end",
        "embed->L2.ln2_out@rest",
    )
    kept = []
    for spans in (names, names[::-1]):
        by_span = made(model, edges, choices=Choices(positions="spans"), spans=spans)
        case = case_of(model, by_span, task)
        kept.append(named_edges(case.question.graph, case.kept, case.question.runs.spans))
    assert kept[0] == kept[1] and {*kept[0]} == {*edges}


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
