"""Steering: the planted direction is found and placebos are not; each control fails where its fault is planted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import steerable as st
import tiny
from microtome.controls.directions import isotropic, likeness
from microtome.directions.contrast import Contrast, class_means, contrast
from microtome.directions.direction import Direction
from microtome.directions.estimate import from_probe, given, mean_difference, pca
from microtome.errors import EditError, ModelError, TaskError
from microtome.facade import Model
from microtome.methods import steer_runs
from microtome.methods.steer import Condition, SteeringOptions, steering
from microtome.methods.steer_controls import against, alike_text, families, rank_p
from microtome.methods.steer_measures import Continuations, Lexicon, Reads, Words
from microtome.model.load import load_module
from microtome.sites import parse
from microtome.trace.edits import Steer

WORDS = Words(tuple(st.GLAD), tuple(st.SAD))
FEW = SteeringOptions(tokens=6, draws=39, band=2, texts=4)


@pytest.fixture(scope="module")
def model():
    return st.model()


@pytest.fixture(scope="module")
def found(model):
    return mean_difference(model, st.texts(80), st.SITE)


def steered(model, direction, options=FEW, **changes):
    given_ = {
        "coefficients": [-1, 0.5, 1],
        "prompts": st.prompts(),
        "measure": WORDS,
        "neutral": st.neutral(),
        "when": "both",
        **changes,
    }
    return steering(model, direction, site=st.SITE, options=options, seed=0, **given_)


def control(result, name):
    return next(c for c in result.controls if c.name == name)


# ---------------------------------------------------------------------------- directions


def cosine(direction):
    return float(direction.unit @ st.mood())


def test_estimators_find_the_planted_direction(model, found):
    texts = st.texts(80)
    assert cosine(found) > 0.75 and found.made["n"] == (40, 40) and found.model == model.hash
    order = [*[i for i, v in enumerate(texts.labels) if v], *[i for i, v in enumerate(texts.labels) if not v]]
    assert cosine(pca(model, texts.subset(order), st.SITE)) > 0.7
    assert cosine(from_probe(model, st.mood() + 0.1, st.SITE)) > 0.8
    lists = (
        [t for t, v in zip(texts.texts, texts.labels, strict=True) if v],
        [t for t, v in zip(texts.texts, texts.labels, strict=True) if not v],
    )
    assert torch.allclose(mean_difference(model, lists, st.SITE).vector, found.vector, atol=1e-6)


def test_mean_difference_is_the_difference_of_hand_made_means(model, found):
    rows = {0: [], 1: []}
    texts = st.texts(80)
    for text, label in zip(texts.texts, texts.labels, strict=True):
        values = model.run([text], st.SITE, logits=None)[st.SITE][0]
        rows[label].append(values[1:].mean(0))
    assert torch.allclose(
        torch.stack(rows[1]).mean(0) - torch.stack(rows[0]).mean(0), found.vector, atol=1e-5
    )


def test_a_first_token_average_is_another_direction_and_says_so(model, found):
    """Openings have twenty times the norm and nothing to do with the mood: an average over them is about them."""
    with_first = mean_difference(model, st.texts(80), st.SITE, first_token=True)
    assert abs(cosine(with_first)) < 0.5 < cosine(found)
    assert with_first.made["first_token_norm_ratio"] > 10
    r = steered(model, with_first, replace(FEW, data=st.texts(80)))
    assert control(r, "first_token").passed is False and r.verdict != "supported"
    assert control(steered(model, found, replace(FEW, data=st.texts(80))), "first_token").passed


def test_an_off_by_one_token_reads_nothing(model):
    """The mood is in the last token only: -1 finds it whatever the padding, -2 is no better than its nulls."""
    texts = st.texts(40, last_only=True)
    texts = replace(
        texts,
        texts=tuple(
            t if i % 3 else t.split(" ", 2)[0] + " " + t.split(" ", 2)[2] for i, t in enumerate(texts.texts)
        ),
    )
    assert cosine(mean_difference(model, texts, st.SITE, positions=-1)) > 0.7
    off = mean_difference(model, texts, st.SITE, positions=-2)
    assert abs(cosine(off)) < 0.2
    assert steered(model, off, replace(FEW, data=texts)).verdict != "supported"


def test_null_directions_are_shuffled_between_groups_at_equal_norm(model):
    texts = st.texts(24)
    grouped = replace(texts, groups={"pair": tuple(f"{v}-{i // 6}" for i, v in enumerate(texts.labels))})
    c = contrast(model, grouped, st.SITE)
    null = c.null(
        lambda values, labels: values[labels == 1].mean(0) - values[labels == 0].mean(0), 3.0, 10, 0
    )
    assert null.shape == (10, st.D) and np.allclose(np.linalg.norm(null, axis=1), 3.0)
    assert len({tuple(np.round(row, 6)) for row in null}) > 1


# ---------------------------------------------------------------------------- the technique


def test_the_planted_direction_steers_and_a_placebo_does_not(model):
    real = steered(model, st.texts(80))
    assert real.verdict == "supported", real.verdict.reasons
    assert real.effects.values.mean() > 1
    placebo = steered(model, st.texts(40, random_labels=True, seed=3))
    nothing = steered(st.model(strength=0.0), st.texts(80))
    assert placebo.verdict != "supported" and nothing.verdict != "supported"
    for name in ("shuffled_labels", "isotropic", "natural_noise"):
        assert control(real, name).passed is True and control(nothing, name).passed is False


def test_text_measures_conditions_and_baselines(model, found):
    lexicon = Lexicon(tuple(st.GLAD), tuple(st.SAD))
    # a judge from other texts reads the mood too
    o = replace(FEW, data=st.texts(80), draws=None, perplexity=20.0, system_prompt="glad0 glad1", few_shot=("plain1 glad2",),
                sibling=given(model, torch.eye(st.D)[5], st.SITE))  # fmt: skip
    r = steered(
        model, found, o, coefficients=[-3, 2, 3], measure=lexicon, when="generated", prompts=st.prompts(8)
    )
    assert r.tables["nulls"].groupby("family").size().tolist() == [19] * 4 and r.verdict.smallest_p == 0.05
    assert "0.05" in control(r, "shuffled_labels").expected
    assert control(r, "prompting").passed is not None and control(r, "sibling").passed
    assert {"system prompt", "few-shot"} <= set(r.tables["baselines"]["name"])
    assert set(r.tables["samples"]["coefficient"]) == {"-3", "0", "2", "3", "system prompt", "few-shot"}
    assert r.raw_examples and all("coefficient 0" in e for e in r.raw_examples)


def test_the_dose_is_the_largest_fluent_one_and_reported_on_the_other_half(model):
    """Whatever the measure says: one chosen by it would be the real direction's best, and the nulls' not."""
    r = steered(model, st.texts(80))
    best = float(
        dict(r.tables["about"].values)["largest coefficient with fluent text, on half of the prompts"]
    )
    dose = r.tables["dose"].sort_values("coefficient")
    assert best == dose[~dose["collapsed"].astype(bool)]["coefficient"].max() > 0
    report = list(r.effects.coords["prompt"])
    assert len(report) == 6 and not set(report) & set(r.tables["samples"]["prompt"])
    row = dose["coefficient"].tolist().index(best)
    np.testing.assert_allclose(r.tensors["sweep"][row, report], r.effects.values[0, :, 0], atol=1e-6)
    upside_down = steered(model, st.texts(80), measure=Words(tuple(st.SAD), tuple(st.GLAD)))
    same = dict(upside_down.tables["about"].values)
    assert float(same["largest coefficient with fluent text, on half of the prompts"]) == best
    assert upside_down.effects.values.mean() < 0 and upside_down.verdict != "supported"


def clean(rng, apart):
    """32 texts in four templates whose label is the largest thing that varies."""
    labels = np.tile([0, 1], 16)
    values = rng.standard_normal((32, 64))
    values[:, 0] += apart * (2 * labels - 1)
    units = tuple(str(i // 8) for i in range(32))
    return Contrast(values, labels, units, parse("L1.resid_post"), "all", False, 1.0)


def test_shuffled_labels_at_equal_norm_are_the_direction_itself_where_the_contrast_is_clean():
    """Why the verdict's null has its own norm: at equal norm no effect of the cleanest contrast can pass."""
    passed = dict.fromkeys(("shuffled_labels", "shuffled_equal_norm", "natural_noise"), 0)
    for i in range(60):
        rng = np.random.default_rng(i)
        c = clean(rng, 30.0)
        reads = np.append(1.0, 0.3 * rng.standard_normal(63))  # and a little of everything else
        real = class_means(c.values, c.labels)
        whole = given_at(real)
        drawn = families(c, whole, float(np.linalg.norm(real)), 39, i)
        assert likeness(drawn["shuffled_labels"], real) > 0.8
        for name in passed:
            passed[name] += rank_p(float(real @ reads), drawn[name] @ reads) <= 0.05
    assert (
        passed["shuffled_labels"] == 60
        and passed["natural_noise"] >= 57
        and passed["shuffled_equal_norm"] <= 12
    )


def given_at(vector):
    from types import SimpleNamespace

    return SimpleNamespace(vector=torch.from_numpy(vector), made={"estimator": "mean_difference"})


def test_the_result_says_that_equal_norm_nulls_are_the_direction():
    assert "say" not in alike_text(0.1, 39) and "says little" in alike_text(0.9, 39)
    assert "0.9" in alike_text(0.9, 39) and "39" in alike_text(0.9, 39)


def test_a_direction_whose_length_alone_acts_fails_both_noises():
    """Labels matter, so the permutation test passes; but a measure that any push raises is no concept."""
    rng = np.random.default_rng(0)
    c = clean(rng, 5.0)
    real = class_means(c.values, c.labels)
    size = float(np.linalg.norm(real))
    drawn = families(c, given_at(real), size, 39, 0) | {"isotropic": isotropic(64, np.full(39, size), seed=0)}
    for name, rows in drawn.items():
        own, null = size, np.linalg.norm(rows, axis=1) * (1 + 0.05 * rng.standard_normal(39))
        assert against(name, own, null, 39, 0.05).passed is (name == "shuffled_labels"), name


def test_continuations_are_scored_by_teacher_forcing(model, found):
    measure = Continuations(("glad0 glad1",), ("sad0 sad1",))
    rows = model.tokens(st.prompts(4)).rows()
    stage = steer_runs.Stage(model, found.site, "both")
    values, _ = stage.measured(
        measure, rows, [(None, 0), (steer_runs.Push(found.vector, 1.0), 0)], [True] * 4
    )
    for value, edits in ((values[0], []), (values[1], [Steer(st.SITE, found.vector, 1.0)])):
        total = 0.0
        for sign, words in ((1, ("glad0", "glad1")), (-1, ("sad0", "sad1"))):
            ids = [model.single_token(w) for w in words]
            logs = model.run([[*rows[0], *ids]], edits=edits).logits[0].double().log_softmax(-1)
            total += sign * np.mean([float(logs[len(rows[0]) - 1 + k, t]) for k, t in enumerate(ids)])
        assert value == pytest.approx(total, abs=1e-6)


def test_a_condition_steers_only_what_passes_it(model, found):
    rows = model.tokens([*st.prompts(3), *(p + " glad0 glad1 glad2" for p in st.prompts(3))]).rows()
    at_prompt = Condition(given(model, st.mood(), st.SITE), 0.2)
    stage = steer_runs.Stage(model, found.site, "both", at_prompt)
    fires = stage.fires(rows)
    assert fires == [False] * 3 + [True] * 3
    push = steer_runs.Push(found.vector, 1.0)
    plain = stage.generate(rows, [None] * 6)
    both = stage.generate(rows, [push] * 6, fires)
    assert both.new[:3] == plain.new[:3]
    by_token = steer_runs.Stage(model, found.site, "both", replace(at_prompt, level="token"))
    last = by_token.forced(rows, [len(r) for r in rows], [push] * 6, lambda logits, row, n: logits)
    free = by_token.forced(rows, [len(r) for r in rows], [None] * 6, lambda logits, row, n: logits)
    assert all(torch.equal(a, b) for a, b in zip(last[:3], free[:3], strict=True))
    glad = [len(rows[3]) - 3 <= i for i in range(len(rows[3]))]
    moved = [not torch.equal(a, b) for a, b in zip(last[3], free[3], strict=True)]
    assert moved == glad


@pytest.mark.parametrize("when", ["prompt", "generated", "both"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_steering_changes_generated_tokens_equally_with_and_without_cache(family, when):
    m = tiny.loaded(family)
    d = torch.randn(m.facts.d_model, generator=torch.Generator().manual_seed(1))
    rows = tiny.ragged([5, 7, 3])
    edits = [[Steer("L1.resid_post", d, c)] for c in (3.0, -3.0, 6.0)]
    one, other = (m.generate(rows, edits, when, 8, cache=cache, stop=False) for cache in (True, False))
    plain = m.generate(rows, max_new_tokens=8, stop=False)
    assert one.new == other.new and not torch.equal(one.logits, plain.logits)
    again = m.run([list(s) for s in one.sequences], edits=[list(e) for e in one.edits])
    for i, row in enumerate(rows):
        steps = again.logits[i, len(row) - 1 : len(row) + 7]
        assert torch.allclose(one.logits[i], steps, atol=1e-4)


# ---------------------------------------------------------------------------- faults that must be seen


def test_an_edit_that_does_something_at_coefficient_zero_is_invalid(model, found, monkeypatch):
    original = steer_runs.Stage._edit
    monkeypatch.setattr(
        steer_runs.Stage,
        "_edit",
        lambda self, push, site: original(self, steer_runs.Push(push.vector, push.coefficient + 1e-3), site),
    )
    r = steered(model, found, replace(FEW, data=st.texts(80)))
    assert control(r, "zero").passed is False and r.verdict == "invalid"


def test_an_edit_at_fewer_tokens_leaves_too_few_receipts(model, found, monkeypatch):
    monkeypatch.setattr(
        steer_runs.Stage,
        "edits",
        lambda self, push, low, high, fires=True: (
            [] if push is None else [Steer(f"{st.SITE}@{low}:{high - 1}", push.vector, push.coefficient)]
        ),
    )
    monkeypatch.setattr(steer_runs.Stage, "places", lambda self, edits, length: length * len(edits))
    r = steered(model, found, replace(FEW, data=st.texts(80)))
    assert control(r, "receipts").passed is False and r.verdict == "invalid"


def test_doses_that_break_the_text_are_marked_and_fail_where_nothing_else_is_left(model, found):
    r = steered(model, found, replace(FEW, data=st.texts(80)), coefficients=[50, 100])
    assert r.tables["dose"]["collapsed"].all() and control(r, "fluency").passed is False
    assert control(r, "dose_response").passed is None and r.verdict != "supported"
    assert dict(r.tables["about"].values)["smallest dose at which fluency collapses"] == "50"


def test_a_dose_that_hurts_neutral_text_fails_off_task(model, found):
    r = steered(
        model,
        found,
        replace(FEW, data=st.texts(80), perplexity=1e6),
        coefficients=[-30, 30],
        neutral=st.neutral(),
    )
    assert control(r, "off_task").passed is False and control(r, "neutral_kl").passed is False


def test_the_same_push_both_ways_fails_the_opposite_sign(model, found):
    """A measure that rises with any disturbance is not about the direction."""
    base = list(model.generate(st.prompts(), max_new_tokens=6).text)

    def unlike(texts):
        return [float(t not in base) for t in texts]

    r = steered(
        model,
        found,
        replace(FEW, data=st.texts(80), perplexity=1e6, draws=5),
        coefficients=[3, 4],
        measure=unlike,
    )
    assert control(r, "opposite_sign").passed is False


def test_the_same_concept_as_its_own_sibling_and_a_good_prompt_fail(model, found):
    o = replace(FEW, data=st.texts(80), sibling=found, system_prompt="glad0 glad0 glad0")
    assert control(steered(model, found, o), "sibling").passed is False
    m = st.attentive()
    d = given(m, torch.ones(m.facts.d_model), st.SITE)
    passed = []
    for words in (
        Words(("glad0",), ("sad0",)),
        Words(("sad0",), ("glad0",)),
    ):  # one of them rises with these words in front
        o = replace(FEW, draws=3, band=0, texts=2, system_prompt="glad0 glad1 glad2", tokens=3)
        r = steered(m, d, o, measure=words, coefficients=[1e-4, 2e-4], neutral=None)
        passed.append(control(r, "prompting").passed)
    assert False in passed


def test_without_labelled_text_or_neutral_text_the_verdict_is_unchecked(model):
    assert steered(model, st.mood()).verdict == "unchecked"
    assert steered(model, st.texts(80), neutral=None).verdict == "unchecked"


# ---------------------------------------------------------------------------- bad input


def test_bad_input_is_refused_with_the_reason(model, found):
    other = st.model(strength=0.9)
    cases = [
        (EditError, "another model", lambda: steered(other, found)),
        (EditError, "components", lambda: steered(model, torch.ones(st.D + 1))),
        (EditError, "zero alone", lambda: steered(model, found, coefficients=[0, 0.0])),
        (EditError, "coefficients", lambda: steered(model, found, coefficients=[])),
        (EditError, "coefficients", lambda: steered(model, found, coefficients=[float("nan")])),
        (EditError, "when", lambda: steered(model, found, when="later")),
        (EditError, "unit", lambda: steered(model, found, replace(FEW, unit="metres"))),
        (TaskError, "before|exactly zero|first token", lambda: steered(model, found, when="generated")),
        (TaskError, "prompts", lambda: steered(model, found, prompts=st.prompts(3))),
        (TaskError, "same label|every text|one of the two", lambda: mean_difference(model, (["open0 glad0"], []), st.SITE)),
        (TaskError, "one token", lambda: mean_difference(model, (["glad0"], ["sad0"]), st.SITE)),
        (TaskError, "not one site", lambda: mean_difference(model, st.texts(), "L*.resid_post")),
        (TaskError, "vector", lambda: mean_difference(model, st.texts(), "L1.z")),
        (TaskError, "no position", lambda: mean_difference(model, st.texts(), st.SITE, positions=40)),
        (EditError, "same mean", lambda: mean_difference(model, (["open0 plain1"], ["open0 plain1"]), st.SITE)),
        (TaskError, "judging probe", lambda: steered(model, found, measure=Reads(found))),
        (TaskError, "finite score", lambda: steered(model, found, measure=lambda texts: [float("nan")] * len(texts))),
        (TaskError, "contrast needs words", lambda: Words(("a",), ("a",))),
        (EditError, "finite score", lambda: Condition(found, float("nan"))),
    ]  # fmt: skip
    for kind, match, call in cases:
        with pytest.raises(kind, match=match):
            call()


def test_activations_that_are_not_finite_are_refused():
    hf = st.model().hf
    with torch.no_grad():
        hf.model.embed_tokens.weight[8] = float("inf")
    broken = Model(load_module(hf, tokenizer=st.model().tokenizer))
    with pytest.raises(ModelError, match="NaN or infinity"):
        mean_difference(broken, st.texts(80), st.SITE)


def test_a_direction_is_saved_and_loaded(found, tmp_path):
    again = Direction.load(found.save(tmp_path / "d"))
    assert torch.equal(again.vector, found.vector) and again.hash == found.hash and again.made == found.made


@pytest.mark.parametrize("gate", ["", "prompt", "token"])
@pytest.mark.parametrize("site", ["L1.resid_post", "L2.resid_pre", "L0.attn_out", "L2.mlp_out"])
def test_replayed_doses_are_those_of_whole_runs(site, gate):
    """Layers below the site are shared: the numbers are those of one plain run per row, conditions included."""
    m = st.attentive()
    gen = torch.Generator().manual_seed(3)
    d = torch.randn(m.facts.d_model, generator=gen)
    probe = given(m, torch.randn(m.facts.d_model, generator=gen), site)
    condition = Condition(probe, 0.0, level=gate) if gate else None
    rows = m.tokens([*st.prompts(3), "open0 glad1", "plain1 plain2 sad1"]).rows()
    stage = steer_runs.Stage(m, probe.site, "both", condition)
    pushes = [steer_runs.Push(d, c) for c in (1.0, -2.0)]
    fires = stage.fires(rows)
    jobs = [(p, i) for p in (None, *pushes) for i in range(len(rows))]
    for words in (WORDS, Words(("glad0",))):
        values, _ = stage.measured(words, rows, jobs, fires)
        up, down = words.ids(m)
        for value, (push, i) in zip(values, jobs, strict=True):
            edits = [stage.edits(push, 0, len(rows[i]), fires=fires[i])]
            logs = (
                m.run([rows[i]], (), edits if any(edits) else (), "last")
                .logits[0, -1]
                .double()
                .log_softmax(-1)
            )
            expected = float(logs[up].logsumexp(0) - (logs[down].logsumexp(0) if down else 0))
            assert value == pytest.approx(expected, abs=2e-4)
    assert stage.fired == stage.planned > 0


def test_placebo_directions_are_called_at_the_stated_rate():
    """2,000 contrasts whose labels mean nothing, half of them grouped: p <= 0.05 in 5 %, within the exact binomial's bound."""
    from scipy import stats

    rng = np.random.default_rng(0)
    hits, runs = 0, 2000
    scale = np.array([3.0, 1.0, 1.0, 0.3])  # one axis dominates, and the measure reads it
    for i in range(runs):
        groups = np.repeat(np.arange(6), 2) if i % 2 else np.arange(12)
        labels = rng.permutation(np.arange(groups.max() + 1) % 2)[groups]
        values = rng.standard_normal((12, 4)) * scale + rng.standard_normal((12, 4))[groups]
        c = Contrast(values, labels, tuple(map(str, groups)), parse("L1.resid_post"), "all", False, 1.0)
        real = class_means(values, labels)
        null = c.null(class_means, None, 19, i)
        hits += rank_p(float(real[0]), null[:, 0]) <= 0.05
    low, high = stats.binom.ppf([0.0005, 0.9995], runs, 0.05)
    assert low <= hits <= high


def test_a_condition_spares_neutral_text(model, found):
    """Only prompts with a glad word open it: neutral text is left alone to the bit, and the result says how many were steered."""
    c = Condition(given(model, st.mood(), st.SITE), 0.1)
    r = steered(
        model,
        found,
        replace(FEW, data=st.texts(80)),
        condition=c,
        prompts=st.moody(8),
        coefficients=[-1, 0.5, 1],
    )
    assert (
        control(r, "neutral_kl").observed["nats"] == 0
        and control(r, "off_task").observed["rise in nats"] == 0
    )
    assert (
        "0 of 6" in control(r, "neutral_kl").detail
        and dict(r.tables["about"].values)["prompts that the condition lets through"] == "8 of 8"
    )
    assert (r.effects.values > 0).all()
