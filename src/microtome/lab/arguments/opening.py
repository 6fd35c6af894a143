"""From JSON and files back to live values. A record is foreign text: it names no code but Microtome's own, and is checked."""

from __future__ import annotations

import importlib
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from microtome.errors import LabError

from .values import TAG, Files, bad, building, check_key, field, json_text, read_text
from .writing import content_hash, importable, init_names, is_own

if TYPE_CHECKING:
    from microtome.facade import Model
    from microtome.results.result import Result

__all__ = ["Opening"]

DEEPEST = 100
"""Levels of JSON; a value of `writing.DEEPEST` levels has at most twice as many."""
_FLAT = {int, float, str, bool, type(None)}
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_SCALARS = (
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
)


class Opening:
    """One record on its way back. load_model: from a recipe to the model (None: as `load_again`). result_of: from a query's id to its result."""

    def __init__(
        self,
        files: Files,
        load_model: Callable[[Mapping[str, Any]], Model] | None,
        result_of: Callable[[str], Result],
    ) -> None:
        from .models import Loader

        self.zoo = Loader()
        self.files, self.load_model, self.result_of = files, load_model or self.zoo, result_of
        self._models: dict[str, Any] = {}
        self._special: dict[str, Callable[[Mapping[str, Any], int], Any]] = {
            "tuple": lambda d, n: tuple(self._items(d, n)),
            "set": lambda d, n: set(self._items(d, n)),
            "frozenset": lambda d, n: frozenset(self._items(d, n)),
            "range": lambda d, n: range(*self._items(d, n)),
            "dict": self._dict,
            "float": lambda d, n: _FLOATS[field(d, "value", str)],
            "scalar": self._scalar,
            "bytes": lambda d, n: bytes.fromhex(field(d, "hex", str)),
            "path": lambda d, n: pathlib.Path(field(d, "text", str)),
            "file": lambda d, n: self.value(self.json(d.get("key")), n + 1),
            "made": self._made,
            "function": self._function,
            "lost": self._lost,
        }

    def get(self, key: Any) -> bytes:
        """The bytes of a file. Raises LabError for a bad key and a file that is not there."""
        name = check_key(key)
        try:
            found = self.files.get(name)
        except (KeyError, OSError) as error:
            raise LabError(
                f"the file {name} of the record is missing",
                why=f"{type(error).__name__}: {error}",
                instead="restore the folder of files from a copy",
            ) from error
        if not isinstance(found, bytes):
            raise bad(f"the file {name}", f"it is a {type(found).__name__}")
        return found

    def json(self, key: Any) -> Any:
        """The JSON of a file. Raises LabError."""
        return read_text(self.get(key), f"the file {key}")

    def value(self, data: Any, depth: int = 0) -> Any:
        """A value from its JSON.

        Raises
        ------
        LabError: whatever it does not say, or says wrongly.
        """
        if depth > DEEPEST:
            raise bad("a value", f"it is nested more than {DEEPEST} deep")
        if isinstance(data, list):
            flat = set(map(type, data)) <= _FLAT
            return list(data) if flat else [self.value(item, depth + 1) for item in data]
        if not isinstance(data, Mapping):
            if data is None or isinstance(data, bool | int | float | str):
                return data
            raise bad("a value", f"it is a {type(data).__name__}")
        tag = data.get(TAG)
        read = self._special.get(tag) if isinstance(tag, str) else None
        if read is not None:
            with building(f"a {tag!r}"):
                return read(data, depth)
        from .kinds import KINDS

        kind = next((k for k in KINDS if k.tag == tag), None)
        if kind is None:
            raise bad("a value", f"nothing is encoded as {tag!r} (is the record of a newer Microtome?)")
        with building(f"a {tag!r}"):
            return kind.read(self, data, depth)

    def model(self, recipe: Mapping[str, Any], told: str) -> Any:
        """The model of a recipe, once per record.

        Raises
        ------
        LabError: it cannot be loaded, or has another hash than was recorded.
        """
        key = json_text([recipe, told])
        if key not in self._models:
            with building(f"the model {recipe.get('name')!r}"):
                self._models[key] = self.load_model(recipe)
        found = self._models[key]
        if found.hash != told:
            raise LabError(
                f"the model {recipe.get('name')!r} is not the one that was recorded",
                why=f"its weights and config have the hash {found.hash}, the record says {told}",
                instead="give the weights that were used then, or call the technique anew: that is another question",
            )
        return found

    def _items(self, data: Mapping[str, Any], depth: int) -> list[Any]:
        found: list[Any] = self.value(field(data, "items", list), depth + 1)
        return found

    def _dict(self, data: Mapping[str, Any], depth: int) -> dict[Any, Any]:
        out = {}
        for pair in field(data, "items", list):
            if not isinstance(pair, list) or len(pair) != 2:
                raise bad("a 'dict'", "an item is no pair of key and value")
            out[self.value(pair[0], depth + 1)] = self.value(pair[1], depth + 1)
        return out

    def _scalar(self, data: Mapping[str, Any], depth: int) -> Any:
        import numpy as np

        name = field(data, "dtype", str)
        if name not in _SCALARS:
            raise bad("a number", f"its type is {name!r}")
        return np.dtype(name).type(self.value(data.get("value"), depth + 1))

    def _made(self, data: Mapping[str, Any], depth: int) -> Any:
        kind = _own(field(data, "class", str))
        parameters = getattr(kind, "__dataclass_params__", None)
        if not isinstance(kind, type) or parameters is None or not parameters.frozen:
            raise bad(f"a {data['class']}", "it is no class of values")
        fields = self.fields(data, depth)
        if extra := sorted(set(fields) - set(init_names(kind) or ())):
            raise bad(f"a {data['class']}", f"it has no {', '.join(extra)}")
        with building(f"a {kind.__name__}"):
            return checked(kind(**fields), data)

    def fields(self, data: Mapping[str, Any], depth: int) -> dict[str, Any]:
        """The fields of an encoded dataclass, from its file or from itself. Raises LabError."""
        found = self.json(data["file"]) if "file" in data else data.get("fields")
        if not isinstance(found, dict):
            raise bad(f"a {data.get('class', data.get(TAG))}", "its fields are no mapping")
        return {name: self.value(v, depth + 1) for name, v in found.items()}

    def _function(self, data: Mapping[str, Any], depth: int) -> Any:
        found = _own(field(data, "path", str))
        if isinstance(found, type) or not callable(found):
            raise bad(data["path"], "it is no function")
        return found

    def _lost(self, data: Mapping[str, Any], depth: int) -> Any:
        raise LabError(
            f"a {data.get('type')} of this call was not kept",
            why=str(data.get("why")),
            instead="call the technique with a value of your own: the record says what was asked, not how to ask it again",
        )


def checked(value: Any, data: Mapping[str, Any]) -> Any:
    """The value, refused when its content has another hash than was recorded. Raises LabError."""
    told = data.get("hash")
    if told is not None and content_hash(value) != told:
        raise LabError(
            f"a {type(value).__name__} is not the one that was recorded",
            why=f"its content has the hash {content_hash(value) or 'none'}, the record says {told}",
            instead="take the record from a copy; if Microtome hashes it otherwise now, call the technique anew",
        )
    return value


def _own(path: str) -> Any:
    """A public class or function of Microtome by "module:name"; nothing else is imported.

    Raises
    ------
    LabError: another package's, a private one, or one that is not there.
    """
    from .writing import PACKAGES

    module, _, name = path.partition(":")
    parts = module.split(".")
    allowed = len(parts) > 1 and parts[0] == "microtome" and parts[1] in PACKAGES
    if (
        not allowed
        or not name
        or not all(p.isidentifier() and not p.startswith("_") for p in [*parts, *name.split(".")])
    ):
        raise bad(repr(path), "a record may name public values and functions of Microtome only")
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise bad(path, f"this version of Microtome has no {module}") from error
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None or importable(found) != path or not is_own(found):
        raise bad(path, f"{module} defines no {name}")
    return found
