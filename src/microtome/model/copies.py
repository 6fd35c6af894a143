"""Copies of a module with other weights: rounded ones, or with an adapter merged.

The module that was given is never changed; every function says in words what it made.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from microtome.errors import ModelError
from microtome.model.quiet import quiet


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, a tied one once, under its first name."""
    out: dict[str, Tensor] = {}
    seen: set[tuple[int, int]] = set()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        key = (tensor.data_ptr(), tensor.numel())
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        out[name] = tensor.detach()
    return out


def copy_of(module: nn.Module) -> nn.Module:
    """A deep copy in evaluation mode, without gradients."""
    return copy.deepcopy(module).eval().requires_grad_(False)


@torch.no_grad()
def put(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Write values into a module's tensors of these names."""
    own = dict((*module.named_parameters(), *module.named_buffers()))
    for name, value in values.items():
        own[name].copy_(value)


@dataclass(frozen=True)
class Rounding:
    """How a rounded copy was made. bits, group: see `rounded`; tensors: how many; error: relative, of all of them together."""

    bits: int
    group: int
    tensors: int
    error: float

    @property
    def sentence(self) -> str:
        """For a model's card."""
        return (
            f"{self.tensors} weight matrices of the layers rounded to {self.bits} bits in groups of {self.group} along the input "
            f"(symmetric, nearest) and written back as floats; relative error {self.error:.2g}"
        )


@torch.no_grad()
def rounded(module: nn.Module, bits: int, group: int, paths: tuple[str, ...]) -> tuple[nn.Module, Rounding]:
    """A copy whose linear weights under `paths` are rounded to the nearest of 2^bits - 1 levels per group of inputs.

    Symmetric absmax rounding, as the simplest of the quantisers in use (the "RTN" baseline of Frantar et al. 2022, GPTQ);
    weights stay floats, so that only the rounding differs from the model itself.

    Raises
    ------
    ModelError: bits outside 2 to 8, a group below 1, or no linear weight under these paths.
    """
    if bits not in range(2, 9) or group < 1:
        raise ModelError(f"bits={bits}, group={group} cannot be rounded to", why="bits are 2 to 8 and a group has at least one weight",
                         instead="bits=4, group=32")  # fmt: skip
    made = copy_of(module)
    count, error, size = 0, 0.0, 0.0
    for path in paths:
        for part in made.get_submodule(path).modules():
            weight = getattr(part, "weight", None)
            if not isinstance(weight, Tensor) or weight.dim() != 2 or isinstance(part, nn.Embedding):
                continue
            turned = type(part).__name__ == "Conv1D"  # [in, out]; a Linear is [out, in]
            old = (weight.T if turned else weight).double()
            new = _round(old, bits, group)
            error += float(((new - old) ** 2).sum())
            size += float((old**2).sum())
            weight.copy_((new.T if turned else new).to(weight))
            count += 1
    if not count:
        raise ModelError("this model has no linear weights in its layers", why="experts or convolutions hold them",
                         instead="round the weights yourself, and mt.load(module, tokenizer=...)")  # fmt: skip
    return made, Rounding(bits, group, count, (error / size) ** 0.5 if size else 0.0)


def _round(weight: Tensor, bits: int, group: int) -> Tensor:
    """Shapes: [out, in] -> [out, in]."""
    top = 2 ** (bits - 1) - 1
    out = weight.clone()
    for start in range(0, weight.shape[1], group):
        part = weight[:, start : start + group]
        step = part.abs().amax(1, keepdim=True) / top
        level = torch.where(step > 0, part / step, torch.zeros_like(part)).round()
        out[:, start : start + group] = level * step
    return out


def merged(module: Any) -> tuple[nn.Module, str]:
    """A PEFT model with its adapters added to a copy of the weights: a plain transformers module, and what was done.

    The module that was given keeps its adapters.

    Raises
    ------
    ModelError: no PEFT model, adapters that cannot be merged, or an adapter that is switched off.
    """
    configs = getattr(module, "peft_config", None)
    if not isinstance(configs, Mapping) or not hasattr(module, "merge_and_unload"):
        raise ModelError(
            f"A {type(module).__name__} has no adapter to merge.",
            why="it is no PEFT model",
            instead="mt.load(module, tokenizer=...)",
        )
    names = module.active_adapters
    names = list(names() if callable(names) else names)
    if not names or any(getattr(part, "disable_adapters", False) is True for part in module.modules()):
        raise ModelError("the adapter is switched off", why="merging it would give another model than the one that runs",
                         instead="module.enable_adapter_layers(), or take the base model")  # fmt: skip
    other = [n for n in names if not hasattr(configs[n], "lora_alpha")]
    if other:
        kind = getattr(configs[other[0]], "peft_type", "of an unknown kind")
        raise ModelError(f"adapter {other[0]!r} is {kind}, not LoRA", why="only what is added to a weight can be merged into it",
                         instead="merge it with peft and give the module")  # fmt: skip
    with quiet():
        plain: nn.Module = copy.deepcopy(module).merge_and_unload(safe_merge=True)
    said = [
        f"{n!r} (rank {configs[n].r}, alpha {configs[n].lora_alpha:g}, on {', '.join(sorted(_targets(configs[n])))})"
        for n in names
    ]
    return plain.eval().requires_grad_(False), f"LoRA {', '.join(said)} merged into a copy of the weights"


def _targets(config: Any) -> set[str]:
    found = config.target_modules
    return {found} if isinstance(found, str) else set(found or ())
