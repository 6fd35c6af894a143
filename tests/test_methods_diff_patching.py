"""Cross-model patching: a planted difference is located exactly, and every control can fail."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

import diffed
import planted
from microtome import methods, zoo
from microtome.errors import ModelError
from microtome.facade import Model
from microtome.methods import diff_patching
from microtome.model.load import load_module
from microtome.replay import sources

PARTS = ["L*.resid_post", "L*.attn_out", "L*.mlp_out", "L*H*.z"]


@pytest.fixture(scope="module")
def pair():
    a, b, _, _ = diffed.backdoored()
    task = zoo.build("planted_backdoor", seed=0, n=32).task
    return a, b, replace(task, groups={})  # every prompt by itself: the zoo's four templates reach p = 0.12


@pytest.fixture(scope="module")
def into_clean(pair):
    return methods.cross_model_patching(*pair, sites=PARTS, positions=[-1], seed=0)


def _shares(result):
    return result.tables["normalised"].set_index("site")["value"]


def test_a_planted_backdoor_is_carried_by_its_neurons_alone(into_clean):
    share = _shares(into_clean)
    assert into_clean.verdict == "supported"
    assert share["L1.mlp_out"] == pytest.approx(1) and share["L1.resid_post"] == pytest.approx(1)
    assert (
        share.drop(["L1.mlp_out", "L1.resid_post"]).abs().max() < 1e-6
    )  # the head alone finds no neurons there to read it


def test_back_into_the_backdoored_model_the_head_carries_it_too(pair):
    share = _shares(
        r := methods.cross_model_patching(*pair, sites=PARTS, positions=[-1], into="second", seed=0)
    )
    for site in ("L0H1.z", "L0.attn_out", "L0.resid_post", "L1.mlp_out"):
        assert share[site] == pytest.approx(1)
    assert share[["L0H0.z", "L1H0.z", "L1H1.z", "L0.mlp_out", "L1.attn_out"]].abs().max() < 1e-6
    assert r.control("behaviour_differs").observed["mean"] < 0
    # what is taken away is lost under noise too: necessity alone is no evidence, and the control says so
    assert r.control("noise_models").passed is False and r.verdict == "not distinguishable from its null"


def test_the_sweep_is_a_hooked_run_with_the_other_models_trace():
    """One forward per cell with `Patch` and the other model's trace: the same numbers."""
    import microtome as mt

    a = planted.one_head()
    b, task = diffed.nudged(a, layer=1), planted.pairs(a)
    r = methods.cross_model_patching(
        a, b, task, sites=["L1.resid_post", "L2.attn_out"], positions=[3, -1], seed=0
    )
    prompts = [list(ids) for ids in task.clean.ids]
    answer, wrong = (torch.tensor([t[0][0] for t in side])[:, None] for side in (task.answers, task.wrong))

    def read(logits):
        return (logits.gather(1, answer) - logits.gather(1, wrong))[:, 0]

    base = read(a.run(prompts, logits="last").logits[:, -1])
    for site in ("L1.resid_post", "L2.attn_out"):
        for k, at in enumerate((3, -1)):
            where = f"{site}@{at}"
            run = a.run(prompts, edits=[mt.Patch(where, b.run(prompts, [where])[where])], logits="last")
            effect = (read(run.logits[:, -1]) - base).numpy()
            np.testing.assert_allclose(r.effects.sel(site=site).values[k, :, 0], effect, atol=1e-4)


def test_below_the_change_nothing_is_run_and_nothing_is_counted():
    a = planted.one_head()
    b, task = diffed.nudged(a, layer=1), planted.pairs(a)
    r = methods.cross_model_patching(
        a, b, task, sites=["L*.resid_pre", "L*.resid_post"], positions="all", seed=0
    )
    zero = dict(zip(r.effects.coords["site"], r.tensors["structurally_zero"], strict=True))
    assert zero == {"L0.resid_pre": True, "L1.resid_pre": True, "L2.resid_pre": False,
                    "L0.resid_post": True, "L1.resid_post": False, "L2.resid_post": False}  # fmt: skip
    assert (r.effects.sel(site=["L0.resid_pre", "L1.resid_pre", "L0.resid_post"]).values == 0).all()
    assert r.control("whole").passed and r.control("identity").passed


def test_a_noise_model_and_an_unrelated_one_that_do_as_much_fail_their_controls(pair):
    a, b, task = pair
    same = methods.cross_model_patching(a, b, task, sites="L*.mlp_out", positions=[-1], unrelated=b, seed=0)
    assert same.control("unrelated").passed is False
    other = methods.cross_model_patching(
        a, b, task, sites="L*.mlp_out", positions=[-1], unrelated=diffed.placebo(a, b, 1), seed=0
    )
    assert other.control("unrelated").passed is True
    noise = methods.cross_model_patching(
        a, diffed.placebo(a, b, 1), task, sites="L*.resid_post", positions=[-1], seed=0
    )
    assert noise.verdict != "supported"


def test_models_that_behave_alike_have_nothing_to_locate(pair):
    a, b, task = pair
    swapped = task.swap()  # without the trigger both answer alike
    r = methods.cross_model_patching(a, b, swapped, sites="L*.mlp_out", positions=[-1], seed=0)
    assert r.control("behaviour_differs").passed is False and "normalised" not in r.tables
    assert r.verdict in ("unchecked", "not distinguishable from its null")


def test_a_donor_that_gives_other_values_is_invalid(pair, monkeypatch):
    true = sources.capture

    def off(*args):
        return {key: value + 0.5 for key, value in true(*args).items()}

    monkeypatch.setattr(sources, "capture", off)
    r = methods.cross_model_patching(*pair, sites="L*.resid_post", positions=[-1], seed=0)
    assert r.verdict == "invalid" and not r.control("identity").passed and not r.control("whole").passed


def test_a_lost_edit_is_invalid(pair, monkeypatch):
    true = diff_patching.sweep

    def lossy(*args, **kwargs):
        out = true(*args, **kwargs)
        out.fired -= 1
        return out

    monkeypatch.setattr(diff_patching, "sweep", lossy)
    r = methods.cross_model_patching(*pair, sites="L*.resid_post", positions=[-1], seed=0)
    assert r.verdict == "invalid" and not r.control("receipts").passed


def test_a_changed_unembedding_leaves_the_whole_unchecked_and_says_so(pair):
    a, b, task = pair

    def more(hf):
        hf.lm_head.weight *= 1.5

    r = methods.cross_model_patching(
        a, diffed.changed(b, more), task, sites="L*.mlp_out", positions=[-1], seed=0
    )
    assert r.control("whole").passed is None and "lm_head" in r.control("whole").detail


def test_models_that_cannot_be_compared_are_refused(pair):
    a, _, task = pair
    half = Model(load_module(copy.deepcopy(a.hf).double(), tokenizer=a.tokenizer))
    with pytest.raises(ModelError, match="float64"):
        methods.cross_model_patching(a, half, task)
    with pytest.raises(ModelError, match="neither model"):
        methods.cross_model_patching(a, a, task, into="third")
