"""A random twin: the same architecture with fresh weights, the control of whoever trains something on a model."""

from __future__ import annotations

import copy

import torch
from torch import nn

from microtome.errors import ModelError


def twin(hf: nn.Module, seed: int) -> nn.Module:
    """A module of the same class and config as `hf`, its weights drawn anew as its family initialises them.

    In evaluation mode, on the same device and in the same dtype. `hf` and the global random state stay as they were.

    Raises
    ------
    ModelError: a quantised model, whose weights its class cannot draw.
    """
    config = copy.deepcopy(hf.config)
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            "a quantised model has no random twin",
            why="its class loads weights of this kind and does not draw them",
            instead="load the model without quantisation",
        )
    some = next(hf.parameters())
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        torch.manual_seed(seed % 2**63)
        made: nn.Module = type(hf)(config)
    return made.to(device=some.device, dtype=some.dtype).eval()
