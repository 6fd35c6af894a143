"""Files by their content: written once, whole or not at all, and never changed.

    files/ab/abcdef….parquet      the bytes whose BLAKE2b (128 bits) begins with ab

A key is the digest with a suffix for people's eyes. A file is on the disk before its key is given out, so that a row
of the database never names what a crash could lose.
"""  # fmt: skip

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from microtome.errors import LabError, ResourceError

__all__ = ["GRACE", "Files", "Swept"]

GRACE = 3600.0
"""Seconds for which an unused file is kept: longer than any writer takes from its file to its row."""
_KEY = re.compile(r"[0-9a-f]{32}(\.[a-z0-9]{1,12}){0,2}")


@dataclass(frozen=True)
class Swept:
    """What a collection removed, or would: files, their bytes, and leftovers of writers that were killed."""

    files: int
    bytes: int
    leftovers: int


class Files:
    """The content-addressed files of a record."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, content: bytes, suffix: str = "", *, sync: bool = True) -> str:
        """Store bytes; their key. Bytes that are there already are not written again; a damaged file is.

        sync: whether the file's name is on the disk too; with False `sync` must come before a row that names it. Of several
        files that is faster: a disk writes their names at once.

        Raises ResourceError when the disk is full, LabError when the place cannot be written to.
        """
        key = _digest(content) + suffix
        path = self.path(key)
        try:
            with _guarded(self.root, sweeping=False):
                there = _same(path, content)
                if there:
                    os.utime(path)  # young again: a collection that runs now must not take it
            if not there:
                self._new(path, content)
        except OSError as error:
            raise _unwritten(self.root, error) from error
        if sync:  # also of a file that was there: its writer may have been killed before it came to this
            self.sync((key,))
        return key

    def sync(self, keys: Iterable[str]) -> None:
        """Have the names of files on the disk. Raises what `put` raises."""
        folders = {self.path(key).parent for key in keys}
        try:
            for folder in sorted(folders):
                _sync(folder)
        except OSError as error:
            raise _unwritten(self.root, error) from error

    def _new(self, path: Path, content: bytes) -> None:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            _sync(self.root)
        fresh = path.with_name(f".{path.name}.{os.urandom(4).hex()}.new")
        try:
            _write(fresh, content)
            os.replace(fresh, path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise

    def get(self, key: str) -> bytes:
        """The bytes of a key, compared with it. Raises LabError when they are missing or damaged."""
        path = self.path(key)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise LabError(
                f"the file {key} is not in the record",
                why=error.strerror or str(error),
                instead="microtome lab doctor says what else is missing; take the file from a copy",
            ) from error
        if _digest(content) != key[:32]:
            raise LabError(
                f"the file {key} is damaged",
                why="its content is not what was recorded",
                instead="microtome lab doctor; take it from a copy, or run it again",
            )
        return content

    def path(self, key: str) -> Path:
        """Where a key's file is. Raises LabError for what is no key: keys from elsewhere never lead out of the folder."""
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise LabError(
                f"{key!r} is no key of a file",
                why="a key is 32 hexadecimal digits and a suffix",
                instead="take it from the record",
            )
        return self.root / key[:2] / key

    def has(self, key: str) -> bool:
        """Whether the file is there (not whether it is whole)."""
        return self.path(key).is_file()

    def stored(self) -> Iterator[tuple[str, os.stat_result]]:
        """Every stored key with what the file system says of it."""
        for path in sorted(self.root.glob("??/*")):
            if _KEY.fullmatch(path.name):
                yield path.name, path.stat()

    @property
    def register(self) -> Path:
        """The file that names the records which use this folder."""
        return self.root / ".records"

    def records(self) -> set[str]:
        """Ids of the records that use this folder: two projects may share one, by their settings."""
        try:
            return set(self.register.read_text(encoding="utf-8").split())
        except FileNotFoundError:
            return set()

    def belong(self, record: str) -> None:
        """Note that a record uses this folder. Raises what `put` raises."""
        try:
            if record not in self.records():
                self.root.mkdir(parents=True, exist_ok=True)
                handle = os.open(self.register, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
                try:
                    os.write(handle, f"{record}\n".encode())
                finally:
                    os.close(handle)
        except OSError as error:
            raise _unwritten(self.root, error) from error

    def sweep(self, used: Collection[str], *, grace: float = GRACE, remove: bool = True) -> Swept:
        """Remove what nothing uses and is older than `grace` seconds, leftovers of killed writers too."""
        before = time.time() - grace
        files = size = leftovers = 0
        for key, _ in self.stored():
            if key not in used and (gone := self._drop(self.path(key), before, remove)) is not None:
                files, size = files + 1, size + gone
        for path in self.root.glob("??/.*.new"):
            leftovers += self._drop(path, before, remove) is not None
        return Swept(files, size, leftovers)

    def _drop(self, path: Path, before: float, remove: bool) -> int | None:
        """Remove a file unless it is young; its size, None where it stays."""
        with _guarded(self.root, sweeping=True):
            try:
                stat = path.stat()
            except FileNotFoundError:
                return None
            if stat.st_mtime > before:
                return None
            if remove:
                path.unlink(missing_ok=True)
            return stat.st_size


@contextmanager
def _guarded(root: Path, *, sweeping: bool) -> Iterator[None]:
    """A collection never looks at a file's age while a writer makes it young. The lock ends with its process."""
    if os.name == "nt" or not root.is_dir():
        yield
        return
    import fcntl

    handle = os.open(root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if sweeping else fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def _digest(content: bytes) -> str:
    from microtome.results.pieces import piece_digest  # numpy comes with it, which a listing does not need

    return piece_digest(content)


def _same(path: Path, content: bytes) -> bool:
    try:
        return path.stat().st_size == len(content) and path.read_bytes() == content
    except FileNotFoundError:
        return False


def _write(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(handle, view) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync(folder: Path) -> None:
    if os.name == "nt":
        return  # Windows opens no folders
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritten(root: Path, error: OSError) -> LabError | ResourceError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceError(
            f"no room to record in {root}",
            why=str(error),
            instead="free some space; what was recorded before is untouched",
        )
    return LabError(
        f"{root} cannot be written to",
        why=error.strerror or str(error),
        instead="mend its permissions, or set files in .microtome/lab.toml",
    )
