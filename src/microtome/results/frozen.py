"""Values that cannot change: JSON-able trees, arrays, and the text form in which NaN survives.

JSON has no NaN or infinity; writers that do not refuse them turn them into null, readers then into 0.
Here they are written as ``{"$float": "nan"}`` and come back as they were.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import ResultError

if TYPE_CHECKING:
    import numpy as np

_DEEPEST = 64
_SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class FrozenDict(dict[str, Any]):
    """A dict that refuses every change; ``json.dumps`` and ``dict(...)`` work as usual."""

    __slots__ = ()

    def _refuse(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise TypeError("this mapping belongs to a frozen value; change a copy: dict(mapping)")

    __setitem__ = _refuse
    __delitem__ = _refuse
    __ior__ = _refuse
    clear = _refuse
    pop = _refuse
    popitem = _refuse
    setdefault = _refuse
    update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenDict, (dict(self),)


def freeze_json(value: Any, where: str) -> Any:
    """The value as an immutable JSON tree: FrozenDict, tuple, str, int, float, bool or None.

    ``where`` names the value in the error. NumPy's scalars become Python's (exactly); lists become tuples.
    Raises ResultError for anything that JSON cannot hold: arrays, sets, functions, models, keys that are
    not text.
    """
    return _freeze(value, where, 0)


def _freeze(value: Any, where: str, depth: int) -> Any:
    if depth > _DEEPEST:
        raise ResultError(
            f"{where} is nested more than {_DEEPEST} deep",
            why="it contains itself, or is no parameter",
            instead="pass plain values: numbers, text, lists and mappings",
        )
    numpy = sys.modules.get("numpy")  # where it was never loaded, no value is one of its scalars
    if numpy is not None and isinstance(value, numpy.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # a plain str also from subclasses (enum members)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, (list, tuple)):
        return tuple(_freeze(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value))
    if isinstance(value, Mapping):
        return FrozenDict(
            (_key(key, where), _freeze(item, f"{where}[{key!r}]", depth + 1)) for key, item in value.items()
        )
    raise ResultError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which JSON cannot hold",
        why="a result holds no model, array or function among its parameters, so that it can be saved and asked again",
        instead="pass numbers, text, lists or mappings with text keys (arrays belong in tensors=)",
    )


def _key(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise ResultError(
            f"{where} has the key {key!r}, which is not text",
            why="JSON's keys are text, and a key that changes its type on the way back is another key",
            instead=f"use {str(key)!r}",
        )
    return str.__str__(key)


def thaw(value: Any) -> Any:
    """A mutable copy of a frozen tree: dicts and lists all the way down."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [thaw(item) for item in value]
    return value


def _encode(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"}
    if isinstance(value, Mapping):
        # a key of the user's own that starts with "$" is doubled, so that it never reads as ours
        return {("$" + k if k.startswith("$") else k): _encode(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"$float"} and value["$float"] in _SPECIAL:
            return _SPECIAL[value["$float"]]
        return FrozenDict((k[1:] if k.startswith("$") else k, _decode(v)) for k, v in value.items())
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    return value


def dumps(value: Any, *, indent: int | None = None) -> str:
    """Canonical ASCII JSON of a frozen tree (sorted keys); not-finite floats and lone surrogates survive."""
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(_encode(value), sort_keys=True, separators=separators, allow_nan=False, indent=indent)


def loads(text: str) -> Any:
    """The frozen tree that `dumps` wrote. Raises ValueError for text that is not such JSON."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"bare {constant} in JSON")

    return _decode(json.loads(text, parse_constant=refuse))


def digest(content: str | bytes, *, size: int = 16) -> str:
    """Hex BLAKE2b of text (as UTF-8) or bytes; ``size`` in bytes."""
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return hashlib.blake2b(data, digest_size=size).hexdigest()


def freeze_array(values: Any, where: str) -> np.ndarray:
    """A read-only copy of a NumPy array of numbers or booleans, in native byte order and C order.

    The copy rests on ``bytes``, so that ``setflags(write=True)`` cannot open it again. An array that is
    frozen already is returned as it is. Raises ResultError for other types and for object or text arrays.
    """
    import numpy as np

    if not isinstance(values, np.ndarray):
        raise ResultError(
            f"{where} is a {type(values).__module__}.{type(values).__qualname__}, not a NumPy array",
            why="a result must open on a machine without the framework that made it",
            instead="pass np.asarray(...), for a tensor t.detach().cpu().numpy()",
        )
    if values.dtype.kind not in "fiub":
        raise ResultError(
            f"{where} has the dtype {values.dtype}",
            why="results store real numbers and booleans; objects would need a pickle",
            instead="put text into a table (tables=) or into raw_examples=",
        )
    if values.dtype.itemsize > 8:
        raise ResultError(
            f"{where} has the dtype {values.dtype}",
            why="extended precision differs from machine to machine and has no place in a file",
            instead="pass it as float64",
        )
    if _is_frozen(values):
        return values
    native = values.astype(values.dtype.newbyteorder("="), order="C", copy=False)
    return np.frombuffer(native.tobytes(), dtype=native.dtype).reshape(values.shape)


def _is_frozen(values: np.ndarray) -> bool:
    import numpy as np

    base: Any = values
    while isinstance(
        base, np.ndarray
    ):  # a mere read-only flag can be lifted by the owner; bytes cannot change
        base = base.base
    return isinstance(base, bytes) and bool(values.flags.c_contiguous) and bool(values.dtype.isnative)
