"""Arrays and tensors as safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from microtome.errors import LabError

from .opening import Opening
from .values import TAG, bad, field
from .writing import Writing

_NAME = "value"
_SUFFIX = ".safetensors"


def write_array(writing: Writing, value: Any, depth: int) -> Any:
    """A NumPy array of numbers or booleans."""
    import numpy as np
    from safetensors.numpy import save

    if value.dtype.kind not in "fiub" or value.dtype.itemsize > 8:
        return writing.lost(value, f"arrays of {value.dtype} have no file format here")
    native = np.array(value, dtype=value.dtype.newbyteorder("="), order="C", subok=False)
    # how an array lies in memory can change the last bit of a product
    flipped = bool(value.ndim > 1 and value.flags.f_contiguous and not value.flags.c_contiguous)
    key = writing.put(save({_NAME: native}), _SUFFIX)
    return {
        TAG: "array",
        "file": key,
        "shape": list(native.shape),
        "dtype": native.dtype.name,
        "columns_first": flipped,
    }


def read_array(opening: Opening, data: Mapping[str, Any], depth: int) -> Any:
    """The array. Raises LabError for a damaged file, another shape or type than the record says."""
    import numpy as np
    from safetensors.numpy import load

    found = np.array(_load(load, opening, data))
    if list(found.shape) != field(data, "shape", list) or found.dtype.name != field(data, "dtype", str):
        raise _other(data, list(found.shape), found.dtype.name)
    return np.asfortranarray(found) if data.get("columns_first") is True else found


def write_tensor(writing: Writing, value: Any, depth: int) -> Any:
    """A dense tensor; gradients are not kept."""
    import torch
    from safetensors.torch import save

    if value.layout is not torch.strided or value.is_complex() or value.is_quantized or value.is_meta:
        return writing.lost(value, f"a {value.layout} tensor of {value.dtype} has no file format here")
    plain = value.detach().to("cpu").contiguous().clone()
    key = writing.put(save({_NAME: plain}), _SUFFIX)
    dtype = str(value.dtype).removeprefix("torch.")
    return {
        TAG: "tensor",
        "file": key,
        "shape": list(value.shape),
        "dtype": dtype,
        "device": str(value.device),
    }


def read_tensor(opening: Opening, data: Mapping[str, Any], depth: int) -> Any:
    """The tensor, on the device where it was. Raises LabError for a damaged file, another shape or type, a device that is not here."""
    from safetensors.torch import load

    found = _load(load, opening, data)
    dtype = str(found.dtype).removeprefix("torch.")
    if list(found.shape) != field(data, "shape", list) or dtype != field(data, "dtype", str):
        raise _other(data, list(found.shape), dtype)
    device = field(data, "device", str)
    try:
        return found.to(device)
    except (RuntimeError, AssertionError) as error:
        raise LabError(
            f"a tensor was on {device}",
            why=str(error).splitlines()[0],
            instead="run it again on such a machine",
        ) from error


def _load(load: Any, opening: Opening, data: Mapping[str, Any]) -> Any:
    from safetensors import SafetensorError

    key = data.get("file")
    try:
        found = load(opening.get(key))
    except SafetensorError as error:
        raise bad(f"the file {key}", f"it is no safetensors file: {error}") from error
    if set(found) != {_NAME}:
        raise bad(f"the file {key}", f"it holds {', '.join(sorted(found)) or 'nothing'}")
    return found[_NAME]


def _other(data: Mapping[str, Any], shape: list[int], dtype: str) -> LabError:
    return bad(
        f"the file {data['file']}",
        f"it holds {dtype} {shape}, the record says {data['dtype']} {data['shape']}",
    )
