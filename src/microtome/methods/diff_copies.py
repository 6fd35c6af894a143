"""Copies of a model with other weights, as models with a record of what was done: rounded, or with an adapter merged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microtome.facade import Model
from microtome.model.copies import merged, rounded
from microtome.model.load import Loaded

if TYPE_CHECKING:
    from torch import nn


def quantised_copy(model: Model, bits: int = 4, group: int = 32) -> Model:
    """A copy whose layers' weight matrices are rounded to `bits` bits in groups of `group` inputs, and written back as floats.

    `model.reasons["weights"]` says what was done. For other roundings load another GGUF of the model.

    Raises
    ------
    ModelError: bits outside 2 to 8, or no linear weights.
    """
    paths = tuple(s.path for s in model.binding.slots)
    made, how = rounded(model.hf, bits, group, paths)
    return copied(model, made, f"{model.name}, {bits} bits", how.sentence)


def merged_copy(module: Any, tokenizer: Any = None) -> Model:
    """A model of a PEFT module: its LoRA adapters added to a copy of the weights. The module itself keeps them.

    `model.reasons["weights"]` says which adapters. Whoever merged already loads with `mt.load(module, tokenizer=...)`.

    Raises
    ------
    ModelError: no PEFT module, an adapter that is no LoRA, or one that is switched off.
    """
    plain, said = merged(module)
    name = getattr(plain.config, "name_or_path", "") or type(plain).__name__
    return _model(plain, tokenizer, f"{name}, adapter merged", f"module in memory: {type(module).__name__}", "", said)  # fmt: skip


def copied(model: Model, made: nn.Module, name: str, said: str) -> Model:
    """A model around a changed copy of another's module, with a sentence on what was changed."""
    return _model(made, model.tokenizer, name, f"copy of {model.name}", model.card, said)


def _model(made: Any, tokenizer: Any, name: str, source: str, card: str, said: str) -> Model:
    reasons = {
        "dtype": f"{str(made.dtype).removeprefix('torch.')}: as it was",
        "device": f"{made.device}: where it was",
        "attention": f"{made.config._attn_implementation}: as it was",
        "weights": said,
    }
    card = f"{card} {said[:1].upper()}{said[1:]}.".strip()
    return Model(Loaded(made, tokenizer, name, source, card, made.dtype, made.device, reasons, None))
