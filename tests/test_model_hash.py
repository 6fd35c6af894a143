"""The hash ties a result to the exact weights: any change is seen, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from microtome.model.hashing import model_hash


def test_the_same_model_has_the_same_hash_wherever_it_is_made() -> None:
    one, other = tiny.build("llama"), tiny.build("llama")
    other.config._name_or_path = "/somewhere/else"
    other.config._attn_implementation = "eager"
    assert model_hash(one) == model_hash(other) == model_hash(one)
    assert len(model_hash(one)) == 16 and int(model_hash(one), 16) >= 0
    assert model_hash(one) != model_hash(tiny.build("llama", seed=1))
    assert model_hash(one) != model_hash(tiny.build("mistral"))


def _in_place(p: nn.Parameter) -> None:
    with torch.no_grad():
        p.mul_(2)


def _data(p: nn.Parameter) -> None:
    p.data.mul_(2)


def _replaced_data(p: nn.Parameter) -> None:
    p.data = p.data * 2


@pytest.mark.parametrize("change", [_in_place, _data, _replaced_data])
@pytest.mark.parametrize("file_hash", [None, "abcd"])
def test_a_change_of_any_weight_is_seen(
    change: Callable[[nn.Parameter], None], file_hash: str | None
) -> None:
    hf = tiny.build("llama")
    before = model_hash(hf, file_hash)
    change(hf.model.layers[1].mlp.down_proj.weight)
    after = model_hash(hf, file_hash)
    assert after != before and model_hash(hf, file_hash) == after


def test_a_replaced_module_is_seen() -> None:
    hf = tiny.build("llama")
    before = model_hash(hf)
    hf.model.layers[1].mlp.down_proj.weight = nn.Parameter(
        hf.model.layers[1].mlp.down_proj.weight.detach() * 2
    )
    assert model_hash(hf) != before


@pytest.mark.parametrize("name", ["gpt2", "apertus", "deepseek_v3", "jamba"])
def test_every_family_has_one(name: str) -> None:
    """Tied weights, scalars and integer buffers included."""
    assert model_hash(tiny.model(name)) == model_hash(tiny.build(name))


def test_a_model_object_knows_its_hash(capsys: Any) -> None:
    model = tiny.loaded("llama")
    assert model.hash == model_hash(model.hf) and model.facts.family == "llama"
    assert model.certificate() is model.certificate() and model.certificate().passed
    unknown = tiny.loaded("glm4")
    assert unknown.certificate().passed and not unknown.binding.known
    assert capsys.readouterr().out == ""
