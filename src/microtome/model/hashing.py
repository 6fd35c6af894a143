"""The hash that ties a result to the exact weights it came from."""

from __future__ import annotations

import hashlib
import json
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from microtome.model.checkpoint import module_hash

_LOCAL = ("_name_or_path", "transformers_version", "_attn_implementation", "attn_implementation")
"""Config entries that say where a copy lies or what read it, not what it computes."""

_known: WeakKeyDictionary[nn.Module, tuple[tuple[object, ...], str]] = WeakKeyDictionary()
_SAMPLES = 16


def model_hash(module: nn.Module, file_hash: str | None = None) -> str:
    """Hash of all parameters and buffers that are saved, and of the config. 16 hex digits.

    `file_hash` is the hash of the file the weights were loaded from; it stands for them as long as no tensor has
    been written to. Otherwise the tensors themselves are read, once per state of their version counters. Writes
    through `.data`, which no counter sees, are seen by another address or by some entries of each tensor.
    """
    state = tuple(_state(t) for t in module.state_dict(keep_vars=True).values())
    cached = _known.get(module)
    if cached is not None and cached[0] == state:
        return cached[1]
    digest = hashlib.blake2b(digest_size=8)
    config = {k: v for k, v in module.config.to_dict().items() if k not in _LOCAL}  # type: ignore[union-attr, operator]
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    weights = file_hash if cached is None and file_hash is not None else module_hash(module)
    digest.update(weights.encode())
    value = digest.hexdigest()
    _known[module] = (state, value)
    return value


def _state(tensor: Tensor) -> tuple[object, ...]:
    flat = tensor.detach().reshape(-1)
    some = flat[:: max(1, len(flat) // _SAMPLES)][:_SAMPLES]
    return tensor._version, tensor.data_ptr(), tuple(some.tolist())
