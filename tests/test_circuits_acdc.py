"""ACDC: finds what was planted, walks ahead to the same circuit, and says where blocks hide edges that cancel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import planted
import tiny
from microtome import circuits
from microtome.circuits import Choices, ask
from microtome.circuits.acdc import Guess, Losses, plain, speculative
from microtome.circuits.groups import group_testing
from microtome.circuits.units import Units
from microtome.errors import ControlError
from microtome.facade import Model
from microtome.model.load import load_module
from microtome.tasks.files import pairs

PLANTED = ("embed->L1KV1.k", "embed->L1KV1.v", "L1H2.z->logits")
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 8, "head_dim": 4, "intermediate_size": 8}  # fmt: skip


@pytest.fixture(scope="module")
def one_head():
    model = planted.one_head()
    return model, planted.pairs_done(model)


@pytest.mark.parametrize("walk", ["plain", "speculative", "groups"])
def test_every_walk_finds_the_planted_circuit(one_head, walk):
    model, task = one_head
    circuit = circuits.discover(model, task, "acdc", threshold=0.01, options={"walk": walk})
    assert circuit.edges == PLANTED
    assert circuit.result.verdict.word == "supported"
    assert circuit.result.tables["curve"]["value"].iloc[-1] == pytest.approx(1, abs=1e-5)
    decisions = circuit.result.tables["decisions"]
    assert len(decisions) == 190 and set(decisions["edge"][decisions["kept"]]) == set(PLANTED)
    counts = dict(zip(*(circuit.result.tables["counts"][c] for c in ("name", "value")), strict=True))
    # 156 edges go into parts that by then lead nowhere; the others take a run each, in fewer calls
    assert counts["dropped without a run"] == 156
    assert counts["forward calls"] == 35 if walk == "plain" else counts["forward calls"] <= 13


def test_what_nobody_reads_is_dropped_without_a_run_and_nothing_else_changes(one_head):
    model, task = one_head
    q = ask(model, task, metrics=("logit_diff", "kl"))
    losses, units = Losses(q, 1), Units.of(q)
    short = plain(losses, units, units.free, 0.01)
    long = plain(losses, units, units.free, 0.01, dead=False)
    np.testing.assert_array_equal(short.kept, long.kept)
    tested = {d.unit: d for d in long.decisions}
    dead = [d.unit for d in short.decisions if d.how == "dead"]
    assert len(dead) == 156 and max(abs(tested[u].rise) for u in dead) < 1e-6


def randomised(hf, seed):
    tiny.randomise(hf, seed)
    return Model(load_module(hf))


def small_task(model, seed, n=2):
    g = torch.Generator().manual_seed(seed)
    rows = torch.randint(3, tiny.VOCAB, (2, n, 4), generator=g)
    rows[1, :, 0] = rows[0, :, 0]
    answer = torch.randint(3, 50, (n,), generator=g).tolist()
    return pairs(
        model, clean=rows[0].tolist(), corrupt=rows[1].tolist(), answer=answer, wrong=[a + 40 for a in answer]
    )


def test_speculative_equals_plain_on_200_random_models():
    hf = tiny.build("llama", **SMALL)
    walked, ahead, worst = 0, 0, 0.0
    for seed in range(200):
        model = randomised(hf, seed)
        rng = np.random.default_rng(seed)
        metric = ("kl", "logit_diff", "l2")[seed % 3]
        choices = Choices(
            ablation="zero" if seed % 4 == 3 else "corrupt", granularity="node" if seed % 5 == 4 else "edge"
        )
        q = ask(model, small_task(model, seed), choices, metrics=(metric,))
        losses, units = Losses(q), Units.of(q)
        tau = float(np.exp(rng.uniform(np.log(1e-7), 0.0)) * losses.alone(units.fixed))
        one = plain(losses, units, units.free, tau)
        calls = q.runs.calls
        # any prediction will do, the worst ones included: random scores half of the time
        scores = (
            rng.normal(size=len(units))
            if seed % 2
            else units.scores(q.importance("ig-inputs", steps=2, most=2)[0].mean(1))
        )
        other = speculative(losses, units, units.free, tau, scores, batch=int(rng.integers(1, 40)))
        walked, ahead = (
            walked + sum(d.how == "tested" for d in one.decisions) + 1,
            ahead + q.runs.calls - calls,
        )
        np.testing.assert_array_equal(one.kept, other.kept, err_msg=f"seed {seed}, tau {tau}")
        assert [(d.unit, d.kept, d.how) for d in one.decisions] == [
            (d.unit, d.kept, d.how) for d in other.decisions
        ]
        mine, its = (np.array([d.loss for d in found.decisions]) for found in (one, other))
        worst = max(worst, float(np.abs(mine - its).max()) / losses.rounding(*its))
    assert 2 * ahead < walked, (ahead, walked)
    assert worst < 0.3, worst  # batches differ by far less than what is decided again alone


def test_decisions_at_the_very_threshold_are_those_of_the_plain_walk(one_head):
    """tau is the rise of one of the plain walk's own decisions, to the last bit: batches differ from it by rounding."""
    model, task = one_head
    q = ask(model, task, metrics=("kl",))
    losses, units = Losses(q), Units.of(q)
    rises = [
        d.rise for d in plain(losses, units, units.free, 0.01).decisions if d.how == "tested" and d.rise > 0
    ]
    for tau in (*rises[:4], 0.0):
        one = plain(losses, units, units.free, tau)
        for batch in (7, 64):
            other = speculative(losses, units, units.free, tau, np.zeros(len(units)), batch=batch)
            np.testing.assert_array_equal(one.kept, other.kept)


def test_a_prediction_learns_where_the_cut_is():
    scores = np.linspace(0, 1, 101)
    guess = Guess(scores)
    order = np.random.default_rng(0).permutation(101)
    wrong = 0
    for unit in (*order, *order):
        drop = bool(scores[unit] < 0.7)
        wrong += guess.drop(int(unit)) != drop
        guess.learn(int(unit), drop=drop)
    assert wrong <= 12 and 0.66 < guess.cut < 0.72


def cancelling():
    """Two heads that write the same with opposite signs, and one that carries the answer."""
    hf = tiny.build("llama-mha")
    width = hf.config.head_dim
    with torch.no_grad():
        for layer in hf.model.layers:
            layer.mlp.down_proj.weight.zero_()
        for index, layer in enumerate(hf.model.layers):
            out = layer.self_attn.o_proj.weight
            kept = out.clone()
            out.zero_()
            if index == 1:
                for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                    part.weight[width : 2 * width] = part.weight[
                        :width
                    ]  # head 1 computes what head 0 computes
                out[:, :width] = 12 * kept[:, :width]
                out[:, width : 2 * width] = -12 * kept[:, :width]
                out[:, 2 * width : 3 * width] = 4 * kept[:, 2 * width : 3 * width]
    return Model(load_module(hf.eval()))


def test_group_testing_loses_edges_that_cancel_and_says_so():
    model = cancelling()
    task = planted.pairs(model)
    walked = circuits.discover(model, task, "acdc", threshold=0.05, options={"walk": "plain"})
    blocks = circuits.discover(model, task, "acdc", threshold=0.05, options={"walk": "groups"})
    pair = {"embed->L1H0.v", "embed->L1H1.v"}
    assert pair <= set(walked.edges) and not pair & set(blocks.edges)
    assert "embed->L1H2.v" in blocks.edges
    same = blocks.result.control("same_as_plain")
    assert same.passed is False and same.observed["jaccard"] < 0.9 and "embed->L1H0.v" in same.detail
    alone = blocks.result.control("cancelling")
    assert alone.passed is False and "embed->L1H1.v (+" in alone.detail
    reasons = " ".join(blocks.result.verdict.reasons)
    assert "cancelling failed" in reasons and "same_as_plain failed" in reasons
    honest = circuits.discover(planted.one_head(), planted.pairs(planted.one_head()), "acdc", threshold=0.05, options={"walk": "groups"})  # fmt: skip
    assert honest.result.control("same_as_plain").passed and honest.result.control("cancelling").passed


def test_a_comparison_that_was_not_affordable_did_not_run(one_head):
    model, task = one_head
    made = circuits.discover(model, task, "acdc", threshold=0.01, options={"walk": "groups", "check": 100})
    control = made.result.control("same_as_plain")
    assert control.passed is None and "190 units are more than check=100" in control.detail


def test_group_testing_takes_fewer_runs_where_little_matters():
    hf = tiny.build("llama")
    model = randomised(hf, 3)
    q = ask(model, planted.pairs(model), metrics=("logit_diff", "kl"))
    losses, units = Losses(q, 1), Units.of(q)
    tau = 0.02 * losses.alone(units.fixed)
    before = q.runs.calls
    one = plain(losses, units, units.free, tau)
    walked = q.runs.calls - before
    scores = units.scores(q.importance("ig-inputs", steps=2, most=2)[0].mean(1))
    before = q.runs.calls
    other = group_testing(losses, units, units.free, tau, scores)
    assert q.runs.calls - before < walked
    assert (
        sorted(d.unit for d in other.decisions) == list(range(190)) == sorted(d.unit for d in one.decisions)
    )


def test_only_the_top_layers_may_be_walked(one_head):
    model, task = one_head
    made = circuits.discover(model, task, "acdc", threshold=0.01, options={"from_layer": 2})
    g = circuits.graph(model)
    below = [e for e, r in zip(g.edges, g.reader_of, strict=True) if g.readers[r].layer < 2]
    raw = set(made.result.tables["decisions"]["edge"])
    assert not raw & set(below) and len(raw) == len(g.edges) - len(below)
    assert "L1H2.z->logits" in made.edges


def test_nodes_and_components(one_head):
    model, task = one_head
    nodes = circuits.discover(model, task, "acdc", threshold=0.01, choices=Choices(granularity="node"))
    assert set(nodes.nodes) == {"embed", "L1H2.z"}
    heads = circuits.discover(model, task, "acdc", threshold=0.01, choices=Choices(component="heads"))
    assert {e for e in heads.edges if "H" in e.split("->")[0]} == {"L1H2.z->logits"}


def test_wrong_thresholds_and_distances_from_the_wrong_run_are_refused(one_head):
    model, task = one_head
    for tau in (None, -0.1, float("nan")):
        with pytest.raises(ControlError, match="threshold"):
            circuits.discover(model, task, "acdc", threshold=tau)
    with pytest.raises(ControlError, match="size"):
        circuits.discover(model, task, "acdc", size=10)
    with pytest.raises(ControlError, match="from_layer=9"):
        circuits.discover(model, task, "acdc", threshold=0.1, options={"from_layer": 9})
    with pytest.raises(ControlError, match="corrupt one here"):
        circuits.discover(model, task, "acdc", threshold=0.1, choices=Choices(direction="denoise"))
