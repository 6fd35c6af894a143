"""Directional ablation: a planted direction takes the mood away and brings it; a placebo does neither; faults are seen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import steerable as st
from microtome.directions.estimate import given, mean_difference
from microtome.directions.weight_edit import orthogonalise
from microtome.errors import EditError, TaskError
from microtome.methods import removing
from microtome.methods.removing import RemovalOptions, directional_ablation
from microtome.methods.steer_measures import Lexicon, Reads, Words

WORDS = Words(tuple(st.GLAD), tuple(st.SAD))
FEW = RemovalOptions(draws=19, tokens=4, coefficient=2.0)


@pytest.fixture(scope="module")
def model():
    return st.model()


def removed(model, direction, options=FEW, **changes):
    given_ = {"prompts": st.moody(8), "harmless": st.prompts(6), "measure": WORDS, **changes}
    return directional_ablation(model, direction, site=st.SITE, options=options, seed=0, **given_)


def control(result, name):
    return next(c for c in result.controls if c.name == name)


def test_the_planted_direction_goes_both_ways_and_a_placebo_does_not(model):
    real = removed(model, st.texts(80))
    assert real.verdict == "supported", real.verdict.reasons
    assert {c.name: c.outcome for c in real.controls} == dict.fromkeys(
        [c.name for c in real.controls], "passed"
    )
    assert (real.effects.values < -0.5).all() and (real.tensors["added"] > 0.5).all()
    placebo = removed(model, st.texts(80, random_labels=True, seed=4))
    assert placebo.verdict != "supported"
    assert removed(st.model(strength=0.0), st.texts(80)).verdict != "supported"


def test_the_measure_is_that_of_the_edited_weights(model):
    d = mean_difference(model, st.texts(80), st.SITE)
    r = removed(model, d, replace(FEW, data=st.texts(80), draws=2))
    edited = orthogonalise(model, d).model
    for i, prompt in enumerate(st.moody(8)):
        up, down = WORDS.ids(model)
        change = []
        for m in (edited, model):
            logs = m.run(prompt, logits="last").logits[0, -1].double().log_softmax(-1)
            change.append(float(logs[up].logsumexp(0) - logs[down].logsumexp(0)))
        assert r.effects.values[0, i, 0] == pytest.approx(change[0] - change[1], abs=1e-4)


def test_a_removal_that_leaves_out_a_site_or_does_not_fire_is_invalid(model, monkeypatch):
    monkeypatch.setattr(removing, "stream_sites", lambda m: ["embed", "L0.resid_post"])
    assert removed(model, st.texts(80)).verdict == "supported"  # nothing writes after the embedding here
    original = removing.Removing.free
    monkeypatch.setattr(
        removing.Removing, "free", lambda self, push, fires=True: original(self, push)[1:] if push else []
    )
    monkeypatch.setattr(removing.Removing, "places", lambda self, edits, length: (len(edits) + 1) * length)
    r = removed(model, st.texts(80))
    assert control(r, "receipts").passed is False and r.verdict == "invalid"


def test_a_direction_that_is_still_there_is_seen(model, monkeypatch):
    class Half(removing.Remove):
        """Removes another direction than it was asked to."""

        def __init__(self, site, direction):
            super().__init__(site, direction + 0.2 * direction.norm() * torch.ones(st.D))

    monkeypatch.setattr(removing, "Remove", Half)
    r = removed(model, st.texts(80))
    assert control(r, "gone").passed is False and r.verdict == "invalid"


def test_harm_to_harmless_prompts_and_reused_prompts_fail(model):
    d = given(model, model.hf.model.embed_tokens.weight[6].detach(), st.SITE)  # what the chain is read from
    r = removed(model, d, replace(FEW, kl=1e-4), harmless=["open0 plain0", "open1 plain0", "open2 plain0"])
    assert control(r, "harmless_kl").passed is False and r.verdict != "supported"
    assert control(r, "induces").passed is False and control(r, "random_directions").passed is False
    texts = st.texts(80)
    r = removed(model, texts, prompts=[*texts.texts[:3], *st.moody(3)])
    assert control(r, "held_out").passed is False


def test_generated_text_and_bad_input(model):
    r = removed(
        model, st.texts(80), replace(FEW, draws=None, coefficient=3.0), measure=Lexicon(tuple(st.GLAD))
    )
    assert r.verdict.smallest_p == 0.05 and {"whole", "removed", "added"} == set(
        r.tables["samples"]["coefficient"]
    )
    with pytest.raises(TaskError, match="own removal"):
        removed(model, st.texts(80), measure=Reads(given(model, st.mood(), st.SITE)))
    with pytest.raises(TaskError, match="1 prompts"):
        removed(model, st.texts(80), prompts=st.moody(1))
    with pytest.raises(EditError, match="another model"):
        removed(st.model(strength=0.5), mean_difference(model, st.texts(80), st.SITE))
    with pytest.raises(EditError, match="no site of the stream"):
        directional_ablation(
            model, torch.ones(8), site="L1H0.z", prompts=st.moody(3), harmless=st.prompts(3), measure=WORDS
        )
