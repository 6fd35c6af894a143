"""What must not travel: paths of this machine and keys; and which files and results recorded arguments name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from microtome.errors import LabError

__all__ = ["check_text", "local_paths", "named"]

_KEYS = re.compile(rb"(?<![A-Za-z0-9])(sk-[A-Za-z0-9_-]{20,}|hf_[A-Za-z0-9]{20,}|ghp_[A-Za-z0-9]{30,}|AKIA[A-Z0-9]{16}|xox[bap]-[A-Za-z0-9-]{20,})|-----BEGIN [A-Z ]*PRIVATE KEY-----")  # fmt: skip
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
_LOCAL = re.compile(r"[/~\\]|[A-Za-z]:[\\/]|\.\.?[\\/]")
_KEY = re.compile(r"[0-9a-f]{32}(\.[a-z0-9]{1,12}){0,2}")
_DEEPEST = 100


def check_text(name: str, content: bytes, folders: Mapping[str, bytes]) -> None:
    """Raise LabError when a file would carry a path of this machine or what looks like a key. The key itself is not shown.

    folders: what a path is called -> its bytes (`Path.home()`, the project).
    """
    for what, path in folders.items():
        if path in content:
            raise LabError(
                f"{name} names {what} of this machine",
                why="an archive says nothing of where it was made, and the path means nothing elsewhere",
                instead="take it out of your words; where a run carries it, call the technique with a relative path or a name",
            )
    found = bool(_KEYS.search(content)) or any(secret in content for secret in _secrets())
    if found:
        raise LabError(
            f"{name} holds what looks like a key",
            why="whoever gets the archive could use it",
            instead="take it out of your words or of the run's arguments, and have a new key made",
        )


def folders_of(project: Path) -> dict[str, bytes]:
    """The folders of which no file may speak. Those near the root are left out: their names are in every text."""
    found = {}
    for what, path in (("the home folder", Path.home()), ("the project's folder", project.resolve())):
        if len(path.parts) > 2:
            found[what] = str(path).encode("utf-8", "surrogateescape")
    return found


def _secrets() -> Iterator[bytes]:
    """Values of environment variables that are called keys or tokens."""
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= 12:
            yield value.encode("utf-8", "surrogateescape")


def local_paths(value: Any, depth: int = 0) -> Iterator[str]:
    """What in recorded arguments is read from a path of the machine: models and corpora from folders, stores, paths.

    Raises LabError for arguments that are nested too deep.
    """
    if depth > _DEEPEST:
        raise LabError("recorded arguments are nested too deep", why=f"more than {_DEEPEST} levels", instead="take the record from a copy")  # fmt: skip
    if isinstance(value, list):
        for item in value:
            yield from local_paths(item, depth + 1)
        return
    if not isinstance(value, Mapping):
        return
    tag = value.get("$")
    if tag == "path":
        yield f"the path {Path(str(value.get('text'))).name}"
    elif tag == "store":
        yield "a store of activations, which is a folder of the machine"
    recipe = value.get("recipe") if tag in ("model", "zoo_source") else None
    if isinstance(recipe, Mapping) and recipe.get("kind") in ("folder", "gguf"):
        yield f"the model {Path(str(recipe.get('name'))).name}, which is a file or folder of the machine"
    if tag == "model" and isinstance(recipe, Mapping) and _LOCAL.match(str(recipe.get("name"))):
        yield f"the model {Path(str(recipe.get('name'))).name}, which is named by a path"
    asked = value.get("asked")
    source = asked.get("source") if isinstance(asked, Mapping) else None
    if isinstance(source, str) and (not source.startswith("hf:") or _LOCAL.match(source[3:])):
        yield f"the text {Path(source).name}, which is read from a file or folder of the machine"
    for item in value.values():
        yield from local_paths(item, depth + 1)


def named(value: Any, depth: int = 0) -> Iterator[tuple[str, str]]:
    """("file", key) and ("result", query) that arguments name, in their order."""
    if depth > _DEEPEST:
        return
    if isinstance(value, str):
        if _KEY.fullmatch(value):
            yield "file", value
    elif isinstance(value, list):
        for item in value:
            yield from named(item, depth + 1)
    elif isinstance(value, Mapping):
        if value.get("$") == "result" and "files" not in value and isinstance(value.get("query"), str):
            yield "result", value["query"]
        for item in value.values():
            yield from named(item, depth + 1)
