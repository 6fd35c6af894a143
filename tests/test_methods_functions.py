"""Function vectors: found where a model learns from demonstrations, and nowhere else; each control fails where it should."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import relational as rel
import steerable as st
from microtome.errors import TaskError
from microtome.methods import function_parts, functions
from microtome.methods.function_parts import Writer, ZeroShot, demonstrations, halves
from microtome.methods.functions import FunctionOptions, function_vector
from microtome.trace.edits import Patch, Steer

FEW = FunctionOptions(
    template=rel.TEMPLATE, other="{x} {y} ", shots=3, heads=1, means=5, prompts=5, nulls=19, randoms=19
)


@pytest.fixture(scope="module")
def model():
    return rel.model()


@pytest.fixture(scope="module")
def found(model):
    return function_vector(model, rel.PAIRS, options=FEW, seed=0)


def control(result, name):
    return next(c for c in result.controls if c.name == name)


def test_the_planted_task_is_found_in_its_head(model, found):
    assert found.verdict == "supported", found.verdict.reasons
    assert found.tables["heads"]["site"].tolist() == ["L1H1.head_out"]
    frame = found.frame().set_index("site")
    others = frame.drop("L1H1.head_out")
    assert frame.loc["L1H1.head_out", "value"] > 1 > others["value"].abs().max()
    assert frame.loc["L1H1.head_out", "null_high"] < 0.1
    accuracy = found.tables["accuracy"].set_index("what")["value"]
    assert accuracy["function vector"] == 1 and accuracy["zero-shot"] == 0 and accuracy["few-shot"] == 1
    assert abs(found.tensors["function_vector"]).argmax() == rel.TASK


def test_a_model_that_does_not_learn_from_demonstrations_has_none():
    r = function_vector(rel.model(learns=False), rel.PAIRS, options=replace(FEW, nulls=3, randoms=3), seed=0)
    assert r.verdict != "supported" and control(r, "in_context").passed is False
    assert control(r, "shuffled_labels").passed is False and control(r, "task_vector").passed is False
    r = function_vector(st.attentive(), [(a, b) for a, b in zip(st.PLAIN, [*st.GLAD, *st.SAD], strict=False)], seed=0,
                        options=replace(FEW, nulls=19, randoms=3))  # fmt: skip
    assert r.verdict != "supported"


def test_the_vector_is_the_sum_of_the_best_heads_means(model):
    o = replace(FEW, heads=3, nulls=1, randoms=1)
    r = function_vector(model, rel.PAIRS, options=o, seed=0)
    build, _ = halves(rel.PAIRS, 0)
    demos, queries = demonstrations(build, 3, 5, 0, "real", shuffled=False)
    texts = Writer(model, rel.TEMPLATE).ask(demos, queries).texts
    by_hand = sum(model.run(texts, s)[s][:, -1].mean(0) for s in r.tables["heads"]["site"])
    np.testing.assert_allclose(r.tensors["function_vector"], by_hand.numpy(), atol=1e-5)
    best = int(r.tables["about"].set_index("name").loc["task vector put at", "value"].split(".")[0][1:])
    hidden = model.run(texts, f"L{best}.resid_post")[f"L{best}.resid_post"][:, -1].mean(0)
    np.testing.assert_allclose(r.tensors["task_vector"], hidden.numpy(), atol=1e-5)


def test_a_head_s_effect_is_that_of_patching_its_mean(model, found):
    """Against one plain edited run per prompt."""
    build, _ = halves(rel.PAIRS, 0)
    demos, queries = demonstrations(build, 3, 5, 0, "real", shuffled=False)
    writer = Writer(model, rel.TEMPLATE)
    mean = model.run(writer.ask(demos, queries).texts, "L1H1.head_out")["L1H1.head_out"][:, -1].mean(0)
    demos, queries = demonstrations(build, 3, 5, 0, "effects", shuffled=True)
    asked = writer.ask(demos, queries)
    place = found.effects.coords["site"].index("L1H1.head_out")
    for i, text in enumerate(asked.texts):
        logs = []
        for edits in ([], [functions_patch(mean)]):
            logs.append(model.run(text, edits=edits).logits[0, -1].double().log_softmax(-1)[asked.answers[i]])
        assert found.effects.values[place, i, 0] == pytest.approx(float(logs[1] - logs[0]), abs=1e-4)


def test_scores_of_vectors_are_those_of_whole_edited_runs():
    """Added and put, at two layers of a model in which every token depends on those before it; and no vector at all."""
    m = st.attentive()
    asked = Writer(m, "open0 {x} {y} ").ask([[], [], []], list(zip(st.PLAIN[:3], st.GLAD[:3], strict=True)))
    gen = torch.Generator().manual_seed(0)
    jobs = [(torch.randn(m.facts.d_model, generator=gen), layer, kind) for layer in (0, 1) for kind in ("add", "put")]  # fmt: skip
    z = ZeroShot(m, asked)
    for (vector, layer, kind), got in zip(
        [*jobs, (None, 0, "add")], z.each([*jobs, (None, 0, "add")]), strict=True
    ):
        site = f"L{layer}.resid_post@-1"
        edits = [] if vector is None else [Steer(site, vector, 1.0) if kind == "add" else Patch(site, vector.expand(3, -1))]  # fmt: skip
        logs = m.run(asked.rows, (), edits, "last").logits[:, -1].double().log_softmax(-1)
        answers = torch.tensor(asked.answers)
        np.testing.assert_allclose(got.logprob, logs.gather(1, answers[:, None])[:, 0].numpy(), atol=2e-5)
        assert (got.right == (logs.argmax(-1) == answers).numpy()).all()
    assert z.fired == z.planned == 3 * len(jobs)


def functions_patch(mean):
    return Patch("L1H1.head_out@-1", mean[None])


def test_shuffled_demonstrations_keep_no_answer_and_held_out_words_stay_out():
    build, test = halves(rel.PAIRS, 0)
    assert not {w for p in build for w in p} & {w for p in test for w in p}
    true = dict(rel.PAIRS)
    demos, queries = demonstrations(build, 4, 20, 0, "x", shuffled=True)
    for shown, query in zip(demos, queries, strict=True):
        assert all(true[x] != y for x, y in shown) and sorted(y for _, y in shown) == sorted(
            true[x] for x, _ in shown
        )
        assert query not in [(x, true[x]) for x, _ in shown]


def test_a_leak_of_tested_pairs_and_edits_that_do_not_fire_are_invalid(model, monkeypatch):
    o = replace(FEW, nulls=1, randoms=1)
    monkeypatch.setattr(functions.parts, "halves", lambda pairs, seed: (pairs[:10], pairs[6:]))
    r = function_vector(model, rel.PAIRS, options=o, seed=0)
    assert control(r, "held_out").passed is False and r.verdict == "invalid"
    monkeypatch.undo()
    original = ZeroShot.each

    def forgets(self, jobs):
        self.planned += len(self.asked) * len(jobs)
        return original(self, [(None, 0, "add") for _ in jobs])

    monkeypatch.setattr(function_parts.ZeroShot, "each", forgets)
    r = function_vector(model, rel.PAIRS, options=o, seed=0)
    assert control(r, "receipts").passed is False and r.verdict == "invalid"


def test_a_vector_that_any_direction_would_replace_fails_its_random_null(monkeypatch):
    """Where answers are said whenever anything is added, neither null is beaten."""
    m = rel.model()
    with torch.no_grad():
        m.hf.lm_head.weight[: rel.N, rel.ONE] = 0.0
        m.hf.lm_head.weight[rel.N : 2 * rel.N, rel.ONE] = -0.02
        m.hf.lm_head.weight[rel.N : 2 * rel.N, rel.TASK] = 2.0
    r = function_vector(m, rel.PAIRS, options=replace(FEW, nulls=2, randoms=39), seed=0)
    assert control(r, "random_vectors").passed is False


def test_another_template_may_fail(model):
    r = function_vector(
        model, rel.PAIRS, options=replace(FEW, nulls=1, randoms=1, other="say0 ask1 {x} say2 {y} "), seed=0
    )
    assert control(r, "other_template").passed is False


def test_bad_pairs_and_options_are_refused(model):
    cases = [
        ("3 pairs", lambda: function_vector(model, rel.PAIRS[:3])),
        ("no pair", lambda: function_vector(model, ["ask0"] * 9)),
        ("two answers", lambda: function_vector(model, [*rel.PAIRS, ("ask0", "say1")])),
        ("hardly any", lambda: function_vector(model, [(a, "say0") for a, _ in rel.PAIRS])),
        ("template", lambda: function_vector(model, rel.PAIRS, options=replace(FEW, template="{y} {x}"))),
        ("demonstrations", lambda: function_vector(model, rel.PAIRS, options=replace(FEW, shots=9))),
        ("heads", lambda: function_vector(model, rel.PAIRS, options=replace(FEW, heads=99))),
        ("layers", lambda: function_vector(model, rel.PAIRS, options=replace(FEW, layers=(7,)))),
    ]  # fmt: skip
    for match, call in cases:
        with pytest.raises(TaskError, match=match):
            call()


def test_a_vector_of_shuffled_labels_is_called_at_the_stated_rate():
    """2,000 runs in which the real procedure is one more shuffled one: accuracies are coarse, and ties count against it."""
    from scipy import stats

    from microtome.methods.steer_controls import rank_p

    rng = np.random.default_rng(0)
    each = rng.binomial(12, rng.beta(2, 5, (2000, 20))) / 12
    hits = sum(rank_p(float(run[0]), run[1:]) <= 0.05 for run in each)
    assert 0 < hits <= stats.binom.ppf(0.999, 2000, 0.05)
