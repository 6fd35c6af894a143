"""Whether a file or folder that data came from is what it was: cheap when nothing was touched, exact when something was."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["changed", "stamp"]

LARGE = 64_000_000
"""Bytes above which a file is known by its size and time alone."""


def stamp(given: object) -> dict[str, Any] | None:
    """What is kept of a path that a recipe names: absolute path, size, time of the last change, digest. None for no path.

    A folder is known by the names, sizes and times of its files.
    """
    if not isinstance(given, str) or not given or len(given) > 1000 or "\n" in given:
        return None
    path = Path(given).expanduser().absolute()
    try:
        if path.is_file():
            stat = path.stat()
            digest = _digest(path) if stat.st_size <= LARGE else ""
            return {"path": str(path), "size": stat.st_size, "time": stat.st_mtime_ns, "digest": digest}
        if path.is_dir() and path != Path.cwd():
            return {"path": str(path), "size": -1, "time": 0, "digest": _folder(path)}
    except OSError:
        return None
    return None


def changed(kept: Mapping[str, Any]) -> str:
    """What happened to a stamped path, in a few words; "" for nothing."""
    path = Path(str(kept["path"]))
    try:
        if kept["size"] < 0:
            return (
                "" if path.is_dir() and _folder(path) == kept["digest"] else f"{path} has changed, or is gone"
            )
        stat = path.stat()
        if (stat.st_size, stat.st_mtime_ns) == (kept["size"], kept["time"]):
            return ""
        if stat.st_size == kept["size"] and kept["digest"] and _digest(path) == kept["digest"]:
            return ""
    except OSError:
        return f"{path} is gone"
    return f"{path} has changed"


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _folder(path: Path) -> str:
    found = hashlib.blake2b(digest_size=16)
    for inner in sorted(p for p in path.rglob("*") if p.is_file()):
        stat = inner.stat()
        line = f"{inner.relative_to(path).as_posix()} {stat.st_size} {stat.st_mtime_ns}\n"
        found.update(line.encode("utf-8", "surrogateescape"))
    return found.hexdigest()
