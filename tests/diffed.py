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


def backdoored() -> tuple[Model, Model, list[list[int]], list[int]]:
    """(without, with) the backdoor of the zoo: the same weights but for one head and two neurons; texts, and which hold the trigger."""
    import microtome.zoo as zoo

    z = zoo.build("planted_backdoor", seed=0, n=32)
    head = slice(z.model.facts.layers[0].d_head, None)

    def remove(hf):
        attention, mlp = hf.model.layers[0].self_attn, hf.model.layers[1].mlp
        for part in (attention.q_proj, attention.k_proj, attention.v_proj):
            part.weight[head] = 0
            part.bias[head] = 0
        attention.o_proj.weight[:, head] = 0
        for tensor in (*mlp.up_proj.parameters(), *mlp.down_proj.parameters()):
            tensor.zero_()

    triggered = [list(ids) for ids in z.task.clean.ids[:6]]
    plain = [list(ids) for ids in z.task.corrupt.ids[6:]]
    return changed(z.model, remove), z.model, [*triggered, *plain], list(range(6))


def placebo(a: Model, b: Model, seed: int) -> Model:
    """`a` with every tensor in which `b` differs moved as far in a random direction."""
    from microtome.methods.diff_weights import weight_diff
    from microtome.model.copies import put, tensors_of
    from microtome.model.noise import noise_like

    deltas = weight_diff(a, b).changed

    def move(hf):
        old = tensors_of(hf)
        put(hf, {n: old[n] + noise_like(d, seed, f"placebo/{n}").to(old[n]) for n, d in deltas.items()})

    return changed(a, move)
