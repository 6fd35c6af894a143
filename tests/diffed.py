"""Pairs of tiny models of which it is known how they differ."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch

from microtome.facade import Model
from microtome.methods.diffing import DiffOptions
from microtome.model.load import load_module

FEW = DiffOptions(draws=3, leave_out=0)


def changed(model: Model, change: Callable[[torch.nn.Module], None]) -> Model:
    """A copy whose module was changed."""
    hf = copy.deepcopy(model.hf)
    with torch.no_grad():
        change(hf)
    return Model(load_module(hf.eval(), tokenizer=model.tokenizer))


def nudged(model: Model, layer: int = 1, size: float = 0.3, seed: int = 3) -> Model:
    """The MLP of one layer of a llama moved in random directions: what a noise model is."""

    def move(hf):
        weight = hf.model.layers[layer].mlp.up_proj.weight
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
        weight += size * weight.norm() * noise / noise.norm()

    return changed(model, move)
