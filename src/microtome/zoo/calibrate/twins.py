"""Second models of a specimen, for techniques that compare two: one that lacks a part of the mechanism, and placebos of it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from microtome.errors import ModelError
from microtome.model.copies import put, tensors_of
from microtome.model.noise import noise_like
from microtome.results import seeds
from microtome.zoo.module import ZooForCausalLM

if TYPE_CHECKING:
    from microtome.facade import Model
    from microtome.zoo.specimen import Specimen


def lacking(z: Specimen) -> str:
    """The node that the second model lacks: the backdoor's where there is one, else the first of the mechanism that writes.

    Raises
    ------
    ModelError: a mechanism that is the embedding alone.
    """
    sites = {v.name: v.site for v in z.mechanism.variables}
    nodes = [n for n in z.mechanism.nodes if n != "embed"]
    if not nodes:
        raise ModelError(f"{z.name} has no part to take out", why="its mechanism is its embedding")
    planted = sites.get("trigger", "")
    return planted if planted in nodes else nodes[0]


@torch.no_grad()
def silence(hf: Any, node: str) -> None:
    """Make a head or an MLP of a module write nothing.

    Raises
    ------
    ModelError: a module of another family.
    """
    if not isinstance(hf, ZooForCausalLM):
        raise ModelError("no part of this module can be silenced", why="it is of another family")
    place = node.split(".")[0]
    layer, _, head = place[1:].partition("H")
    block: Any = hf.model.layers[int(layer)]
    if head:
        # its values, not its output weights: what it carries is zero too
        width = block.self_attn.v_proj.weight.shape[0] // int(hf.config.num_attention_heads)
        for parameter in block.self_attn.v_proj.parameters():
            parameter[int(head) * width : (int(head) + 1) * width] = 0
    else:
        for parameter in block.mlp.down_proj.parameters():
            parameter.zero_()


def without(z: Specimen) -> Model:
    """The specimen without `lacking(z)`: what it writes is zero, every other weight is the same.

    Raises
    ------
    ModelError: as `silence` and `lacking`.
    """
    hf = copy.deepcopy(z.model.hf)
    silence(hf, lacking(z))
    return _model(z, hf)


def placebo(z: Specimen, first: Model, seed: int) -> Model:
    """`first` with every tensor in which the specimen differs from it moved as far at random."""
    own, other = tensors_of(first.hf), tensors_of(z.model.hf)
    hf = copy.deepcopy(first.hf)
    moved = {}
    for name, old in own.items():
        delta = other[name].double() - old.double()
        if bool(delta.any()):
            drawn = noise_like(delta, seeds.child(seed, "calibrate/placebo"), name)
            moved[name] = (old.double() + drawn).to(old)
    put(hf, moved)
    return _model(z, hf)


def _model(z: Specimen, hf: Any) -> Model:
    from microtome.facade import Model
    from microtome.model.load import load_module

    return Model(load_module(hf.eval(), tokenizer=z.model.tokenizer))
