"""Prompt grids: a planted factor is found and a placebo is not; wordings are the null; bad grids are refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import tiny
import worded
from microtome import methods
from microtome.controls.factors import permute_levels
from microtome.errors import ControlError, TaskError
from microtome.figures import pictures_of, static_svg
from microtome.methods import prompting
from microtome.methods.prompting import Sampling
from microtome.tasks.encode import Encoder
from microtome.tasks.grid import PromptGrid, grid
from microtome.tasks.grid_files import of_mapping, read_grid

ITEMS = [f"w{i}" for i in range(10, 23)]


@pytest.fixture(scope="module")
def model():
    return worded.copier()


def copying(**changes):
    """The word at place 3 is said next: `x` stands there, the placebo `y` elsewhere; items at the end."""
    fields = {
        "template": "w4 {y} w6 {x} w8 w9 w7 {item}",
        "factors": {"x": ["w40", "w41"], "y": ["w50", "w51", "w52"], "item": ITEMS},
        "answers": {"said": " w41", "else": " w40"},
        "paraphrases": ["w5 {y} w9 {x} w4 w6 w8 {item}"],
        "over": ["item"],
        **changes,
    }
    return grid(**fields)


@pytest.fixture(scope="module")
def found(model):
    return methods.prompt_grid(model, copying(), seed=0)


def test_the_planted_factor_moves_the_answer_and_the_placebo_does_not(found):
    assert found.verdict == "supported", found.verdict.reasons
    factors = found.tables["factors"].set_index("factor")
    assert factors.loc["x", "p_holm"] <= 0.001 and factors.loc["y", "p_holm"] > 0.5
    assert factors.loc["x", "effect"] > 1 and abs(factors.loc["y", "effect"]) < 1e-4
    assert factors.loc["x", "clusters"] == len(ITEMS) and factors.loc["x", "sets"] == 2 * 3 * len(ITEMS)
    frame = found.frame()
    assert set(frame["site"]) == {"x: w41 - w40", "y: w51 - w50", "y: w52 - w50"}
    assert (frame["n"] == 26 * np.array([3 if s.startswith("x") else 2 for s in frame["site"]])).all()


def test_an_effect_is_the_difference_of_two_prompts_that_differ_in_one_factor(model, found):
    rows = copying().prompts()
    changed = next(i for i, r in enumerate(rows) if r.setting["x"] == "w41")
    base = next(r for r in rows if dict(r.setting) == {**rows[changed].setting, "x": "w40"} and r.wording == rows[changed].wording)  # fmt: skip
    said, other = (
        model.run(r.user, logits="last").logits[0, -1].double().log_softmax(-1)[[41, 40]]
        for r in (rows[changed], base)
    )
    effect = float(found.effects.sel(site="x: w41 - w40", prompt=changed, metric="logprob_diff").values)
    assert effect == pytest.approx(float(said[0] - said[1] - other[0] + other[1]), abs=1e-4)
    unmoved = [i for i, r in enumerate(rows) if r.setting["x"] == "w40"]
    assert np.isnan(found.effects.sel(site="x: w41 - w40").values[unmoved]).all()


def test_one_factor_at_a_time_changes_one_factor_of_the_reference():
    rows = copying().prompts("one")
    assert len(rows) == 2 * len(ITEMS) * (1 + 1 + 2)
    assert all((r.setting["x"] != "w40") + (r.setting["y"] != "w50") <= 1 for r in rows)


def test_a_change_of_wording_that_does_as_much_fails_the_control(model):
    # in the second wording another word stands at place 3: the wording alone moves the answer as far as the factor
    moved = copying(template="w4 {y} w6 {x} w8 w9 w7 {item}", paraphrases=["w4 {y} w6 w41 {x} w8 w7 {item}"])
    result = methods.prompt_grid(model, moved, seed=0)
    control = result.control("paraphrases")
    assert control.passed is False and result.verdict == "not distinguishable from its null"
    without = methods.prompt_grid(model, copying(paraphrases=[]), seed=0)
    assert without.control("paraphrases").passed is None and without.verdict == "unchecked"


def test_few_matched_sets_are_underpowered(model):
    few = methods.prompt_grid(model, copying(factors={"x": ["w40", "w41"], "y": ["w50", "w51"], "item": ITEMS[:3]}), seed=0)  # fmt: skip
    assert few.verdict == "underpowered" and few.control("shuffled_levels").passed is False


def test_a_batch_that_changes_what_is_read_makes_the_numbers_invalid(model, monkeypatch):
    true = prompting.log_probabilities

    def off(*args):
        own, rest = true(*args)
        return own + 0.5, rest

    monkeypatch.setattr(prompting, "log_probabilities", off)
    assert methods.prompt_grid(model, copying(), seed=0).verdict == "invalid"


def test_answers_that_the_model_would_not_say_fail_a_control(model):
    rare = copying(answers={"said": " w60", "else": " w61"})
    result = methods.prompt_grid(model, rare, seed=0)
    assert result.control("readable").passed is False
    assert any("readable" in reason for reason in result.verdict.reasons)


def test_answers_of_several_tokens_and_sets_are_teacher_forced(model):
    several = copying(answers={"said": [" w41 w41", " w42"], "else": [" w40"]})
    result = methods.prompt_grid(model, several, seed=0)
    row = copying().prompts()[5]
    logits = model.run([row.user + " w41"]).logits[0].double().log_softmax(-1)
    n = len(model.tokens(row.user).rows()[0])
    want = np.logaddexp(float(logits[n - 1, 41] + logits[n, 41]), float(logits[n - 1, 42]))
    assert result.tables["grid"]["logprob"][5] == pytest.approx(want, abs=1e-4)
    alone = methods.prompt_grid(model, copying(answers=[" w41"]), seed=0)
    assert alone.effects.coords["metric"] == ("logprob",)


def test_first_tokens_that_are_the_same_are_refused_only_where_they_are_all_that_is_read(model):
    same = copying(answers={"said": " w41 w42", "else": " w41 w43"})
    with pytest.raises(TaskError, match="begin with the same token"):
        methods.prompt_grid(model, same, read="first_token", seed=0)
    assert methods.prompt_grid(model, same, read="logprob", seed=0).effects is not None
    with pytest.raises(TaskError, match="begins the answer"):
        methods.prompt_grid(model, copying(answers={"said": " w41", "else": " w41 w43"}), seed=0)


def test_interactions_are_differences_of_differences(found):
    table = found.tables["interactions"]
    assert len(table) == 2 and (table["value"].abs() < 1e-4).all()


def test_sampled_answers_have_exact_intervals_and_show_what_was_not_parsed(model):
    g = copying(factors={"x": ["w40", "w41"], "y": ["w50", "w51"], "item": ITEMS[:6]}, paraphrases=[])
    result = methods.prompt_grid(model, g, read="samples", sampling=Sampling(n=5, max_new_tokens=1), seed=0)
    table = result.tables["grid"]
    total = table["value"] + table["share_else"] + table["share_other"] + table["share_unparsed"]
    assert np.allclose(total, 1) and (table["samples"] == 5).all()
    zero = table[table["value"] == 0].iloc[0]
    assert zero["high"] == pytest.approx(1 - 0.025 ** (1 / 5)) and zero["low"] == 0
    assert result.control("alone").passed and result.effects.coords["metric"] == ("frequency",)
    again = methods.prompt_grid(model, g, read="samples", sampling=Sampling(n=5, max_new_tokens=1), seed=0)
    assert again.effects == result.effects


def test_what_could_not_be_parsed_fails_a_control(model):
    g = copying(factors={"x": ["w40", "w41"], "y": ["w50", "w51"], "item": ITEMS[:2]})
    deaf = Sampling(n=3, max_new_tokens=1, extract=r"never (\w+)")
    result = methods.prompt_grid(model, g, read="samples", sampling=deaf, seed=0)
    assert result.control("readable").passed is False and "readable" in result.verdict.mandatory
    assert (result.tables["grid"]["share_unparsed"] == 1).all()


def test_a_chat_template_and_a_prefill_are_fed_as_they_stand():
    template = "{% for m in messages %}{{ m['role'] and 'w5 ' }}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}w6{% endif %}"
    model = worded.with_words(worded.copier(), template)
    encoder = Encoder(model)
    made = prompting.render(model, encoder, "w10 w11", system="w12", prefill=" w13 w14", chat=True)
    assert made.ids == (5, 12, 5, 10, 11, 6, 13, 14)
    plain = prompting.render(model, encoder, "w10 w11", prefill=" w13", chat=False)
    assert plain.ids == tuple(model.tokens("w10 w11 w13").rows()[0])
    with pytest.raises(TaskError, match="no chat template"):
        prompting.render(worded.copier(), encoder, "w10", chat=True)


def test_what_is_read_from_a_text():
    answers = [("yes", [" Yes", "Sure"]), ("no", [" No"])]
    read = prompting.extractor(None, answers)
    assert [read(t) for t in ("Well, no.", "Nothing", "sure thing, no", "YES!", "")] == ["no", "unparsed", "yes", "yes", "unparsed"]  # fmt: skip
    by = prompting.extractor(r"answer is (\w+)", answers)
    assert [by(t) for t in ("the answer is yes", "the answer is maybe", "yes")] == [
        "yes",
        "other",
        "unparsed",
    ]
    fn = prompting.extractor(lambda t: t[-2:], answers)
    assert fn("I say no") == "no"
    with pytest.raises(TaskError, match="extract returned"):
        prompting.extractor(lambda t: 3, answers)("x")
    for bad in ("(", "yes", "(a)(b)"):
        with pytest.raises(TaskError, match="extract="):
            Sampling(extract=bad)
    for bad in ({"n": 0}, {"n": True}, {"temperature": 0}, {"temperature": float("nan")}, {"max_new_tokens": 0}):  # fmt: skip
        with pytest.raises(TaskError):
            Sampling(**bad)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"template": "w4 {y} w6 {z} {x} {item}"}, "no factor fills"),
        ({"template": "w4 {y} w6 {item}"}, 'leaves out the factor "x"'),
        ({"template": "w4 {y} {x} {item"}, "is no template"),
        ({"template": "w4 {y} {x!r} {item}"}, "placeholder"),
        ({"template": "w4 {y} {x.upper} {item}"}, "placeholder"),
        ({"template": "  "}, "empty"),
        ({"template": 3}, "is 3"),
        ({"template": "w4 \ud800 {y} {x} {item}"}, "is not text"),
        ({"factors": {"x": ["w40"], "y": ["a", "b"], "item": ITEMS}}, "has 1 level"),
        ({"factors": {"x": [], "y": ["a", "b"], "item": ITEMS}}, "has 0 levels"),
        ({"factors": {}}, "over=|no factors"),
        ({"factors": {"x": ["w40", "w40"], "y": ["a", "b"], "item": ITEMS}}, "twice"),
        ({"factors": {"x": "w40", "y": ["a", "b"], "item": ITEMS}}, "a list"),
        ({"factors": {"x": [True, False], "y": ["a", "b"], "item": ITEMS}}, "not text"),
        ({"factors": {"x": [{"x": "a", "q": "b"}, {"x": "c"}], "y": ["a", "b"], "item": ITEMS}}, "every level needs"),
        ({"factors": {"x": [{"x": "a", "y": "b"}, {"x": "c", "y": "d"}], "y": ["a", "b"], "item": ITEMS}}, "belongs to"),
        ({"paraphrases": ["w4 {y} w6 {x} w8 w9 w7 {item}"]}, "there twice"),
        ({"paraphrases": ["w4 w6 {x} w8 w9 w7 {item}"]}, "leaves out"),
        ({"paraphrases": "w4 {x}"}, "a list"),
        ({"answers": []}, "no answers"),
        ({"answers": [" w41", " w41"]}, "there twice"),
        ({"answers": {"a": " w41", "b": [" w40", " w41"]}}, "there twice"),
        ({"answers": {"a": " ", "b": " w40"}}, "no text"),
        ({"answers": {"a": [], "b": " w40"}}, "no text"),
        ({"answers": [" w41", "w41"]}, "spaces only"),
        ({"answers": {"a": " {nowhere}", "b": " w40"}}, "no factor fills"),
        ({"over": ["items"]}, "names no factor"),
        ({"over": ["x", "y", "item"]}, "no factor is tested"),
        ({"system": "w4", "chat": False}, "chat=False"),
        ({"factors": {"x": [f"w{i}" for i in range(200)], "y": [f"v{i}" for i in range(200)], "item": ITEMS}}, "prompts"),
    ],
)  # fmt: skip
def test_a_grid_that_would_mean_something_else_is_refused(changes, says):
    with pytest.raises(TaskError, match=says):
        copying(**changes)


def test_settings_that_give_the_same_prompt_are_refused():
    double = grid("w4 {x}{y}", {"x": ["w5", "w5 w5"], "y": [" w5 w6", " w6"]}, [" w41"])
    with pytest.raises(TaskError, match="same prompt"):
        double.prompts()


def test_answers_that_differ_by_setting_are_filled_in():
    g = grid(
        "say {x}", {"x": [{"x": "a", "a": " w1"}, {"x": "b", "a": " w2"}]}, {"right": "{a}", "wrong": " w3"}
    )
    assert [r.answers for r in g.prompts()] == [((" w1",), (" w3",)), ((" w2",), (" w3",))]
    clash = grid("say {x}", {"x": [{"x": "a", "a": " w3"}, {"x": "b", "a": " w2"}]}, {"right": "{a}", "wrong": " w3"})  # fmt: skip
    with pytest.raises(TaskError, match="there twice"):
        clash.prompts()


def test_prompts_over_the_context_and_other_things_than_grids_are_refused(model):
    long = copying(template="w4 {y} {x} {item} " + "w5 " * 60 + "w6")
    with pytest.raises(TaskError, match="context"):
        methods.prompt_grid(model, long, seed=0)
    short = copying(template="w4 {y} {x} {item} " + "w5 " * 55 + "w6", factors={"x": ["w40", "w41"], "y": ["w1", "w2"], "item": ITEMS[:2]})  # fmt: skip
    with pytest.raises(TaskError, match="context"):
        methods.prompt_grid(model, short, read="samples", sampling=Sampling(n=2, max_new_tokens=30), seed=0)
    for bad in ("a file.yaml", {"template": "x"}):
        with pytest.raises(TaskError, match="a prompt grid"):
            methods.prompt_grid(model, bad, seed=0)
    with pytest.raises(TaskError, match="read="):
        methods.prompt_grid(model, copying(), read="logits", seed=0)
    with pytest.raises(TaskError, match="design="):
        methods.prompt_grid(model, copying(), design="some", seed=0)


def test_a_grid_is_a_value(model):
    one, other = copying(), copying()
    assert one == other and one.hash == other.hash and hash(one) == hash(other)
    assert replace(one, prefill=" w9").hash != one.hash
    assert copying(factors={"y": ["w50", "w51", "w52"], "x": ["w40", "w41"], "item": ITEMS}).hash != one.hash
    assert "x (2)" in repr(one) and isinstance(one, PromptGrid)
    assert methods.prompt_grid(model, one, seed=0).query.data == one.hash


# ------------------------------------------------------------------------------------------ files

YAML = """
template: "Is {thing} a fruit?"
paraphrases: ["Would you call {thing} a fruit?"]
factors:
  thing: [an apple, a car]
answers: {"yes": " yes", "no": [" no", " never"]}
prefill: "{{sure}}"
"""


def test_a_file_gives_the_grid_that_its_arguments_give(tmp_path):
    (tmp_path / "fruit.yaml").write_text(YAML, encoding="utf-8")
    read = read_grid(tmp_path / "fruit.yaml")
    made = grid("Is {thing} a fruit?", {"thing": ["an apple", "a car"]}, {"yes": " yes", "no": [" no", " never"]},
                paraphrases=["Would you call {thing} a fruit?"], prefill="{{sure}}", name="fruit")  # fmt: skip
    assert read == made and read.hash == made.hash and read.prompts()[0].prefill == "{sure}"
    data = {"template": "a {x}", "factors": {"x": ["b", "c"]}, "answers": [" y", " n"], "name": "mine"}
    (tmp_path / "g.json").write_text(json.dumps(data), encoding="utf-8")
    assert (
        read_grid(tmp_path / "g.json") == of_mapping(data) and read_grid(tmp_path / "g.json").name == "mine"
    )


@pytest.mark.parametrize(
    "name, text, says",
    [
        ("g.csv", "x", "ending"),
        ("none.yaml", None, "cannot be read"),
        ("g.yaml", "  ", "empty"),
        ("g.yaml", "- a\n- b", "holds a list"),
        ("g.yaml", "template: [", "is not YAML"),
        ("g.yaml", "!!python/object/apply:os.system [ls]", "is not YAML"),
        ("g.json", "{", "is not JSON"),
        ("g.json", '{"template": "a", "template": "b"}', 'the key "template" is there twice'),
        ("g.yaml", "template: a\ntemplate: b", 'the key "template" is there twice'),
        ("g.yaml", "template: a {x}\nfactors: {x: [b, c]}", 'key "answers" is missing'),
        ("g.yaml", YAML + "paraphrase: [a]", 'did you mean "paraphrases"'),
        ("g.yaml", YAML + "chat: 1", "chat=1"),
        (
            "g.yaml",
            YAML.replace('{"yes": " yes", "no": [" no", " never"]}', "[yes, no]"),
            "quotes: YAML reads",
        ),
        ("g.yaml", YAML.replace("[an apple, a car]", "{a: b}"), "a list"),
        ("g.yaml", YAML.replace("thing: [an apple, a car]", "[thing]"), "maps names"),
    ],
)
def test_a_bad_file_says_what_is_wrong(tmp_path, name, text, says):
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(TaskError, match=says):
        read_grid(tmp_path / name)


def test_a_file_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "g.yaml").write_bytes("template: café {x}".encode("latin-1"))
    with pytest.raises(TaskError, match="not UTF-8"):
        read_grid(tmp_path / "g.yaml")


# ------------------------------------------------------------------------------------------ the permutation test


def test_levels_at_random_are_called_at_the_stated_rate():
    """2,000 grids of pure noise: the share called at .05 stays within its exact binomial limit."""
    from scipy.stats import binom

    rng = np.random.default_rng(0)
    hits = sum(permute_levels(rng.standard_normal((6, 3)), list(range(6)), seed=i, draws=199).p <= 0.05 for i in range(2000))  # fmt: skip
    assert hits <= binom.ppf(0.999, 2000, 0.05) and hits > binom.ppf(0.001, 2000, 0.02)


def test_copies_of_a_set_in_one_cluster_add_no_evidence():
    rng = np.random.default_rng(1)
    table = rng.standard_normal((5, 2)) + np.array([0.0, 1.0])
    once = permute_levels(table, list(range(5)), seed=0)
    again = permute_levels(np.repeat(table, 4, axis=0), np.repeat(np.arange(5), 4), seed=0)
    assert again.p == once.p and again.smallest_p == once.smallest_p == 1 / 16


def test_two_levels_are_a_sign_flip():
    from microtome.controls.signflip import sign_flip

    rng = np.random.default_rng(2)
    table = rng.standard_normal((9, 2)) + np.array([0.0, 0.8])
    flipped = sign_flip((table[:, 1] - table[:, 0])[None], list(range(9)), seed=0, soften=0.0)
    assert permute_levels(table, list(range(9)), seed=0).p == pytest.approx(flipped.min_p)


def test_tables_that_are_no_matched_sets_are_refused():
    for bad in (np.zeros((3, 1)), np.zeros(3), np.full((2, 2), np.nan), np.zeros((0, 2))):
        with pytest.raises(ControlError):
            permute_levels(bad, list(range(len(bad))), seed=0)
    with pytest.raises(ControlError, match="labels"):
        permute_levels(np.zeros((3, 2)), [0, 1], seed=0)


def test_pictures(found):
    for picture in pictures_of(found):
        assert len(static_svg(picture.draw())) > 1000
    assert len(worded.WORDS) == tiny.VOCAB
