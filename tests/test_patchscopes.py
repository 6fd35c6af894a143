"""Patchscopes on a model that says the word at one place: its state is put into words, another place's is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import worded
from microtome import methods
from microtome.errors import MicrotomeError, SiteError, TaskError
from microtome.methods.lensing import patchscopes
from microtome.trace.edits import Patch

TARGET = "w50 w51 w52 w53 w54 w55"


def prompts(n=12):
    """The word to be said stands at place 3, as the copier looks there."""
    words = [f"w{20 + i}" for i in range(n)]
    return [f"w{3 + i % 5} w9 w{60 + i} {w} w11 w12" for i, w in enumerate(words)], words


@pytest.fixture(scope="module")
def model():
    return worded.copier()


@pytest.fixture(scope="module")
def result(model):
    texts, words = prompts()
    return methods.patchscope(
        model, texts, "L1.resid_pre@3", answers=words, target_prompt=TARGET, placeholder="w53", randoms=4
    )


def test_a_state_that_holds_the_word_says_it(result) -> None:
    assert result.verdict == "supported" and all(c.passed for c in result.controls)
    own = result.tables["generations"].query("state == 'own'")
    assert own.right.mean() > 0.5  # the copier's likeliest word is at times a neighbour of the one it copies
    states = result.tables["states"].set_index("state").value
    assert states["own"] > states["other"] + 1 and states["own"] > states["random"] + 1


def test_a_state_of_another_place_does_not(model) -> None:
    texts, words = prompts()
    r = methods.patchscope(
        model, texts, "L1.resid_pre@2", answers=words, target_prompt=TARGET, placeholder="w52", randoms=4
    )
    assert r.verdict == "not distinguishable from its null"
    assert not r.tables["generations"].right.any()


def test_after_the_head_has_looked_the_state_says_nothing(model) -> None:
    texts, words = prompts()
    r = methods.patchscope(
        model,
        texts,
        "L1.resid_pre@3",
        answers=words,
        target_prompt=TARGET,
        placeholder="w53",
        target_layer=2,
        randoms=2,
    )
    assert r.verdict == "not distinguishable from its null"


def test_without_answers_nothing_is_claimed(model) -> None:
    r = methods.patchscope(
        model, prompts(2)[0], "L1.resid_pre@3", target_prompt=TARGET, placeholder="w53", randoms=2
    )
    assert r.verdict == "unchecked" and r.effects is None and r.control("random_vectors").passed is None
    assert len(r.tables["generations"]) == 2 * (1 + 1 + 1 + 2)


# faults that controls catch


def test_a_state_put_elsewhere_fails(model, monkeypatch) -> None:
    texts, words = prompts(2)
    s = patchscopes._setup(model, texts, "L1.resid_pre@3", words, TARGET, None, "w53", 2, 0)
    assert patchscopes._identity(s).passed
    real = Patch.__init__
    monkeypatch.setattr(Patch, "__init__", lambda self, site, source: real(self, site, source.flip(-1)))
    assert patchscopes._identity(s).passed is False


def test_a_state_that_never_arrives_fails(model) -> None:
    texts, words = prompts(2)
    s = patchscopes._setup(model, texts, "L1.resid_pre@3", words, TARGET, None, "w53", 2, 0)
    assert patchscopes._receipts([1, 1], s).passed
    assert (
        patchscopes._receipts([1, 0], s).passed is False and patchscopes._receipts([2, 1], s).passed is False
    )


def test_what_any_vector_says_fails() -> None:
    own = {
        "own": np.full(4, -1.0),
        "other 1": np.full(4, -3.0),
        "none": np.full(4, -2.0),
        "random 0": np.full(4, -0.5),
    }
    random, none = patchscopes._nulls(own, 4)
    assert random.passed is False and none.passed
    random, none = patchscopes._nulls({**own, "random 0": np.full(4, -5.0), "none": np.full(4, 0.0)}, 4)
    assert random.passed and none.passed is False


def test_a_model_that_names_answers_whatever_it_is_given_fails(model) -> None:
    import pandas as pd

    texts, words = prompts(2)
    s = patchscopes._setup(model, texts, "L1.resid_pre@3", words, TARGET, None, "w53", 2, 0)
    rows = [
        {"prompt": 0, "state": "own", "named": "w20", "right": True},
        {"prompt": 0, "state": "random 0", "named": "w21", "right": False},
    ]
    assert patchscopes._hallucination(pd.DataFrame(rows), s).passed is False
    rows[1]["named"] = ""
    assert patchscopes._hallucination(pd.DataFrame(rows), s).passed


# bad input


@pytest.mark.parametrize(("wrong", "error"), [
    ({"site": "L1.mlp_out"}, SiteError), ({"site": "L*.resid_pre"}, SiteError), ({"site": "L1H0.z"}, SiteError), ({"site": "L9.resid_pre"}, MicrotomeError),
    ({"prompts": []}, TaskError), ({"prompts": [""]}, TaskError), ({"answers": ["w3"]}, TaskError), ({"answers": ["w3", "w3"]}, TaskError),
    ({"placeholder": "?"}, TaskError), ({"placeholder": ""}, TaskError), ({"placeholder": "w5"}, TaskError), ({"target_layer": 7}, SiteError), ({"randoms": 0}, TaskError),
    ({"site": "L1.resid_pre@77"}, MicrotomeError),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(model, wrong, error) -> None:
    texts, words = prompts(2)
    asked = {
        "prompts": texts,
        "site": "L1.resid_pre@3",
        "answers": words,
        "target_prompt": TARGET,
        "placeholder": "w53",
        **wrong,
    }
    given, site = asked.pop("prompts"), asked.pop("site")
    with pytest.raises(error):
        methods.patchscope(model, given, site, **asked)


def test_random_vectors_have_the_length_of_the_state(model) -> None:
    texts, words = prompts(3)
    s = patchscopes._setup(model, texts, "L1.resid_pre@3", words, TARGET, None, "w53", 3, 0)
    for name, states in patchscopes._states(s, 0).items():
        if name.startswith("random"):
            assert torch.allclose(states.norm(dim=1), s.states.norm(dim=1), rtol=1e-4)
        if name.startswith("other"):
            assert not torch.allclose(states, s.states)
