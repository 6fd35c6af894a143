"""From the arguments of a call to its Query: what was asked, as data."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import ResultError
from .frozen import digest, freeze_json
from .query import Query
from .source import code_hash

_TASK = ("task", "pairs")
_DATA = ("data", "corpus", "prompts", "texts")


def content_hash(value: Any) -> str:
    """The value's own `.hash` when that is text, else ""."""
    found = getattr(value, "hash", None)
    return found if isinstance(found, str) else ""


def make_query(method: str, version: str, arguments: Mapping[str, Any]) -> Query:
    """The Query of a call, from its bound arguments (defaults filled in).

    - The first argument with a text `.hash` is the model (unless its name says task or data); `numerics` is
      taken from the model's mapping of that name.
    - An argument called task or pairs that has a hash is the task; data, corpus, prompts or texts the data.
    - `seed` is the seed. Every other argument is a parameter, written by `describe`.

    Raises ResultError, naming the parameter, for what cannot be described.
    """
    model, task, data, seed = "", "", "", None
    numerics: Mapping[str, Any] = {}
    parameters: dict[str, Any] = {}
    for name, value in arguments.items():
        mark = content_hash(value)
        if name == "seed":
            seed = int(value) if isinstance(value, np.integer) else value
        elif mark and name in _TASK and not task:
            task = mark
        elif mark and name in _DATA and not data:
            data = mark
        elif mark and not model and name not in _TASK + _DATA:
            model = mark
            numerics = getattr(value, "numerics", None) or {}
        elif value is None and name in _TASK + _DATA:
            continue
        else:
            parameters[name] = describe(value, f"{method}: parameter {name!r}")
    return Query(method, version, model, task, data, parameters, seed, numerics)


def describe(value: Any, where: str, *, depth: int = 0) -> Any:
    """A JSON-able description by which two values are the same or not.

    Plain values stand for themselves. Objects with a text `.hash` (a second model, a circuit) become
    {"hash": ...}; those with a method `__query__` what it returns (sites and edits use this). Arrays and
    tensors become their digest, shape and dtype; dataclasses their fields; functions their path, the hash of their code, and what
    they close over or are bound to. What cannot be had again from its description carries
    "rerunnable": false.

    Raises ResultError, naming `where`, for anything else. `depth` counts the recursion.
    """
    if depth > 32:
        freeze_json(object(), f"{where}, nested more than 32 deep,")
    if mark := content_hash(value):
        return {"hash": mark}
    if hasattr(type(value), "__query__"):
        return freeze_json(value.__query__(), where)
    if isinstance(value, np.ndarray):
        return _array(value, where)
    torch = sys.modules.get("torch")  # a tensor can only be here if torch is
    if torch is not None and isinstance(value, torch.Tensor):
        return _tensor(torch, value)
    if isinstance(value, Mapping):
        return {key: describe(item, f"{where}[{key!r}]", depth=depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(item, f"{where}[{i}]", depth=depth + 1) for i, item in enumerate(value)]
    if isinstance(value, range):
        return list(value)
    if isinstance(value, (set, frozenset)) and all(isinstance(item, str) for item in value):
        return sorted(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        kind = f"{type(value).__module__}:{type(value).__qualname__}"
        return {"dataclass": kind, "fields": describe(parts, where, depth=depth + 1)}
    if callable(value) and not isinstance(value, type):
        return _function(value, where, depth)
    return freeze_json(value, where)


def _array(value: np.ndarray, where: str) -> dict[str, Any]:
    if value.dtype.kind not in "fiub":
        freeze_json(value, where)  # refuses it, naming the parameter
    native = value.astype(value.dtype.newbyteorder("="), order="C", copy=False)
    return {
        "array": digest(native.tobytes()),
        "shape": list(value.shape),
        "dtype": value.dtype.name,
        "rerunnable": False,
    }


def _tensor(torch: Any, value: Any) -> dict[str, Any]:
    flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)  # bytes: NumPy has no bfloat16
    dtype = str(value.dtype).removeprefix("torch.")
    content = digest(flat.numpy().tobytes())
    return {"array": content, "shape": list(value.shape), "dtype": dtype, "rerunnable": False}


def _function(value: Any, where: str, depth: int) -> dict[str, Any]:
    if isinstance(value, functools.partial):
        bound = {"args": value.args, "keywords": value.keywords, "of": value.func}
        return {"partial": describe(bound, where, depth=depth + 1)}
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        raise ResultError(
            f"{where} is a callable without a name: {type(value).__qualname__}",
            why="a query says which function was used, and this one cannot be told from another",
            instead="give a function, or an object with __query__() that returns plain values",
        )
    made: dict[str, Any] = {"callable": f"{module}:{name}", "code": code_hash(value)}
    if _importable(module, name, value):
        return made
    # the same code with other captured values is another function: they belong to the description
    held = {"self": value.__self__} if hasattr(value, "__self__") else _captured(value)
    if held:
        made["holds"] = {
            k: describe(v, f"{where}, which holds {k!r}:", depth=depth + 1) for k, v in held.items()
        }
    return {**made, "rerunnable": False}


def _captured(function: Any) -> dict[str, Any]:
    held: dict[str, Any] = {
        f"default {i}": v for i, v in enumerate(getattr(function, "__defaults__", None) or ())
    }
    held |= {f"default {k}": v for k, v in (getattr(function, "__kwdefaults__", None) or {}).items()}
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=False):
        try:
            content = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
        if content is not function:
            held[name] = content
    return held


def _importable(module: str, name: str, value: Any) -> bool:
    if "<" in name or module == "__main__":
        return False
    found: Any = sys.modules.get(module) or importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is value
