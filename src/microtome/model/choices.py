"""Type and device of a loaded model, each with the sentence that says why; and what kind of model is taken at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microtome.errors import ModelError, ResourceError

if TYPE_CHECKING:
    import torch

_SHORT = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32",
          "fp64": "float64", "double": "float64"}  # fmt: skip
_FLOATS = ("float64", "float32", "bfloat16", "float16")


def parse_dtype(asked: str | torch.dtype) -> torch.dtype:
    """A floating type from a torch type or its name ("float32", "bf16", ...).

    Raises
    ------
    ModelError: not a type that weights can be computed in.
    """
    import torch

    name = str(asked).removeprefix("torch.")
    name = _SHORT.get(name, name)
    if name not in _FLOATS:
        raise ModelError(
            f"dtype={asked!r} is not a type to compute in.",
            instead=f"one of {', '.join(_FLOATS)}, or leave it out",
        )
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found


def choose_dtype(
    asked: str | torch.dtype | None, stored: torch.dtype | None, device: torch.device
) -> tuple[torch.dtype, str]:
    """The type to load in, and why.

    Parameters
    ----------
    stored: the type of the checkpoint, None where it is packed.
    """
    import torch

    kept = f"the checkpoint holds {_name(stored)}" if stored is not None else "the checkpoint is packed"
    if asked is not None:
        dtype = parse_dtype(asked)
        return dtype, f"{_name(dtype)}: asked for ({kept})"
    if stored in (torch.float64, torch.float32):
        return stored, f"{_name(stored)}: the checkpoint's own type"
    if device.type != "cuda" or stored is None:
        why = "half precision is slow there and its rounding would look like small effects"
        return torch.float32, f"float32: the default on {device.type} ({kept}; {why})"
    if stored == torch.bfloat16 and not torch.cuda.is_bf16_supported():
        return torch.float32, f"float32: {kept}, which this CUDA device cannot compute in"
    return stored, f"{_name(stored)}: the checkpoint's own type, which this CUDA device computes in"


def choose_device(asked: str | torch.device | None) -> tuple[torch.device, str]:
    """The device to load on, and why.

    Raises
    ------
    ModelError: not the name of a device that can hold a model.
    ResourceError: this machine, or this build of torch, has no such device.
    """
    import torch

    if asked is None:
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device()), "cuda: a CUDA device is available"
        return torch.device("cpu"), "cpu: no CUDA device is available (mps is used on request only)"
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise ModelError(
            f"device={asked!r} is not a device.", instead='"cpu", "cuda", "cuda:1" or "mps"'
        ) from error
    count = _devices(device.type)
    if count is None:
        raise ModelError(
            f"device={str(asked)!r} holds no model.",
            why="meta has no numbers" if device.type == "meta" else "nobody can say how many there are",
            instead='"cpu", "cuda" or "mps"',
        )
    if (device.index or 0) >= count:
        raise ResourceError(
            f"device={str(asked)!r} is not there.",
            why=f"torch {torch.__version__} sees {count} device(s) of type {device.type}",
            instead="leave device out to take what there is",
        )
    if device == torch.device("cuda"):  # no index: the current one
        device = torch.device("cuda", torch.cuda.current_device())
    return device, f"{device}: asked for"


def _devices(kind: str) -> int | None:
    """How many devices of a type torch sees; None for a type that cannot be counted (meta, vulkan)."""
    import torch

    if kind == "cpu":
        return 1
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    count = getattr(getattr(torch, kind, None), "device_count", None)
    return None if count is None else int(count())


def check_causal(config: Any, name: str) -> None:
    """Refuse what is not a causal decoder: Microtome's sites, replay and metrics are defined for those.

    Raises
    ------
    ModelError: an encoder-decoder, an encoder, a model without layers or without a causal language-modelling class.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = getattr(config, "model_type", None) or type(config).__name__
    instead = "take a decoder-only language model (gpt2, llama, qwen, gemma, ...)"
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{name} is an encoder-decoder model ({kind}).",
            why="it has two streams; sites, sweeps and metrics here are defined for one causal stream",
            instead=instead,
        )
    encoder = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES or kind == "bert-generation"
    if encoder and not getattr(config, "is_decoder", False):
        raise ModelError(
            f"{name} is an encoder-only model ({kind}).",
            why="every position sees the whole text, so it predicts no next token",
            instead=instead,
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"{name} is not a causal language model ({kind}).",
            why=f"transformers has no causal language-modelling class for {type(config).__name__}",
            instead=instead,
        )
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(layers, int) and layers < 1:
        raise ModelError(
            f"{name} has {layers} layers.",
            why="there is nothing to look into",
            instead="check its config.json",
        )


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")
