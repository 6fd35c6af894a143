"""Roles from weights: planted heads are found and placebo ones are not; each control has a fault that it catches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

import tiny
from microtome import methods, zoo
from microtome.errors import ControlError, ModelError, TaskError
from microtome.methods.weights import (
    HeadCircuits,
    behave,
    composing,
    predict,
    role_controls,
    roles,
    vocabulary,
)
from microtome.model.factored import FactoredMatrix


@pytest.fixture(scope="module")
def specimen():
    return zoo.build("induction_heads", n=4).model


@pytest.fixture(scope="module")
def result(specimen):
    return methods.head_roles(specimen, seed=0)


def test_the_planted_heads_are_found_and_the_others_are_not(result) -> None:
    table = result.tables["roles"].set_index(["site", "role"])
    assert table.loc[("L0H0", "previous"), "flagged"] and not table.loc[("L1H0", "previous"), "flagged"]
    assert table.loc[("L1H0", "induction"), "flagged"] and not table.loc[("L0H0", "induction"), "flagged"]
    assert table.loc[("L1H0", "induction"), "through"] == "L0H0"
    assert table.loc[("L1H0", "copying"), "predicted"] > 0.9
    assert result.control("same_weights").passed
    rise = result.tables["ablations"].set_index(["heads", "where"])["rise"]
    assert rise["L1H0", "repeats"] > 2


def test_two_heads_can_agree_with_nothing(result) -> None:
    """One head per third: no permutation differs, and the result says so."""
    assert result.verdict == "underpowered"
    assert result.control("ablation").passed is None


def test_random_heads_have_no_role(specimen) -> None:
    c = role_controls.RandomHeads(HeadCircuits(specimen), 0)
    found = {p.role: p for p in predict.predictions(c, 0)}
    assert not (found["induction"].p < 1e-4).any()
    assert np.abs(found["copying"].score).max() < 0.5


def test_eigenvalues_through_the_head_are_those_of_the_full_circuit() -> None:
    model = tiny.loaded("llama")
    c = HeadCircuits(model)
    words = predict.Vocabulary(c)
    found = predict.copying(c, words)
    for k, (layer, head) in enumerate(c.heads[::5]):
        dense = words.rows @ c.ov(layer, head).dense() @ c.W_U
        values = torch.linalg.eigvals(dense)
        assert found.score[5 * k] == pytest.approx(float(values.sum().real / values.abs().sum()), abs=1e-6)


def test_matching_is_that_of_the_dense_circuit() -> None:
    model = tiny.loaded("llama")
    c = HeadCircuits(model)
    words = predict.Vocabulary(c)
    found = predict.matching(c, words)
    at = {head: k for k, head in enumerate(c.heads)}
    rows = words.rows - words.rows.mean(0)
    for sender, reader in (((0, 1), (1, 2)), ((0, 3), (2, 0)), ((1, 0), (2, 3))):
        turn = c.rotation(reader[0]).by(torch.arange(*predict.AHEAD)).mean(0)
        left = rows @ c.W_Q(reader[0])[reader[1]] @ turn
        dense = left @ (rows @ c.ov(*sender).dense() @ c.W_K(reader[0])[reader[1]]).T
        want = float(dense.diagonal().mean() / dense.square().mean().sqrt())
        assert found.advantage[at[sender], at[reader]] == pytest.approx(want, rel=1e-6)
    assert np.isnan(found.advantage[at[1, 0], at[1, 1]]) and np.isnan(found.advantage[at[2, 0], at[1, 1]])


def test_a_random_rotation_is_the_null_that_the_formula_states() -> None:
    """z of matching under 400 random rotations between values and output: mean 0, deviation 1, tails of a normal."""
    gen = torch.Generator().manual_seed(0)
    n = torch.randn(12, 12, generator=gen, dtype=torch.float64)
    turns = torch.linalg.qr(torch.randn(4000, 12, 12, generator=gen, dtype=torch.float64))
    turn = turns[0] * turns[1].diagonal(dim1=-2, dim2=-1).sign()[:, None]
    z = (turn * n).sum((-2, -1)) / (n.norm() / 12**0.5)
    assert abs(float(z.mean())) < 0.06 and abs(float(z.std()) - 1) < 0.05
    assert 0.005 < float((z > 1.96).double().mean()) < 0.04


def test_previous_is_invariant_to_the_content_of_a_rotation() -> None:
    """A head that only reads what does not turn has a share of 0; one that reads the fastest plane has a large one."""
    model = tiny.loaded("llama")
    c = HeadCircuits(model)
    rotation = c.rotation(0)
    fastest, slowest = int(rotation.angles.abs().argmax()), int(rotation.angles.abs().argmin())
    q = torch.zeros(2, c.W_Q(0).shape[1], rotation.d_head, dtype=torch.float64)
    for head, plane in ((0, fastest), (1, slowest)):
        q[head, 0, rotation.first[plane]] = 1
    c._qk = lambda layer: (q, q)
    c.layers, c.__dict__["heads"] = (0,), ((0, 0), (0, 1))
    found = predict.previous(c, 0, 19)
    assert found.how == "rotary" and found.score[0] > 0.3 > found.score[1]


# controls fail where they must


def test_a_wrong_layout_of_groups_fails(monkeypatch) -> None:
    """Keys given to the wrong query heads: the first layer's attention is another one."""
    model = tiny.loaded("llama")
    c = HeadCircuits(model)
    assert role_controls.same_weights(c, 0).passed
    monkeypatch.setattr(HeadCircuits, "_project", _regrouped(HeadCircuits._project))
    failed = role_controls.same_weights(c, 0)
    assert failed.passed is False and failed.observed["at"] == "L0.pattern"


def _regrouped(project):
    def wrong(self, layer, read, which):
        out = project(self, layer, read, which)
        return out.flip(2) if which == "k" else out

    return wrong


@pytest.mark.parametrize("which", ["W_Q", "W_K", "W_V", "W_O"])
def test_a_transposed_weight_fails(monkeypatch, which) -> None:
    model = tiny.loaded("llama")
    real = getattr(type(model.weights), which)

    def wrong(self, layer):
        found = real(self, layer)
        return found.flatten(1).reshape(found.shape[0], found.shape[2], found.shape[1]).mT

    monkeypatch.setattr(type(model.weights), which, wrong)
    assert role_controls.same_weights(HeadCircuits(model), 0).passed is False


def test_positions_turned_the_wrong_way_fail(monkeypatch) -> None:
    model = tiny.loaded("llama")
    c = HeadCircuits(model)
    rotation = type(c.rotation(0))
    real = rotation.by
    assert role_controls.same_weights(c, 0).passed
    monkeypatch.setattr(rotation, "by", lambda self, offsets, times=2: real(self, 1.5 * offsets, times))
    assert role_controls.same_weights(c, 0).passed is False


def test_a_prediction_from_where_a_head_stands_fails(monkeypatch) -> None:
    """Scores that say nothing of the weights agree with behaviour for random weights too."""
    model = tiny.loaded("llama-mha", None)
    c = HeadCircuits(model)
    truth = np.arange(len(c.heads), dtype=float)
    seen = {role: behave.Behaviour(truth, truth) for role in ("previous", "induction", "copying")}
    fine = role_controls.random_weights(c, seen, 0)
    assert fine.passed
    none = np.full(len(truth), -1)
    monkeypatch.setattr(
        role_controls,
        "predictions",
        lambda *a: tuple(predict.Prediction(r, truth, truth, truth, none) for r in seen),
    )
    assert role_controls.random_weights(c, seen, 0).passed is False


def test_heads_that_are_missed_no_more_than_others_are_not_confirmed() -> None:
    from microtome.methods.weights.role_ablation import confirmed

    def row(heads, rise, **more):
        return {
            "heads": heads,
            "text": "repeated",
            "where": "repeats",
            "rise": rise,
            "null_low": -0.1,
            "null_high": 0.5,
            **more,
        }

    rows = [row("random 0", 0.5), row("random 1", -0.1)]
    assert confirmed([row("together", 0.9), *rows]).passed
    assert confirmed([row("together", 0.4), *rows]).passed is False
    assert confirmed([]).passed is None


def test_a_prediction_that_fails_on_natural_text_says_so() -> None:
    rows = [
        {"role": "previous", "text": "repeated", "p": 0.001},
        {"role": "previous", "text": "natural", "p": 0.5},
    ]
    assert role_controls.natural_text(rows).passed is False
    assert role_controls.natural_text([rows[0], {**rows[1], "p": 0.001}]).passed
    assert role_controls.natural_text(rows[:1]).passed is None


def test_the_rank_test_keeps_its_level_when_depth_drives_both() -> None:
    """Scores that rise with depth on both sides: permuting within thirds of the layers says no more than alpha."""
    gen = np.random.default_rng(0)
    depth = np.repeat(np.arange(12), 4)
    third = (3 * depth // 12).tolist()
    low = 0
    for k in range(200):
        a, b = (10.0 * (depth // 4) + gen.normal(size=48) for _ in range(2))
        low += roles.rank_test(a, b, third, k, draws=99)[1] <= 0.05
    assert low <= 20  # 10 expected; a binomial tail of 0.2 %
    assert roles.rank_test(np.ones(48), depth, third, 0, draws=9)[:2] == (0.0, 1.0)


def test_where_induction_can_tell() -> None:
    assert behave.repeated_at([1, 2, 3, 1, 2, 9, 1, 2]).tolist() == [
        False,
        False,
        False,
        True,
        False,
        False,
        True,
    ]


# composition


def test_composition_scores_are_those_of_dense_products() -> None:
    model = tiny.loaded("llama")
    c = HeadCircuits(model)
    found = composing.scores(c)
    at = {head: k for k, head in enumerate(c.heads)}
    for sender, reader in (((0, 0), (1, 3)), ((1, 2), (2, 1)), ((0, 3), (2, 2))):
        a, qk, ov = c.ov(*sender).dense(), c.qk(*reader).dense(), c.ov(*reader).dense()
        for kind, b in (("Q", qk), ("K", qk.T), ("V", ov)):
            assert found[kind][at[sender], at[reader]] == pytest.approx(
                float((a @ b).norm() / (a.norm() * b.norm())), rel=1e-5
            )
    assert np.isnan(found["Q"][at[1, 0], at[1, 1]]) and np.isnan(found["V"][at[2, 0], at[1, 1]])


def test_moments_and_tail_under_a_random_rotation_are_as_stated() -> None:
    gen = torch.Generator().manual_seed(0)
    d, n = 24, 20000
    s, t = (
        v / v.sum() for v in (torch.rand(1, 6, generator=gen, dtype=torch.float64) ** 3 for _ in range(2))
    )
    frames = torch.linalg.qr(torch.randn(n, d, 6, generator=gen, dtype=torch.float64))[0].square()[:, :6]
    drawn = (s @ frames @ t.T)[:, 0, 0]
    variance = float(composing.rotation_variance(s, t, d))
    assert float(drawn.mean()) == pytest.approx(1 / d, rel=0.03) and float(drawn.var()) == pytest.approx(
        variance, rel=0.1
    )
    shape = 1 / (d**2 * variance)
    for level in (0.05, 0.01):
        limit = stats.gamma.isf(level, shape, scale=1 / (d * shape))
        assert 0.6 * level < float((drawn > limit).double().mean()) < 1.4 * level


def test_planted_composition_is_found_and_nothing_else(specimen) -> None:
    r = methods.composition(specimen, draws=19, seed=0)
    top = r.tables["pairs"].iloc[0]
    assert (top.kind, top.sender, top.reader) == ("K", "L0H0", "L1H0") and r.verdict == "supported"
    assert (r.tables["pairs"].p[1:] > 0.05).all()


def test_random_weights_that_compose_fail(specimen, monkeypatch) -> None:
    """Weights that are not random at all: the control says so."""
    c = HeadCircuits(specimen)
    assert composing._random_weights(c, 0).passed
    monkeypatch.setattr(role_controls.RandomHeads, "_like", lambda self, weight: weight)
    assert composing._random_weights(c, 0).passed is False


def test_scores_as_low_as_at_the_start_fail() -> None:
    import pandas as pd

    base = pd.DataFrame({"kind": list("QKV"), "family": "kaiming", "largest": 0.2})
    low, high = ({k: np.array([[np.nan, v]]) for k in "QKV"} for v in (0.1, 0.3))
    assert composing._kaiming(high, base).passed and composing._kaiming(low, base).passed is False


def test_composition_needs_two_layers_and_draws(specimen) -> None:
    with pytest.raises(ControlError, match="draws"):
        methods.composition(specimen, draws=3, seed=0)
    from microtome.facade import Model
    from microtome.model.load import load_module

    with pytest.raises(ControlError, match="earlier"):
        methods.composition(Model(load_module(tiny.build("gpt2", n_layer=1))), seed=0)


# bad input


def test_what_cannot_be_asked_is_refused(specimen) -> None:
    with pytest.raises(TaskError, match="no texts"):
        methods.head_roles(specimen, [], context=8, seed=0)
    with pytest.raises(TaskError, match="no text has"):
        methods.head_roles(specimen, [[1, 2, 3]], context=8, seed=0)
    with pytest.raises(TaskError, match="reads"):
        methods.head_roles(specimen, [[1, 2, 3]], context=800, seed=0)
    with pytest.raises(ModelError, match="added to the scores"):
        methods.head_roles(tiny.loaded("bloom"), seed=0)
    one = tiny.build("gpt2", n_layer=1, n_head=1)
    from microtome.facade import Model
    from microtome.model.load import load_module

    with pytest.raises(ControlError, match="no rank"):
        methods.head_roles(Model(load_module(one)), seed=0)


def test_natural_text_is_measured_beside_repeated_tokens(specimen) -> None:
    gen = np.random.default_rng(0)
    texts = [gen.integers(1, 33, 30).tolist() for _ in range(6)]
    found = methods.head_roles(specimen, texts, context=12, prompts=2, ablate=0, seed=0)
    assert set(found.tables["ranks"].text) == {"repeated", "natural"}
    assert "ablations" not in found.tables and {"natural", "natural_null"} <= set(
        found.tables["roles"].columns
    )
    assert isinstance(HeadCircuits(specimen).full_ov(0, 0), FactoredMatrix)


# singular vectors


def test_singular_vectors_are_those_of_the_dense_circuit() -> None:
    model = tiny.loaded("llama")
    c = HeadCircuits(model)
    reads, writes = vocabulary._of_model(c)(vocabulary._Part(1, 2))
    dense = c.ov(1, 2).dense()
    assert torch.allclose(reads.dense(), dense) and torch.allclose(
        writes.singular_values[:4], torch.linalg.svdvals(dense)[:4]
    )
    into, out = vocabulary._of_model(c)(vocabulary._Part(0, None))
    w = model.weights
    assert torch.allclose(out.dense(), w.W_out(0).double())
    assert torch.allclose(into.dense(), w.norm_gain(0, "ln2").double()[:, None] * w.W_in(0).double())


def test_planted_words_are_read_off_a_head_and_a_random_direction_has_none() -> None:
    """A head that writes the mean of a family of tokens: its first vector names them, and they are alike."""
    model = tiny.loaded("llama")
    c = HeadCircuits(model)
    words = predict.Vocabulary(c)
    gen = torch.Generator().manual_seed(0)
    family = torch.randn(words.rows.shape[1], generator=gen, dtype=torch.float64)
    rows = words.rows.clone()
    rows[10:15] = family + 0.1 * rows[10:15]
    object.__setattr__(words, "rows", rows)
    c.__dict__["W_U"] = rows.T
    reader = vocabulary._Reader(words, 5)
    coherence, ids = reader(
        torch.stack([family, torch.randn(len(family), generator=gen, dtype=torch.float64)]), "writes"
    )
    assert set(ids[0].tolist()) == set(range(10, 15)) and coherence[0] > 0.8 > 2 * coherence[1]


def test_random_weights_with_coherent_vectors_fail(monkeypatch) -> None:
    import pandas as pd

    def table(gain):
        return pd.DataFrame(
            [
                {"layer": i, "coherence": 0.2 + gain * (1 + 0.1 * (i % 3)), "null": 0.2}
                for i in range(12)
                for _ in range(3)
            ]
        )

    assert vocabulary._random_weights(table(0.3), 0).passed is False
    mixed = table(0.0)
    mixed["coherence"] += np.random.default_rng(0).normal(0, 0.05, len(mixed))
    assert vocabulary._random_weights(mixed, 0).passed
    assert vocabulary._random_weights(table(0.3)[:3], 0).passed is None


@pytest.mark.parametrize("parts", ["L9H0", "L0H77", "L0.attn", "L0", [], "L0N3"])
def test_parts_that_are_not_there_are_refused(parts) -> None:
    from microtome.errors import MicrotomeError

    with pytest.raises(MicrotomeError):
        methods.vocabulary_svd(tiny.loaded("llama"), parts, tokens=4, seed=0)


def test_tokens_beyond_the_vocabulary_are_refused() -> None:
    for wrong in ({"tokens": 1}, {"tokens": 10**6}, {"vectors": 0}, {"randoms": 0}):
        with pytest.raises(ModelError):
            methods.vocabulary_svd(tiny.loaded("llama"), "L0H0", **{"tokens": 4, **wrong})
