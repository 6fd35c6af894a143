"""A model whose numbers are not numbers: refused with the site where it begins, whatever is asked of it."""

import copy

import pytest
import torch

import microtome
import tiny
from microtome.certificate import certify
from microtome.errors import ModelError
from microtome.methods import activation_patching, behaviour


def broken(path, value):
    hf = copy.deepcopy(tiny.model("llama"))
    with torch.no_grad():
        hf.get_submodule(path).weight.view(-1)[3] = value
    return microtome.load(hf)


CASES = [
    ("model.layers.1.mlp.down_proj", "nan", r"L1\.resid_post"),
    ("model.layers.0.self_attn.q_proj", "inf", r"L0\.resid_post"),
    ("model.norm", "nan", "logits"),
]


@pytest.mark.parametrize(("path", "value", "site"), CASES)
def test_methods_and_certificate_name_the_site(path, value, site):
    model = broken(path, float(value))
    task = microtome.pairs(
        model, clean=[[5, 6, 7], [8, 9, 7]], corrupt=[[5, 4, 7], [8, 3, 7]], answer=[10, 11], wrong=[12, 13]
    )
    for ask in (
        lambda: behaviour(model, task),
        lambda: activation_patching(model, task),
        lambda: certify(model),
    ):
        with pytest.raises(ModelError, match=f"NaN or infinity in the activations, first at {site}"):
            ask()
