"""What arguments are kept in: a place for files, what encoding gives, and how bad records are refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from microtome.errors import LabError, MicrotomeError

__all__ = [
    "SCHEMA_VERSION",
    "TAG",
    "Encoded",
    "Files",
    "bad",
    "building",
    "json_text",
    "read_text",
    "type_name",
]

SCHEMA_VERSION = 1
TAG = "$"
"""The key that says which kind of value a JSON object stands for; every object of the encoding has it."""
_KEY = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*(\.[A-Za-z0-9]+)*")
_DEFECTS = (
    MicrotomeError,
    TypeError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
)


class Files(Protocol):
    """Bytes kept by their content."""

    def put(self, content: bytes, suffix: str) -> str:
        """Keep the bytes; a key made of letters, digits, "_", "-", "/" and a suffix. The same bytes have the same key."""

    def get(self, key: str) -> bytes:
        """The bytes of a key. Raises LabError, KeyError or OSError where there are none."""


@dataclass(frozen=True)
class Encoded:
    """The arguments of one call.

    arguments: JSON-able (text, finite numbers, booleans, None, lists, mappings with text keys), its schema version included.
    files: keys of the files that it names, in the order in which they were put.
    rerunnable: whether all of them can be had again; why_not: a sentence for each that cannot.
    """

    arguments: Mapping[str, Any]
    files: tuple[str, ...]
    rerunnable: bool
    why_not: tuple[str, ...]

    def text(self) -> str:
        """The arguments as ASCII JSON."""
        return json_text(self.arguments)


def json_text(value: Any) -> str:
    """Canonical ASCII JSON; lone surrogates survive as escapes."""
    return json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def read_text(text: str | bytes, what: str) -> Any:
    """JSON without NaN.

    Raises
    ------
    LabError: it is none.
    """

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"bare {constant}")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise bad(what, f"it is no JSON: {error}") from error


def bad(what: str, why: str) -> LabError:
    """The refusal of a record that does not say what it should."""
    return LabError(
        f"{what} cannot be read from the record",
        why=why,
        instead="take the record from a copy, or call the technique again with arguments of your own",
    )


@contextmanager
def building(what: str) -> Iterator[None]:
    """Whatever goes wrong while a recorded value is made again, as a LabError that names it."""
    try:
        yield
    except LabError:
        raise
    except MicrotomeError as error:
        raise LabError(
            f"{what} cannot be made again: {error.what}", why=error.why, instead=error.instead
        ) from error
    except _DEFECTS as error:
        raise bad(what, f"{type(error).__name__}: {error}") from error


def check_key(key: Any) -> str:
    """A file's key, refused where it could lead out of the folder of files.

    Raises
    ------
    LabError: it is no text, or has another form.
    """
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise bad(f"the file {key!r}", "keys are letters, digits, '_', '-' and '/' with a suffix")
    return key


def field(data: Mapping[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    """An entry of an encoded value.

    Raises
    ------
    LabError: it is missing, or of another type.
    """
    found = data.get(name)
    if not isinstance(found, kind) or (isinstance(found, bool) and bool not in _types(kind)):
        raise bad(f"a {data.get(TAG)!r}", f"its {name!r} is {_short(found)}")
    return found


def type_name(value: Any) -> str:
    """ "module.Class" of a value, for sentences; builtins by their name."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def paths_of(kind: type) -> list[str]:
    """ "module:Class" of a class and its bases: types are told by name, so that nothing heavy is imported to ask."""
    return [f"{c.__module__}:{c.__qualname__}" for c in kind.__mro__]


def _types(kind: type | tuple[type, ...]) -> tuple[type, ...]:
    return kind if isinstance(kind, tuple) else (kind,)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
