"""Discovery as a technique: every way finds the planted circuit, says what it did, and refuses what cannot be asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import planted
import tiny
from microtome import circuits, methods
from microtome.circuits import Choices, ask
from microtome.circuits.edge_pruning import LOW, TEMPERATURE, _sampled, learn_gates
from microtome.circuits.units import Units
from microtome.errors import ControlError, ResultError, SiteError, TaskError
from microtome.figures import pictures_of
from microtome.results import open_result
from microtome.results.arguments import ArgumentError

PLANTED = {"embed->L1KV1.k", "embed->L1KV1.v", "L1H2.z->logits"}


@pytest.fixture(scope="module")
def model():
    return planted.one_head()


@pytest.fixture(scope="module")
def task(model):
    return planted.pairs_done(model)


@pytest.mark.parametrize("how", ["eap", "eap-ig", "eap-ig-activations", "relp", "exact"])
def test_every_score_finds_the_planted_circuit(model, task, how):
    circuit = circuits.discover(model, task, how, size=6)
    assert set(circuit.edges) == PLANTED and circuit.how == how
    result = circuit.result
    assert result.verdict.word == "supported" and result.query.method == "circuit_discovery"
    curve = result.tables["curve"].iloc[-1]
    assert curve["k"] == 6 and curve["edges"] == 3 and curve["value"] == pytest.approx(1, abs=1e-4)
    edges = result.tables["edges"].set_index("edge")
    assert set(edges.index[edges["kept"]]) == PLANTED and len(edges) == 190
    strong = edges.loc["L1H2.z->logits"]
    assert strong["low"] <= strong["score"] <= strong["high"] and strong["score"] > 0
    assert result.effects.coords["site"][-1] == "circuit of 6 edges"
    np.testing.assert_allclose(result.effects.values[-1], 0, atol=1e-4)
    about = result.tables["about"].set_index("name")["value"]
    assert about["edges taken out because no path uses them"] == "3"
    assert (result.control("completeness").passed is True) == how.startswith("eap-ig")
    nulls = result.tables["nulls"]["value"]
    assert len(nulls) == 20 and abs(float(nulls.median())) < 0.2


def test_given_scores_are_used_and_those_of_another_question_refused(model, task):
    edges = methods.attribution_patching(model, task, of="edges", how="ig-inputs", mode="noise")
    own = circuits.discover(model, task, size=6)
    given = circuits.discover(model, task, size=6, scores=edges)
    assert given.edges == own.edges
    assert [given.scores[e] for e in own.edges] == pytest.approx([own.scores[e] for e in own.edges], rel=1e-4)
    assert given.result.control("completeness").passed
    with pytest.raises(ResultError, match="another question"):
        circuits.discover(model, task, "eap", size=6, scores=edges)
    with pytest.raises(ResultError, match="another question"):
        circuits.discover(model, task, size=6, scores=edges, choices=Choices(direction="denoise"))
    with pytest.raises(ResultError, match="another question"):
        circuits.discover(model, task, size=6, scores=edges, choices=Choices(ablation="zero"))
    with pytest.raises(ResultError, match="another task"):
        circuits.discover(model, planted.pairs_done(model, seed=5), size=6, scores=edges)
    with pytest.raises(ResultError, match="no scores"):
        circuits.discover(model, task, size=6, scores=methods.attribution_patching(model, task))
    with pytest.raises(ArgumentError, match="scores= with"):
        circuits.discover(model, task, "acdc", threshold=0.01, scores=edges)


def test_without_a_size_the_smallest_faithful_circuit_is_taken(model, task):
    circuit = circuits.discover(model, task, options={"sizes": (1, 4, 50), "share": 0.9})
    assert set(circuit.edges) == PLANTED
    curve = circuit.result.tables["curve"]
    assert list(curve["k"]) == [1, 50, 4]  # the found one last
    assert list(curve["value"]) == pytest.approx([0, 1, 1], abs=1e-4)


def test_a_threshold_keeps_what_reaches_it(model, task):
    scores = circuits.discover(model, task, "eap", size=6).result.tables["edges"].set_index("edge")["score"]
    least = min(abs(scores[e]) for e in PLANTED)
    circuit = circuits.discover(model, task, "eap", threshold=0.99 * least, options={"prune": False})
    assert set(circuit.edges) == set(scores.index[scores.abs() >= 0.99 * least])
    with pytest.raises(ControlError, match="no score reaches"):
        circuits.discover(model, task, "eap", threshold=1e6)


def test_denoising_keeps_edges_on_no_path_and_says_why(model, task):
    circuit = circuits.discover(model, task, "eap", size=1, choices=Choices(direction="denoise"))
    assert len(circuit) == 1
    about = circuit.result.tables["about"].set_index("name")["value"]
    assert "whether or not" in about["edges taken out because no path uses them"]
    # the head's output alone, clean, in the corrupt run
    head = circuits.discover(model, task, "exact", size=1, choices=Choices(direction="denoise"))
    assert head.result.tables["curve"]["value"].iloc[-1] == pytest.approx(1, abs=1e-4)
    assert head.edges[0] in PLANTED


def test_a_circuit_without_a_path_says_so(model, task):
    circuit = circuits.discover(model, task, "eap", size=1)
    assert len(circuit) == 0
    result = circuit.result
    assert result.control("connected").passed is False and result.control("faithful").passed is False
    assert result.control("random_edges").passed is None and result.verdict.word == "unchecked"


def test_a_task_that_no_edge_carries_finds_nothing(model):
    """The token in which the prompts differ cannot reach the answer."""
    silent = planted.nothing()
    pairs = planted.pairs(silent)
    for how, more in (("eap", {}), ("eap-ig", {}), ("exact", {}), ("acdc", {"threshold": 0.1})):
        with pytest.raises(TaskError, match="constant: no edge has an effect or a gradient") as error:
            circuits.discover(silent, pairs, how, **more)
        assert "same on all 14 prompts" in error.value.why


def test_a_gradient_that_vanishes_is_said(model, task, monkeypatch):
    """The ends differ, and the gradient where it is taken is 0: attribution cannot know."""
    from microtome.circuits import question

    def flat(self, how, **options):
        return np.zeros((self.edges, self.runs.n)), None

    monkeypatch.setattr(question.Question, "importance", flat)
    with pytest.raises(TaskError, match="gradient of logit_diff is zero at every edge") as error:
        circuits.discover(model, task, "eap")
    assert "exact" in error.value.instead


def test_spans_nodes_and_ablations_go_through_the_choices(model, task):
    spans = circuits.discover(model, task, "eap", size=8, choices=Choices(positions="spans"))
    assert spans.spans == ("subject", "end", "rest")
    assert set(spans.edges) <= {f"{e}@{s}" for e in circuits.graph(model).edges for s in spans.spans}
    assert "L1H2.z->logits@end" in spans.edges and "embed->L1KV1.v@subject" in spans.edges
    assert int(spans.mask(circuits.graph(model)).sum()) == len(spans)
    nodes = circuits.discover(model, task, "eap", size=2, choices=Choices(granularity="node"))
    assert set(nodes.nodes) == {"embed", "L1H2.z"}
    zero = circuits.discover(
        model, task, "exact", size=8, choices=Choices(ablation="zero"), options={"share": 0.0}
    )
    assert zero.choices.ablation == "zero" and "no run to hold" in zero.result.control("ends").expected
    heads = circuits.discover(model, task, "eap", size=1, choices=Choices(component="heads"))
    kinds = {e.split("->")[0].partition(".")[2] or "embed" for e in heads.edges}
    assert kinds == {"embed", "mlp_out", "z"} and sum(e.startswith("L1H2.z") for e in heads.edges) == 1


def test_all_positions_are_scored_by_distances(model, task):
    circuit = circuits.discover(model, task, "eap-ig", size=6, scored="all")
    assert circuit.result.effects.coords["metric"] == ("kl",)
    assert circuit.result.control("ends").passed
    assert circuit.result.tables["curve"]["value"].iloc[-1] == pytest.approx(1, abs=1e-3)


def test_what_cannot_be_asked_is_refused_with_the_nearest_name(model, task):
    for arguments, error, words in (
        ({"how": "eap-ib"}, ArgumentError, "eap-ig"),
        ({"how": "acdc", "threshold": 0.1, "options": {"walk": "group"}}, ArgumentError, "groups"),
        ({"options": {"absolut": True}}, ArgumentError, "absolute"),
        ({"how": "eap", "options": {"walk": "plain"}}, ArgumentError, "has the options"),
        ({"size": 191}, ControlError, "there are 190"),
        ({"size": 0}, ControlError, "at least one"),
        ({"size": 5, "threshold": 0.1}, ControlError, "one of them"),
        ({"threshold": -0.1}, ControlError, "from 0 on"),
        ({"threshold": 0.1, "select": "greedy"}, ControlError, "greedy"),
        ({"select": "gredy"}, ArgumentError, "greedy"),
        ({"how": "edge-pruning"}, ControlError, "needs a size"),
        ({"how": "edge-pruning", "size": 190}, ControlError, "1 to 189"),
        ({"how": "eap", "metric": "kl"}, ControlError, "no gradient"),
        (
            {"how": "eap-ig", "metric": "kl", "choices": Choices(direction="denoise")},
            ControlError,
            "corrupt one here",
        ),
    ):
        with pytest.raises(error, match=words):
            circuits.discover(model, task, **arguments)
    lacking = tiny.loaded("deepseek_v3")
    with pytest.raises(SiteError, match="no graph"):
        circuits.discover(lacking, planted.pairs(lacking), "eap")


def test_the_ends_control_fails_where_patching_does_not_reach_the_corrupt_run(model, task, monkeypatch):
    from microtome.graph.patched import EdgeRuns

    whole = EdgeRuns.measure

    def leaky(self, patched):
        patched = patched.clone()
        patched[:, [self.graph.number(e) for e in ("embed->L1KV1.k", "L1H2.z->logits")]] = False
        return whole(self, patched)

    monkeypatch.setattr(EdgeRuns, "measure", leaky)
    result = circuits.circuit_discovery(model, task, how="eap", size=6)
    assert result.control("ends").passed is False and result.verdict.word == "invalid"


def test_edge_pruning_finds_the_planted_circuit(model, task):
    circuit = circuits.discover(model, task, "edge-pruning", size=5, options={"steps": 80}, seed=1)
    assert set(circuit.edges) == PLANTED
    gates = circuit.result.tensors["gates"]
    assert gates.shape == (80, 3) and gates[-1, 1] < 0.2 and gates[0, 1] > 0.9
    again = circuits.discover(model, task, "edge-pruning", size=5, options={"steps": 80}, seed=1)
    np.testing.assert_array_equal(gates, again.result.tensors["gates"])


def test_gates_are_hard_concrete_samples():
    draw = torch.tensor(np.random.default_rng(0).uniform(size=200_000))
    gates = torch.full((200_000,), 0.4, dtype=torch.float64)
    sampled = _sampled(gates, draw)
    assert float(sampled.min()) == 0 and float(sampled.max()) == 1
    expected = torch.sigmoid(gates[0] - TEMPERATURE * np.log(-LOW / 1.1))
    assert float((sampled > 0).double().mean()) == pytest.approx(float(expected), abs=5e-3)


def test_the_gradient_of_gates_is_the_metrics(model, task):
    q = ask(model, task, metrics=("logit_diff", "kl"))
    learnt = learn_gates(q, Units.of(q), 0, 5, steps=3, seed=0)
    assert np.isfinite(learnt.scores).all() and np.ptp(learnt.scores) > 0


def test_a_result_is_saved_and_gives_the_circuit_again(model, task, tmp_path):
    circuit = circuits.discover(model, task, "acdc", threshold=0.01)
    again = circuits.circuit_of(open_result(circuit.result.save(tmp_path / "found")), model)
    assert again == circuit and again.scores == pytest.approx(dict(circuit.scores))
    with pytest.raises(ResultError, match="another model"):
        circuits.circuit_of(circuit.result, tiny.loaded("llama"))
    with pytest.raises(ResultError, match="its graph has 190 edges"):
        circuits.circuit_of(circuit.result, circuits.graph(tiny.loaded("llama-mha")))
    names = [p.name for p in pictures_of(circuit.result)]
    assert names == ["the circuit", "edges", "faithfulness by size", "decisions"]
    figure = pictures_of(circuit.result)[1].draw()
    bars = [t for t in figure.data if t.type == "bar"]
    assert {t.opacity for t in bars} == {0.4, 1.0}
    kept = [name for t in bars if t.opacity == 1 for name in t.hovertext]
    assert len(kept) == 3 and all("in the circuit" in name for name in kept)
