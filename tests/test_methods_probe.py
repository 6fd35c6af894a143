"""Probes: a planted direction is found and used, a coin per word is not, and every fault has a control that catches it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import microtome as mt
import probed
from microtome import methods
from microtome.controls.discrimination import auroc
from microtome.controls.shuffles import shuffled_columns
from microtome.errors import ControlError, EditError, ResourceError, TaskError
from microtome.methods.probing import capture as reading
from microtome.methods.probing import causing, technique
from microtome.methods.probing import controls as check
from microtome.methods.probing.design import design, split_control
from microtome.methods.probing.options import Ask, ProbeOptions
from microtome.methods.probing.reading import direction_of
from microtome.methods.probing.sweeping import sweep_places
from microtome.methods.probing.twin import random_twin
from microtome.tasks.labelled import LabelledText, of_lists
from microtome.tasks.lint import lint
from microtome.trace.edits import Steer
from microtome.trace.trace import Trace
from microtome.zoo import planted

LIGHT = {**probed.FAST, "causal": False}


@pytest.fixture(scope="module")
def model():
    return probed.model()


@pytest.fixture(scope="module")
def found(model):
    return methods.probe(model, probed.texts(), ask=probed.ASK, options=probed.FAST, seed=0)


def controls(result):
    return {c.name: c for c in result.controls}


def test_a_planted_direction_is_found_where_it_is_and_the_model_uses_it(model, found):
    assert found.verdict == "supported", found.verdict.reasons
    lines = found.tables["probes"].set_index(["what", "site"])["value"]
    writes = next(i for i in range(model.facts.n_layers) if lines["probe", f"L{i}.resid_post"] > 0.99)
    assert all(lines["probe", f"L{i}.resid_post"] < 0.85 for i in range(writes))
    assert lines["random twin"].max() < 0.85 and lines["bag of words", ""] < 0.8
    causal = controls(found)["causal"]
    assert causal.passed and causal.observed["natural indirect effect"] == pytest.approx(1.0, abs=0.1)
    assert controls(found)["shuffled_labels"].passed and controls(found)["selectivity"].passed


def test_its_direction_is_a_value_that_steers(model, found):
    direction = direction_of(found, "displacement")
    direction.check(model.hash, model.facts.d_model)
    words = [
        i for i, w in enumerate(model.strings(range(model.facts.d_vocab))) if w.strip() in ("good", "bad")
    ]
    good, bad = sorted(words, key=lambda i: model.strings([i])[0].strip(), reverse=True)
    text = next(t for t, y in zip(probed.texts().texts, probed.texts().labels, strict=True) if y == 0)
    for coefficient, sign in ((0.0, -1), (1.0, 1)):
        steer = Steer(f"{direction.site}@-1", direction.vector, coefficient)
        last = model.run([text], edits=[steer], logits="last").logits[0, -1]
        assert float(last[good] - last[bad]) * sign > 1.0
    assert methods.direction_of(found).site.point == "resid_post" and methods.Ask is Ask
    with pytest.raises(EditError):
        direction.check("another model", model.facts.d_model)
    with pytest.raises(EditError):
        direction.check(model.hash, model.facts.d_model + 1)


def test_a_coin_per_word_is_not_found(model):
    result = methods.probe(model, probed.relabelled(probed.texts()), ask=probed.ASK, options=probed.FAST)
    assert result.verdict == "not distinguishable from its null"
    assert not controls(result)["random_twin"].passed and not controls(result)["causal"].passed


def test_shuffled_labels_of_one_group_each_are_not_found(model):
    """A label that was shuffled among the texts of the data."""
    data = probed.texts()
    mixed = replace(data, labels=tuple(np.random.default_rng(3).permutation(data.labels).tolist()), groups={})
    result = methods.probe(model, mixed, options=LIGHT)
    assert (
        result.verdict == "not distinguishable from its null"
        and not controls(result)["shuffled_labels"].passed
    )


def test_a_leaked_split_makes_the_result_invalid(model):
    data = probed.texts()
    result = methods.probe(model, data, options={**LIGHT, "by": ()})
    assert result.verdict == "invalid" and not controls(result)["split"].passed


def test_a_split_by_some_groupings_is_a_choice_that_is_said(model):
    data = probed.texts()
    first = tuple(t.split()[0] for t in data.texts)
    both = replace(data, groups={**data.groups, "first": first})
    control = controls(methods.probe(model, both, kinds=("mass_mean",), options={**LIGHT, "by": ("word",)}))[
        "split"
    ]
    assert control.passed and "as asked" in control.detail


def test_a_leak_shows_in_shuffled_labels_too():
    """Each group has a vector of its own, so that any label of a group met in training is known."""
    rng = np.random.default_rng(0)
    data = of_lists(
        [f"text {i}" for i in range(240)],
        [i // 3 % 2 for i in range(240)],
        {"word": [i // 3 for i in range(240)]},
    )
    values = {("L0.resid_post", -1): rng.standard_normal((80, 150))[np.arange(240) // 3].astype(np.float32)}
    for by, leaks in (((), True), (None, False)):
        options = ProbeOptions.of({**LIGHT, "by": by})
        d = design(data, options, 0)
        shuffles = shuffled_columns(d.truth, d.units, draws=99, seed=0, parts=d.parts)
        swept = sweep_places(values, d, ("whitened",), shuffles, options)
        control, _ = check.shuffled(swept.best(), swept, d)
        assert (control.observed["mean of shuffled"] > check.LEAK) == leaks
        assert not control.passed and split_control(d).passed is not leaks


def test_a_token_read_one_off_makes_the_result_invalid(model, monkeypatch):
    real = reading.address
    monkeypatch.setattr(
        reading,
        "address",
        lambda place: real((place[0], place[1] - 1)) if isinstance(place[1], int) else real(place),
    )
    result = methods.probe(model, probed.texts(), kinds=("mass_mean",), options=LIGHT)
    assert result.verdict == "invalid" and not controls(result)["own_token"].passed


def test_a_label_that_stands_in_the_words_is_not_the_models_merit(model):
    """Without groups the words of the test were met in training: counting words does as well."""
    data = replace(probed.texts(n_each=10), groups={})
    result = methods.probe(model, data, options=LIGHT)
    assert result.verdict == "not distinguishable from its null"
    assert not controls(result)["bag_of_words"].passed


def test_a_longer_class_is_caught_by_length(model):
    data = probed.texts()
    rows = [t if y else " ".join(t.split()[-3:]) for t, y in zip(data.texts, data.labels, strict=True)]
    keep = [rows.index(r) for r in dict.fromkeys(rows)]
    short = LabelledText(
        "short", tuple(rows[i] for i in keep), tuple(data.labels[i] for i in keep), data.classes, {}
    )
    result = methods.probe(model, short, options=LIGHT)
    assert not controls(result)["length"].passed and result.verdict != "supported"


def test_few_groups_are_underpowered(model):
    data = probed.texts(n_each=6, words=range(5))
    assert methods.probe(model, data, options=LIGHT).verdict == "underpowered"


def test_what_does_not_run_says_why(model):
    result = methods.probe(model, probed.texts(), kinds=("mass_mean",), options={**LIGHT, "twin": False})
    assert result.verdict == "unchecked" and controls(result)["random_twin"].outcome == "did not run"
    assert "logistic" in controls(result)["shuffled_logistic"].detail


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda d: {"data": replace(d, labels=(0,) * len(d))}, "every text"),
        (lambda d: {"data": replace(d, groups={"word": ("one",) * len(d)})}, "1 groups for a split in 3"),
        (lambda d: {"sites": "L*.resid_post"}, "no single position"),
        (lambda d: {"sites": "L0.z@-1"}, "values per position"),
        (lambda d: {"kinds": ("svm",)}, "not a kind"),
        (lambda d: {"kinds": ("logistic",)}, "no closed form"),
        (lambda d: {"options": {"permutation": 3}}, "no option"),
        (lambda d: {"options": {"permutations": 3}}, "fewer than 19"),
        (lambda d: {"options": {"split": ((0, 1), (1, 2), (3,))}}, "overlap"),
        (lambda d: {"options": {"split": ((0, 1, 2, 3), (4, 5), (6, 7))}}, "one class only"),
        (lambda d: {"options": {"positive": "ugly"}}, "no class"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(model, change, said):
    arguments = {"data": probed.texts(), "options": LIGHT} | change(probed.texts())
    with pytest.raises(TaskError, match=said):
        methods.probe(model, **arguments)


def test_labels_that_are_no_labels_and_three_classes_are_refused(model):
    with pytest.raises(TaskError, match="not a label"):
        of_lists(["a", "b"], [0.5, 1.5])
    data = probed.texts()
    three = replace(data, classes=("bad", "good", "third"), labels=(2, *data.labels[1:]))
    with pytest.raises(TaskError, match="3 classes"):
        methods.probe(model, three, options=LIGHT)


def test_activations_that_are_not_finite_are_refused_with_text_and_site(model, monkeypatch):
    real = Trace.__getitem__

    def broken(self, site):
        value = real(self, site).clone()
        value[0] = float("nan")
        return value

    monkeypatch.setattr(Trace, "__getitem__", broken)
    with pytest.raises(ControlError, match=r"text \d+ at L0.resid_post@-1 is not finite"):
        methods.probe(model, probed.texts(), kinds=("mass_mean",), options=LIGHT)


def test_the_same_seed_gives_the_same_numbers_and_the_random_state_is_left_alone(model):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two = (methods.probe(model, probed.texts(), options=LIGHT, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one.effects.values, two.effects.values)
    assert [c.observed for c in one.controls] == [c.observed for c in two.controls]
    assert torch.equal(before, torch.get_rng_state())


def test_a_store_gives_the_same_numbers_and_another_datas_is_refused(model, tmp_path):
    data = probed.texts()
    kept = mt.store(model, data, ["L*.resid_post@-1", "L*.resid_post"], tmp_path / "kept")
    plain = methods.probe(model, data, options=LIGHT)
    again = methods.probe(model, data, store=kept, options=LIGHT)
    np.testing.assert_allclose(again.effects.values, plain.effects.values, atol=1e-3)
    assert again.query.parameters["store"]["store"]["data"] == kept.manifest["data"]
    half = mt.store(model, data, ["L2.resid_post@-1"])
    some = methods.probe(model, data, store=half, options=LIGHT)
    np.testing.assert_allclose(some.effects.values, plain.effects.values, atol=1e-3)
    with pytest.raises(ResourceError):
        methods.probe(model, probed.texts(seed=1), store=kept, options=LIGHT)


def _seen(model, data=None, **changes):
    return controls(
        methods.probe(model, probed.texts() if data is None else data, **{"options": LIGHT} | changes)
    )


def test_a_direction_that_any_would_be_fails_the_random_direction(model):
    """At the embedding of the subject's own place words differ by the sign and little else once everything else is cut out."""
    seen = _seen(planted_direction_alone(), sites="L*.resid_post@-1", kinds=("mass_mean",))
    assert not seen["random_direction"].passed


def planted_direction_alone():
    """The planted model without decoys: its last token varies along one direction only, which every direction reads."""
    kept = dict(planted.SUBJECTS)
    planted.SUBJECTS.update(
        {side: tuple(f"{side}{k}" for k in range(probed.WORDS)) for side in ("good", "bad")}
    )
    try:
        return planted.planted_direction(seed=0, n=4).model
    finally:
        planted.SUBJECTS.update(kept)


def test_a_trained_model_swapped_for_an_untrained_one_fails_against_its_twin(model):
    assert not _seen(random_twin(model, 7))["random_twin"].passed


def test_a_probe_that_knows_words_by_heart_is_not_selective():
    rng = np.random.default_rng(0)
    data = of_lists(
        [f"text {i}" for i in range(240)],
        [i // 3 % 2 for i in range(240)],
        {"word": [i // 3 for i in range(240)]},
    )
    d = design(data, ProbeOptions.of(LIGHT), 0)
    values = {("L0.resid_post", -1): rng.standard_normal((80, 150))[np.arange(240) // 3].astype(np.float32)}
    cell = sweep_places(values, d, ("whitened",), None, ProbeOptions()).best()
    control = check.selectivity(cell, values[cell.place], d, ProbeOptions(), 0)
    assert not control.passed and control.observed["control labels"] > 0.9


def test_a_question_that_tells_as_much_fails_ask_and_one_that_cannot_be_put_says_why(model):
    assert not _seen(model, ask=probed.ASK)["ask"].passed
    digits = replace(probed.texts(), classes=("0", "1"))
    assert "no words" in _seen(model, digits)["ask"].detail
    assert "token" in _seen(model, ask=Ask(("good", "good"), ("{text}",)))["ask"].detail


def test_a_direction_that_the_model_does_not_read_fails_the_causal_test(model):
    """The filler at the first place can be read off the stream; the answer does not depend on it."""
    data = probed.texts()
    loud = [int(t.split()[0] > "n") for t in data.texts]
    other = replace(data, labels=tuple(loud), groups={})
    seen = _seen(model, other, ask=probed.ASK, options=probed.FAST)
    assert seen["causal"].passed is False


def test_logistic_regression_on_labels_that_mean_nothing_fails_its_shuffles(model):
    assert not _seen(model, probed.relabelled(probed.texts(), seed=5))["shuffled_logistic"].passed


def test_the_linter_is_heard(model):
    data = probed.texts()
    named = replace(
        data,
        texts=tuple(f"{t} {'near' if y else 'late'}" for t, y in zip(data.texts, data.labels, strict=True)),
    )
    found = lint(named, seed=0)
    assert found.errors or not found.clean
    control = technique._linted(
        lint(
            replace(data, texts=(data.texts[0], *data.texts[1:-1], data.texts[0])),
            [range(100), range(100, 150), range(150, 199)],
            seed=0,
        )
    )
    assert not control.passed and "duplicate" in control.detail


def test_an_average_leaves_out_the_first_token_and_every_pad(model):
    data = replace(
        probed.texts().subset(range(6)),
        texts=("is", "red is", "good0 is", "red good1 is", "bad0 red is", "old good2 is"),
        groups={},
    )
    texts = reading.encoded(model, data)
    (place,) = [("L2.resid_post", reading.MEAN)]
    pooled = reading.capture(model, texts, [place])[place]
    for i, ids in enumerate(texts.ids):
        alone = model.run([list(ids)], ["L2.resid_post"], logits=None)["L2.resid_post"][0].numpy()
        np.testing.assert_allclose(pooled[i], alone[1:].mean(0), atol=1e-5)
    values, mask = reading.sequences(model, texts, "L2.resid_post")
    assert mask.sum(1).tolist() == [len(ids) - 1 for ids in texts.ids] and not mask[:, 0].any()
    np.testing.assert_allclose(
        (values * mask[..., None]).sum(1) / mask.sum(1, keepdims=True), pooled, atol=1e-5
    )


def test_the_place_is_chosen_on_validation_texts_so_the_test_owes_nothing_to_the_choice():
    """Forty places of noise: the chosen one's AUROC on test texts is at chance on average, its validation AUROC is not."""
    rng = np.random.default_rng(0)
    data = of_lists([f"text {i}" for i in range(60)], [i % 2 for i in range(60)])
    options = ProbeOptions()
    held, tested = [], []
    for run in range(60):
        d = design(data, options, run)
        values = {("L0.resid_post", k): rng.standard_normal((60, 4)).astype(np.float32) for k in range(40)}
        best = sweep_places(values, d, ("mass_mean",), None, options).best()
        held.append(best.validation)
        tested.append(float(auroc(best.scores[d.test], d.truth[d.test])[0]))
    assert np.mean(held) > 0.85 and abs(np.mean(tested) - 0.5) < 4 * np.std(tested) / np.sqrt(60)


def test_a_span_that_nobody_reads_need_not_fall_between_tokens() -> None:
    from dataclasses import replace

    data = probed.texts()
    odd = replace(data, spans={"half": tuple((0, 1) if len(t) > 1 else None for t in data.texts)})
    model = probed.model()
    found = reading.encoded(model, odd, reading.places_of(model, "L1.resid_post@-1"))
    assert not found.spans and len(found.ids) == len(odd.texts)
    with pytest.raises(TaskError, match="does not begin and end between tokens"):
        reading.encoded(model, odd, reading.places_of(model, "L1.resid_post@half[-1]"))


def test_the_causal_test_tests_another_direction_than_the_one_that_chose_its_place(model, monkeypatch):
    """Chosen and tested by one direction, the place is where it happens to do most; null directions are taken as they come."""
    fitted = []
    original = causing._direction

    def spied(part, *rest):
        fitted.append(set(np.asarray(part).tolist()))
        return original(part, *rest)

    monkeypatch.setattr(causing, "_direction", spied)
    seen = _seen(model, ask=probed.ASK, options=probed.FAST)["causal"]
    chose, tested = fitted[:-2], fitted[-2:]
    assert chose and tested[0] == tested[1] and all(not part & tested[0] for part in chose)
    assert seen.passed and {"p, isotropic", "p, natural noise", "p, shuffled labels, equal length"} <= set(
        seen.observed
    )
    assert "median |cosine|" in seen.detail
