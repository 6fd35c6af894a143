"""Saving and opening: a folder of the pieces of `microtome.results.pieces`: JSON, Parquet, safetensors. Never a pickle.

A folder is written beside its place and renamed into it, so that a reader sees all of it or nothing.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ResourceError, ResultError
from . import pieces

if TYPE_CHECKING:
    from .result import Result

_HEAD = pieces.HEAD


def save(result: Result, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Save a result and its children into a folder that is new, empty, or (``overwrite``) an older result.

    All files are on the disk before the folder appears under its name; an interrupted save leaves the older
    result as it was (should the machine itself stop between the two renames of an overwrite, the older one
    is beside it as ``.NAME.<random>.old``). Returns the folder's absolute path.

    Raises ResultError when the result was not stamped by a technique, when something else is at the path,
    and when a table cannot be written; ResourceError when the disk is full.
    """
    place = Path(folder).expanduser().resolve()
    token = os.urandom(6).hex()
    fresh = place.with_name(f".{place.name}.{token}.new")
    try:
        with _disk_errors(place):
            _check_place(place, overwrite)
            place.parent.mkdir(parents=True, exist_ok=True)
            fresh.mkdir()
            _write(result, fresh)
            _put(fresh, place, place.with_name(f".{place.name}.{token}.old"))
            _sync(place.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # there only if something went wrong
    return place


def open_result(folder: str | Path) -> Result:
    """The result that `save` put into the folder, with its children.

    Every file is compared with the digest noted in result.json (and that with its own), and the verdict is computed again.
    Raises ResultError for a path that is missing, a file, or no result; for missing, changed or damaged
    files; and for a schema newer than this version of Microtome.
    """
    place = Path(folder).expanduser()
    if not place.exists():
        raise ResultError(f"no result at {place}", why="the folder does not exist", instead="check the path")
    if not place.is_dir():
        instead = (
            f"open_result({str(place.parent)!r})"
            if place.name == _HEAD
            else "give the folder that save() made"
        )
        raise ResultError(f"{place} is a file", why="a result is a folder", instead=instead)
    return pieces.read(_from(place), str(place))


def _check_place(place: Path, overwrite: bool) -> None:
    if not os.path.lexists(place):
        return
    if not place.is_dir():
        raise ResultError(
            f"{place} is a file", why="a result is saved as a folder", instead="choose another name"
        )
    content = {p.name for p in place.iterdir()}
    if not content:
        return
    foreign = _foreign_files(place)
    if _HEAD not in content or foreign is None:
        raise ResultError(
            f"{place} is not empty and is no result",
            why="saving would destroy what is in it",
            instead="choose a new folder",
        )
    if not overwrite:
        raise ResultError(
            f"{place} holds a result already",
            why="results are not replaced unasked",
            instead="overwrite=True, or a new name",
        )
    if foreign:
        raise ResultError(
            f"{place} holds files that are no part of its result: {', '.join(foreign[:5])}",
            why="overwriting would delete them",
            instead="move them, or choose a new folder",
        )


def _foreign_files(place: Path) -> list[str] | None:
    """Files that the result in `place` does not name; None when there is no readable result."""
    try:
        head = pieces.read_head(_from(place), str(place))
        own = {_HEAD, *pieces.names(head, "files")}
        for child in pieces.names(head, "children"):
            inner = _foreign_files(place / "children" / child)
            if inner is None:
                return None
            below = place / "children" / child
            own |= {f"children/{child}/{name}" for name in _all_files(below) if name not in inner}
    except ResultError:
        return None
    return sorted(_all_files(place) - own)


def _all_files(place: Path) -> set[str]:
    return {p.relative_to(place).as_posix() for p in place.rglob("*") if not p.is_dir()}


def _put(fresh: Path, place: Path, aside: Path) -> None:
    """Rename `fresh` to `place`; what was there is put aside first and back again if that fails."""
    if place.exists() and any(place.iterdir()):
        os.rename(place, aside)
        try:
            os.rename(fresh, place)
        except BaseException:
            os.rename(aside, place)
            raise
        shutil.rmtree(aside)
        return
    if place.exists():
        place.rmdir()
    os.rename(fresh, place)


def _write(result: Result, folder: Path) -> None:
    """Write a result into an existing empty folder; all of it is on the disk afterwards."""
    made: set[Path] = {folder}

    def put(name: str, content: bytes) -> str:
        path = folder / name
        for parent in reversed(path.relative_to(folder).parents):
            (folder / parent).mkdir(exist_ok=True)
            made.add(folder / parent)
        path.write_bytes(content)
        _sync(path)
        return pieces.piece_digest(content)

    pieces.write(result, put)
    for below in sorted(made, reverse=True):
        _sync(below)


def _from(place: Path) -> pieces.Get:
    return lambda name: (place / name).read_bytes()


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _disk_errors(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"no room to save {place}", why=str(error), instead="free some space; nothing was changed"
            ) from error
        raise ResultError(
            f"{place} cannot be written", why=str(error), instead="choose a folder that you may write to"
        ) from error
