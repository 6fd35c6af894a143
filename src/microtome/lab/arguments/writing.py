"""From live values to JSON and files. Nothing here fails because of a value: what cannot be kept is said and marked."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from microtome.errors import MicrotomeError

from .values import TAG, Files, json_text, type_name

__all__ = ["Writing", "content_hash", "importable", "is_own"]

DEEPEST = 32
_FLAT = {int, str, bool, type(None)}
PACKAGES = (
    "circuits",
    "controls",
    "directions",
    "features",
    "graph",
    "methods",
    "metrics",
    "results",
    "sites",
    "tasks",
    "trace",
    "zoo",
)
"""The parts of Microtome whose classes and functions a record may name: those that hold values and measures."""


class Writing:
    """One set of arguments on its way into a record.

    model_of: a model's recipe as JSON-able data, or text that says why there is none. recorded: whether a query's result is kept.
    tokenizers: the models that are among the arguments, to find which of them a task was made for.
    """

    def __init__(
        self,
        files: Files,
        model_of: Callable[[Any], Mapping[str, Any] | str],
        recorded: Callable[[str], bool],
        models: list[Any],
    ) -> None:
        self.files, self.model_of, self.recorded, self.models = files, model_of, recorded, models
        self.keys: dict[str, None] = {}
        self.why: list[str] = []
        self._failed: MicrotomeError | None = None

    def put(self, content: bytes, suffix: str) -> str:
        """Keep bytes; their key."""
        try:
            key = self.files.put(content, suffix)
        except MicrotomeError as error:
            self._failed = error  # a full disk is no property of the value
            raise
        self.keys[key] = None
        return key

    def put_json(self, value: Any) -> str:
        """Keep an encoded value as a file; its key."""
        return self.put(json_text(value).encode("ascii"), ".json")

    def lost(self, value: Any, why: str) -> dict[str, Any]:
        """The mark of a value that cannot be had again."""
        self.why.append(f"{type_name(value)}: {why}")
        return {TAG: "lost", "type": type_name(value), "why": why}

    def value(self, value: Any, depth: int = 0) -> Any:
        """A value as JSON. Kinds: see `kinds`; else frozen dataclasses and functions of Microtome."""
        plain, found = _plain(value)
        if plain:
            return found
        if depth > DEEPEST:
            return self.lost(value, f"it is nested more than {DEEPEST} deep")
        if isinstance(value, list | tuple | set | frozenset | range | Mapping | bytes | pathlib.PurePath):
            return self._container(value, depth)
        from .kinds import kind_of

        kind = kind_of(value)
        if kind is not None:
            try:
                return kind.write(self, value, depth)
            except MicrotomeError as error:
                if error is self._failed:
                    raise
                return self.lost(value, error.what)
        if is_own(type(value)) and dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self.dataclass(value, depth)
        if callable(value) and not isinstance(value, type):
            return self._function(value)
        return self.lost(value, "values of this type have no written form")

    def dataclass(self, value: Any, depth: int, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
        """A frozen dataclass of Microtome by its class and fields; one with a hash of its content in a file of its own."""
        path = f"{type(value).__module__}:{type(value).__qualname__}"
        if not type(value).__dataclass_params__.frozen:
            return self.lost(value, "it may change after it was recorded")
        names = init_names(type(value))
        if names is None:
            return self.lost(value, "it is not made from its fields")
        fields = {n: self.value(getattr(value, n), depth + 1) for n in names if n not in leave_out}
        made = {TAG: "made", "class": path}
        if mark := content_hash(value):
            return {**made, "hash": mark, "file": self.put_json(fields)}
        return {**made, "fields": fields}

    def _container(self, value: Any, depth: int) -> Any:
        if type(value) is list:
            return self._items(value, depth)
        if type(value) is tuple:
            return {TAG: "tuple", "items": self._items(value, depth)}
        if isinstance(value, set | frozenset):
            items = sorted((self.value(v, depth + 1) for v in value), key=json_text)
            return {TAG: "frozenset" if isinstance(value, frozenset) else "set", "items": items}
        if isinstance(value, range):
            return {TAG: "range", "items": [value.start, value.stop, value.step]}
        if isinstance(value, bytes):
            return {TAG: "bytes", "hex": value.hex()}
        if isinstance(value, pathlib.PurePath):
            return {TAG: "path", "text": str(value)}
        if isinstance(value, Mapping):
            pairs = [[self.value(k, depth + 1), self.value(v, depth + 1)] for k, v in value.items()]
            return {TAG: "dict", "items": pairs}
        return self.lost(value, "a list or tuple of a type of its own")

    def _items(self, values: list[Any] | tuple[Any, ...], depth: int) -> list[Any]:
        if set(map(type, values)) <= _FLAT:  # rows of token ids: a corpus has millions of them
            return list(values)
        return [self.value(v, depth + 1) for v in values]

    def _function(self, value: Any) -> dict[str, Any]:
        path = importable(value)
        if path and is_own(value):
            return {TAG: "function", "path": path}
        if path:
            return self.lost(value, f"{path} is no function of Microtome, and a record runs no other code")
        name = getattr(value, "__qualname__", type(value).__qualname__)
        return self.lost(value, f"{name} cannot be imported by its name")


def _plain(value: Any) -> tuple[bool, Any]:
    """(whether it is a plain value, it as JSON)."""
    numpy = sys.modules.get("numpy")
    if (
        numpy is not None
        and isinstance(value, numpy.generic)
        and value.dtype.kind in "fiub"
        and value.dtype.itemsize <= 8
    ):
        return True, {TAG: "scalar", "dtype": value.dtype.name, "value": _plain(value.item())[1]}
    if value is None or isinstance(value, bool):
        return True, value
    if isinstance(value, str):
        return True, str.__str__(value)
    if isinstance(value, int):
        return True, int(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return True, float(value)
        return True, {TAG: "float", "value": "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"}
    return False, None


def content_hash(value: Any) -> str:
    """The value's own `.hash` when that is text, else "" (also of a value that cannot say it)."""
    try:
        found = getattr(value, "hash", None)
    except MicrotomeError:
        return ""
    return found if isinstance(found, str) else ""


def init_names(kind: type) -> tuple[str, ...] | None:
    """The fields of a dataclass from which it is made; None where its parameters are no fields."""
    import inspect

    fields = {f.name for f in dataclasses.fields(kind)}
    parameters = inspect.signature(kind).parameters.values()
    named = all(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name in fields for p in parameters)
    return tuple(p.name for p in parameters) if named else None


def importable(value: Any) -> str:
    """ "module:name" by which exactly this object is found again, else ""."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or "<" in name or module == "__main__":
        return ""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}:{name}" if found is value else ""


def is_own(value: Any) -> bool:
    """Whether a class or function is one of Microtome that a record may name: public, of PACKAGES."""
    root, _, rest = str(getattr(value, "__module__", "")).partition(".")
    names = f"{rest}.{getattr(value, '__qualname__', '_')}".split(".")
    return root == "microtome" and names[0] in PACKAGES and not any(n.startswith("_") for n in names)
