"""Token attribution: a planted token is found by every way and a placebo by none; sums, curves, faults, refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import planted
import tiny
import worded
from microtome import methods
from microtome.controls.orders import permute_own
from microtome.errors import ControlError, ModelError, TaskError
from microtome.facade import Model
from microtome.figures import pictures_of, static_svg
from microtome.methods import token_attributing, token_gradients
from microtome.methods.token_attributing import Path
from microtome.model.load import load_module
from microtome.tasks.asked import ask

WAYS = token_attributing.WAYS


@pytest.fixture(scope="module")
def model():
    return worded.copier()


def asked(model, n=6, **more):
    """The word at place 3 is said next, against a word that is nowhere in the prompt."""
    prompts = [f"w4 w{20 + i} w6 w{40 + i} w8 w9 w7 w{60 + i}" for i in range(n)]
    return ask(model, prompts, [f" w{40 + i}" for i in range(n)], [f" w{80 + i}" for i in range(n)], **more)


@pytest.fixture(scope="module")
def found(model):
    return methods.token_attribution(model, asked(model), seed=0)


def test_every_way_finds_the_planted_token_and_no_other(found):
    assert found.verdict == "supported", found.verdict.reasons
    mean = found.effects.values[..., 0].mean(-1)
    assert found.effects.coords["site"] == WAYS and (mean.argmax(1) == planted.WHERE).all()
    others = np.delete(mean[:, :-1], planted.WHERE, axis=1)  # the last token's own path to the output is real
    assert (np.abs(others) < 0.1 * mean[:, planted.WHERE, None]).all()


def test_removing_the_planted_token_first_costs_most(found):
    areas = found.tables["areas"].set_index("how")
    assert (areas["area"] < areas["null_low"]).all() and (areas["least_first"] > areas["null_high"]).all()
    assert (areas["p"] <= 0.001).all() and areas["smallest_p"].iloc[0] <= 1e-4
    curve = found.tables["deletion"]
    ends = curve[curve["share"] == 1.0]["value"]
    assert np.allclose(ends, ends.iloc[0], atol=1e-5)  # with everything removed the order does not matter


def test_integrated_gradients_add_up_and_the_replay_agrees_with_a_whole_forward(found):
    sums = found.tables["sums"]
    own = sums[sums["how"] == "integrated_gradients"]
    assert (own["gap"].abs() <= 0.02 * own["change"].abs().mean()).all()
    curve = found.tables["deletion"]
    whole = curve[(curve["order"] == "random") & (curve["share"] == 1.0)]["value"].item()
    assert -own["change"].mean() == pytest.approx(whole, abs=1e-4)
    assert found.control("completeness").passed and found.control("completeness").gates


def test_an_occlusion_is_what_a_forward_with_that_embedding_gives(model, found):
    from microtome.trace.edits import Patch

    task = asked(model)
    mean = model.weights.W_E.mean(0)
    ids = list(task.side.ids[2])
    answer, wrong = task.answers[2][0][0], task.wrong[2][0][0]
    for place in (0, 3, 7):
        runs = [model.run([ids], logits="last", edits=edits).logits[0, -1] for edits in ([], [Patch(f"tok_embed@{place}", mean[None])])]  # fmt: skip
        whole, without = (float(r[answer] - r[wrong]) for r in runs)
        value = float(found.effects.sel(site="occlusion", position=place, prompt=2, metric="logit_diff").values)  # fmt: skip
        assert value == pytest.approx(whole - without, abs=1e-5)


def test_a_baseline_token_is_the_prompt_with_that_token(model):
    task = asked(model, 3)
    result = methods.token_attribution(
        model, task, how=["occlusion"], baseline="token: w70", orders=3, seed=0
    )
    ids = list(task.side.ids[1])
    answer, wrong = task.answers[1][0][0], task.wrong[1][0][0]
    other = [*ids[:3], 70, *ids[4:]]
    whole, without = (float(r[answer] - r[wrong]) for r in model.run([ids, other], logits="last").logits[:, -1])  # fmt: skip
    value = float(result.effects.sel(site="occlusion", position=3, prompt=1, metric="logit_diff").values)
    assert value == pytest.approx(whole - without, abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2", "gemma2"])
def test_gradients_are_those_of_finite_differences(family):
    model = worded.with_words(Model(load_module(tiny.build(family).double())))
    task = ask(model, ["w4 w20 w6 w41"], [" w30"], [" w31"])
    q = token_attributing.question(model, task)
    ends, _ = token_attributing.ends_of(model, q, task, "zero")
    step = 1e-2  # these norms compute in float32 whatever the dtype
    slopes = token_gradients.gradient_x_input(model, q.bench, ends)[0]
    for place in range(4):
        moved = []
        for sign in (1, -1):
            at = ends.inputs[0].clone()
            at[place] *= 1 + sign * step
            moved.append(token_gradients._metric_only(model, q.bench, 0, [at])[0])
        assert slopes[place] == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=1e-2, abs=1e-4)


def test_answers_of_several_tokens_and_sets(model):
    prompts = ["w4 w20 w6 w40 w8 w9 w7 w60", "w4 w21 w6 w41 w8 w9 w7 w61 w5"]
    task = ask(model, prompts, [[" w40 w40", " w50"], " w41 w41"])
    assert task.metric == "logprob"
    result = methods.token_attribution(model, task, orders=3, seed=0)
    tokens = result.tables["tokens"]
    best = tokens.loc[tokens.groupby("prompt")["occlusion"].idxmax(), "position"]
    assert list(best) == [3, 3]
    assert result.effects.coords["position"] == (
        "end",
        "rest",
    )  # prompts of two lengths have no places in common
    row = tokens[(tokens["prompt"] == 1) & (tokens["position"] == 8)]["occlusion"].item()
    end = float(result.effects.sel(site="occlusion", position="end", prompt=1, metric="logprob").values)
    assert end == pytest.approx(row, abs=1e-6)


def test_a_task_of_pairs_against_its_corrupt_side():
    model = planted.one_head()
    task = planted.pairs_done(model, n=8)
    result = methods.token_attribution(model, task, baseline="corrupt", orders=5, seed=0)
    values = result.effects.values[..., 0]
    others = np.delete(values, planted.WHERE, axis=1)
    assert np.abs(others).max() < 1e-5  # clean and corrupt are the same there
    logits = [model.run([list(i) for i in side.ids], logits="last").logits[:, -1] for side in (task.clean, task.corrupt)]  # fmt: skip
    rows = torch.arange(8)
    a, w = (torch.tensor([s[0][0] for s in side]) for side in (task.answers, task.wrong))
    change = (logits[0][rows, a] - logits[0][rows, w]) - (logits[1][rows, a] - logits[1][rows, w])
    np.testing.assert_allclose(values[2, planted.WHERE], change.numpy(), atol=1e-4)
    np.testing.assert_allclose(
        values[1, planted.WHERE], change.numpy(), atol=0.03 * float(change.abs().mean())
    )


def test_a_model_in_which_nothing_reaches_the_answer_gives_no_other_token_anything():
    model = worded.with_words(planted.nothing())
    task = ask(model, [f"w4 w{20 + i} w6 w7 w8 w9" for i in range(5)], [" w30"] * 5, [" w31"] * 5)
    result = methods.token_attribution(model, task, seed=0)
    assert np.abs(result.effects.values[:, :-1]).max() < 1e-5  # only the last token writes to the output


def test_attributions_at_random_are_not_distinguishable(model, monkeypatch):
    rng = np.random.default_rng(0)
    true = token_attributing.gradient_x_input
    monkeypatch.setattr(
        token_attributing, "gradient_x_input", lambda *a: tuple(rng.standard_normal(len(v)) for v in true(*a))
    )
    result = methods.token_attribution(model, asked(model), how=["gradient_x_input"], seed=0)
    assert result.control("random_orders").passed is False
    assert result.verdict == "not distinguishable from its null"


def test_an_order_that_is_turned_round_fails_both_curves(model, monkeypatch):
    true = token_attributing.gradient_x_input
    monkeypatch.setattr(token_attributing, "gradient_x_input", lambda *a: tuple(-v for v in true(*a)))
    result = methods.token_attribution(model, asked(model), how=["gradient_x_input"], seed=0)
    assert result.control("random_orders").passed is False and result.control("least_first").passed is False


def test_ways_that_disagree_fail_the_control(model, monkeypatch):
    true = token_attributing.gradient_x_input
    monkeypatch.setattr(token_attributing, "gradient_x_input", lambda *a: tuple(-v for v in true(*a)))
    result = methods.token_attribution(model, asked(model), how=["gradient_x_input", "occlusion"], seed=0)
    assert result.control("agreement").passed is False


def test_a_coarse_path_makes_integrated_gradients_invalid(model):
    coarse = Path(steps=1, most=1, tolerance=1e-6)
    result = methods.token_attribution(model, asked(model), baseline="zero", path=coarse, orders=3, seed=0)
    assert result.control("completeness").passed is False and result.verdict == "invalid"


def test_a_replay_that_changes_what_it_should_not_is_invalid(model, monkeypatch):
    from microtome.methods import token_checks

    shifted = token_checks.Prompts
    monkeypatch.setattr(token_checks, "Prompts", lambda ids: shifted([[*row[1:], row[0]] for row in ids]))
    assert methods.token_attribution(model, asked(model), orders=3, seed=0).verdict == "invalid"


def test_one_prompt_and_few_orders_are_underpowered(model):
    result = methods.token_attribution(model, asked(model, 1), orders=19, seed=0)
    assert result.verdict == "underpowered" and result.verdict.smallest_p == pytest.approx(0.05)


def test_special_tokens_in_front_stay_as_they_are(model):
    task = ask(model, ["w4 w5 w6"], [" w9"], [" w8"])
    fed = replace(task, side=replace(task.side, ids=((1, 4, 5, 6),), spans={}, strings=()))
    q = token_attributing.question(model, fed)
    assert q.places == ((1, 2, 3),)
    result = methods.token_attribution(model, fed, orders=3, seed=0)
    assert result.effects.coords["position"] == (1, 2, 3)


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({"how": []}, "how="),
        ({"how": ["lime"]}, "how="),
        ({"how": ["occlusion", "occlusion"]}, "how="),
        ({"baseline": "noise"}, "baseline="),
        ({"baseline": 0}, "baseline="),
        ({"baseline": "corrupt"}, "needs pairs"),
        ({"baseline": "token: w4 w5"}, "2 tokens"),
        ({"orders": 1}, "orders="),
        ({"orders": True}, "orders="),
    ],
)
def test_what_cannot_be_attributed_is_refused(model, arguments, says):
    with pytest.raises(TaskError, match=says):
        methods.token_attribution(model, asked(model, 2), seed=0, **arguments)


def test_other_tasks_short_prompts_and_bad_paths_are_refused(model):
    with pytest.raises(TaskError, match="are attributed"):
        methods.token_attribution(model, ["w4 w5"], seed=0)
    with pytest.raises(TaskError, match="1 token to attribute"):
        methods.token_attribution(model, ask(model, ["w4"], [" w5"], [" w6"]), seed=0)
    for bad in ({"steps": 0}, {"steps": 64, "most": 32}, {"tolerance": 0}, {"steps": 2.5}):
        with pytest.raises(TaskError):
            Path(**bad)


@pytest.mark.parametrize(
    "prompts, answer, wrong, says",
    [
        ([], [], None, "no prompts"),
        ("w4 w5", [" w6"], None, "are lists"),
        (["w4 w5"], " w6", None, "are lists"),
        (["w4 w5", "w6 w7"], [" w6"], None, "1 answers"),
        (["w4 w5"], [" w6"], [" w7", " w8"], "2 wrong"),
        (["w4 w5", "w4 w5"], [" w6", " w7"], None, "twice"),
        (["  "], [" w6"], None, "some text"),
        ([None], [" w6"], None, "some text"),
        (["w4 w5"], [""], None, "empty answer"),
        (["w4 w5"], [[]], None, "empty answer"),
        (["w4 w5"], [" w6"], [" w6"], "there twice"),
        (["w4 w5"], [" w6"], [" w6 w7"], "there twice"),
        (["w4 " * 70 + "w5"], [" w6"], None, "context"),
    ],
)
def test_prompts_that_ask_nothing_are_refused(model, prompts, answer, wrong, says):
    with pytest.raises((TaskError, ModelError), match=says):
        ask(model, prompts, answer, wrong)


def test_asked_prompts_are_a_value(model):
    one, other = asked(model), asked(model)
    assert one == other and one.hash == other.hash and len(one) == 6
    assert asked(model, groups={"template": list("aabbcc")}).hash != one.hash
    with pytest.raises(TaskError, match="labels"):
        asked(model, groups={"template": ["a"]})
    assert methods.token_attribution(model, one, how=["occlusion"], orders=3, seed=0).query.task == one.hash


# ------------------------------------------------------------------------------------------ orders


def test_random_orders_are_called_at_the_stated_rate():
    from scipy.stats import binom

    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(2000):
        values = rng.standard_normal((3, 20))
        hits += permute_own(values[:, 0], values[:, 1:], seed=seed, name="x").p <= 0.05
    assert binom.ppf(0.0005, 2000, 0.05) <= hits <= binom.ppf(0.9995, 2000, 0.05)


def test_more_prompts_than_can_be_listed_are_drawn():
    rng = np.random.default_rng(1)
    others = rng.standard_normal((12, 19))
    test = permute_own(others.min(1) - 1, others, seed=0, name="x")
    assert test.p == test.smallest_p == 1 / 10_001 and test.own < test.low
    for bad in ((np.zeros(2), np.zeros((3, 4))), (np.zeros(2), np.zeros((2, 0))), (np.full(2, np.nan), np.zeros((2, 3)))):  # fmt: skip
        with pytest.raises(ControlError):
            permute_own(*bad, seed=0, name="x")


def test_pictures(found):
    for picture in pictures_of(found):
        assert len(static_svg(picture.draw())) > 1000
