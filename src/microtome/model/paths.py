"""Where models are kept on disk, and the few file operations that must survive a crash."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from microtome.errors import ResourceError

Progress = Callable[[str], None]
"""Receives one plain sentence per step of something slow."""

_POLL_SECONDS = 0.1


def cache_dir() -> Path:
    """The folder in which Microtome keeps models (not created here).

    `MICROTOME_CACHE` if set, else `microtome` under `XDG_CACHE_HOME` (ignored unless absolute, as the XDG base
    directory specification asks), else `~/.cache/microtome`.
    """
    own = os.environ.get("MICROTOME_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "microtome"


def make_folder(folder: Path) -> Path:
    """Create a folder and its parents.

    Raises
    ------
    ResourceError: it cannot be created, for instance without permission.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"The folder {folder} cannot be created.",
            why=str(error),
            instead="set MICROTOME_CACHE to a folder that you can write to",
        ) from error
    return folder


def free_bytes(path: Path) -> int:
    """Free bytes for this user on the file system that holds `path`, which need not exist yet."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def require_space(path: Path, needed: int, purpose: str) -> None:
    """Check that `needed` bytes are free where `path` is, before anything is written.

    Raises
    ------
    ResourceError: there is less.
    """
    free = free_bytes(path)
    if free < needed:
        raise ResourceError(
            f"{purpose} needs {needed / 1e9:.2f} GB of free disk in {path}; there is {free / 1e9:.2f} GB.",
            why="a download or conversion that runs out of disk would only fail later",
            instead="free some space, or set MICROTOME_CACHE to a folder on a larger disk",
        )


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or what caused it, says that a disk or quota is full."""
    full = (errno.ENOSPC, errno.EDQUOT) if hasattr(errno, "EDQUOT") else (errno.ENOSPC,)
    return getattr(error, "errno", None) in full or "No space left" in str(error)


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def lock(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold an exclusive lock between processes; it ends with the process, however that ends.

    POSIX: `flock` on the file, which the kernel drops when the holder dies. Windows has no `flock`: there the first
    byte is locked with `msvcrt.locking`, which the system also drops at exit. The file itself stays: deleting it
    would let two processes lock two different files of one name.

    Parameters
    ----------
    path: the lock file, made if absent.
    waiting: called once if another process holds the lock.

    Raises
    ------
    ResourceError: the file system has no locks (some network file systems).
    """
    make_folder(path.parent)
    with _open_lock(path) as file:
        told = False
        while not _try_lock(file.fileno(), path):
            if waiting is not None and not told:
                waiting()
            told = True
            time.sleep(_POLL_SECONDS)  # polling rather than blocking, so that Ctrl-C works on every platform
        try:
            yield
        finally:
            _unlock(file.fileno())


def _open_lock(path: Path):  # type: ignore[no-untyped-def]  # noqa: ANN202
    try:
        return path.open("a+b")
    except OSError as error:
        raise ResourceError(
            f"The lock file {path} cannot be opened.",
            why=str(error),
            instead="set MICROTOME_CACHE to a folder that you can write to",
        ) from error


if sys.platform == "win32":  # pragma: no cover
    import msvcrt

    def _try_lock(descriptor: int, path: Path) -> bool:
        os.lseek(descriptor, 0, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(descriptor: int, path: Path) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise ResourceError(
                f"{path} cannot be locked.",
                why=f"{error}: without a lock two processes could prepare one model at the same time",
                instead="set MICROTOME_CACHE to a folder on a local disk",
            ) from error
        return True

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def fsync(path: Path) -> None:
    """Force a file's content, or a folder's list of names, to disk. Windows cannot open folders: skipped there."""
    if path.is_dir() and os.name == "nt":  # pragma: no cover
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace a file's content in one step: readers see the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    fsync(temporary)
    temporary.replace(path)
    fsync(path.parent)


def move_file(source: Path, target: Path) -> None:
    """Move a finished file into place in one step (same file system), durably."""
    fsync(source)
    source.replace(target)
    fsync(target.parent)


def publish(folder: Path, target: Path) -> None:
    """Move a finished folder into place, durably; a folder of that name is replaced.

    Everything is forced to disk first, so that after a power cut the name never points at half a folder. `folder`
    and `target` must be on one file system. The old folder leaves its name before the new one takes it: a process
    killed between the two leaves none, which the next run repairs.
    """
    for path in sorted(folder.rglob("*")):
        fsync(path)
    fsync(folder)
    if target.exists():
        old = folder.with_name(folder.name + ".old")
        target.rename(old)
        folder.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        folder.rename(target)
    fsync(target.parent)
