"""The same architecture without any training: what its activations tell is told by the input and the wiring alone."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from microtome.errors import ModelError
from microtome.model.load import load_module
from microtome.results import seeds

if TYPE_CHECKING:
    from microtome.facade import Model


def random_twin(model: Model, seed: int) -> Model:
    """A model of the same config with the family's own initialisation, on the same device, in the same dtype.

    Raises
    ------
    ModelError: transformers cannot build this family from its config alone.
    """
    from transformers import AutoModelForCausalLM

    from microtome.facade import Model as Facade

    like = next(model.hf.parameters())
    config = copy.deepcopy(model.hf.config)
    with torch.random.fork_rng(devices=[like.device] if like.is_cuda else []):
        torch.manual_seed(seeds.child(seed, "random twin") % 2**31)
        try:
            hf = AutoModelForCausalLM.from_config(config, dtype=like.dtype)
        except (ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
            raise ModelError(f"no random twin of {model.name}", why=f"{type(error).__name__}: {error}",
                             instead='options={"twin": False}; the result is then unchecked') from error  # fmt: skip
    return Facade(load_module(hf.to(like.device).eval(), tokenizer=model.tokenizer))
