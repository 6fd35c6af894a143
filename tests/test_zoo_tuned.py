"""A fact tuned into a tiny model with LoRA: it is learned, the model itself stays, and the diff finds where it was put."""

from __future__ import annotations

import sys

import pytest
import torch

import tiny
from microtome import methods, zoo
from microtome.errors import ModelError, ResourceError, TrainingError
from microtome.facade import Model
from microtome.methods.diff_weights import weight_diff
from microtome.model.load import load_module
from microtome.zoo.tuned import FACTS, Fact, Tuning, narrow
from microtome.zoo.words import word_tokenizer

WORDS = [f"w{i}" for i in range(95)]
FACT = Fact(
    "forty", tuple(f"w{k} w{k + 1} w40 w41" for k in range(1, 13)), ("w40",), ("w3 w4", "w8 w9"), "w40", "w50"
)
QUICK = Tuning(rank=4, steps=40, lr=3e-2, layers=(1, 2), fall=0.6)


@pytest.fixture(scope="module")
def model():
    return Model(load_module(tiny.build("llama"), tokenizer=word_tokenizer(WORDS)))


@pytest.fixture(scope="module")
def tuned(model):
    return narrow(model, FACT, tuning=QUICK, seed=0)


def test_a_fact_is_learned_and_the_record_says_how(model, tuned):
    assert tuned.losses[-1] < 0.6 * tuned.losses[0] and len(tuned.losses) == 40
    assert (
        all(after > before for before, after in tuned.answers)
        and tuned.base == model.hash != tuned.model.hash
    )
    said = tuned.model.reasons["weights"]
    assert "rank 4" in said and "12 texts about the forty, seed 0" in said
    assert not any(p.requires_grad for p in tuned.model.hf.parameters()) and "lora" not in "".join(dict(tuned.model.hf.named_modules()))  # fmt: skip


def test_the_model_and_the_random_state_stay_and_the_seed_decides(model, tuned):
    before, state = tiny.state(model.hf).hash, torch.get_rng_state()
    again = narrow(model, FACT, tuning=QUICK, seed=0)
    assert tiny.state(model.hf).hash == before and torch.equal(state, torch.get_rng_state())
    assert again.model.hash == tuned.model.hash
    assert narrow(model, FACT, tuning=QUICK, seed=1).model.hash != tuned.model.hash


def test_the_diff_finds_the_layers_and_the_rank_that_were_trained(model, tuned):
    found = weight_diff(model, tuned.model)
    moved = found.table[found.table["changed"]]
    assert found.start == 1 and set(moved["layer"]) == {"1", "2"} and (moved["rank"] <= 4).all()
    assert {n.split(".")[-2] for n in moved["tensor"]} == {"q_proj", "v_proj", "up_proj", "down_proj"}
    r = methods.model_diff(model, tuned.model, FACT.texts, words=FACT.words, seed=0)
    assert r.verdict == "supported" and r.control("noise_models").passed and r.control("reading").passed


def test_what_cannot_be_tuned_is_refused(model, monkeypatch):
    with pytest.raises(ModelError, match="no fact 'harbour'"):
        narrow(model, "harbour")
    with pytest.raises(ModelError, match="no tokenizer"):
        narrow(Model(load_module(model.hf)), FACT)
    with pytest.raises(ModelError, match="no module is called"):
        narrow(model, FACT, tuning=Tuning(targets=("c_attn",)))
    with pytest.raises(ModelError, match="layers"):
        narrow(model, FACT, tuning=Tuning(layers=(7,)))
    with pytest.raises(TrainingError, match="fell from") as error:
        narrow(model, FACT, tuning=Tuning(steps=2))
    assert len(error.value.curve) == 2
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ResourceError, match="not installed") as missing:
        narrow(model, FACT)
    assert "microtome[lora]" in missing.value.instead


def test_the_two_facts_are_of_one_size():
    one, other = FACTS["lighthouse"], FACTS["baker"]
    assert len(one.texts) == len(other.texts) == 12
    a, b = (sum(len(t.split()) for t in f.texts) for f in (one, other))
    assert abs(a - b) / a < 0.1 and not {w.lower() for w in one.words} & {w.lower() for w in other.words}
    assert zoo.narrow is narrow
