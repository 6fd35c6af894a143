"""Writing into a notebook: whole pages or nothing, appended and never rewritten, never outside the folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from microtome.errors import LabError, ResourceError
from microtome.lab.notebook.entries import Entry, write
from microtome.lab.notebook.pages import KINDS, Page, decode, parse, render, slug
from microtome.model import paths
from microtome.results.frozen import digest

__all__ = ["LARGEST", "add", "append", "create", "inside", "path_of", "read", "replace"]

LARGEST = 5 * 1024 * 1024
"""Bytes of a page that is read as text; a longer one is listed without it."""


def inside(root: Path, path: str) -> Path:
    """The place of `path` within the notebook `root`.

    Raises
    ------
    LabError: an absolute path, one with "..", one that a symbolic link leads out of the notebook, a name with a control
    character.
    """
    parts = path.split("/")
    if any(
        part in ("", ".", "..") or "\\" in part or ":" in part or not part.isprintable() for part in parts
    ):
        raise LabError(f"{path!r} is no page of the notebook", why="a page has a plain path within its folder", instead="for example beliefs/l9h6.md")  # fmt: skip
    top = root.resolve()
    place = top.joinpath(*parts)
    if not place.resolve().is_relative_to(top):
        raise LabError(f"{path!r} leads out of the notebook", why="a symbolic link points elsewhere", instead="put the file itself into the folder")  # fmt: skip
    return place


def path_of(kind: str, title: str, date: str = "") -> str:
    """Where a page of a kind stands: KINDS' one page, or FOLDER/[DATE-]SLUG.md; a log is named by its date alone.

    Raises
    ------
    LabError: an unknown kind.
    """
    if kind not in KINDS:
        raise LabError(f"there is no kind of page called {kind!r}", why=f"kinds: {', '.join(KINDS)}", instead="use one of these; a page of your own is a note")  # fmt: skip
    place = KINDS[kind]
    if place.endswith(".md"):
        return place
    if kind == "log":
        return f"{place}/{slug(date)}.md"
    dated = kind in ("decision", "stage", "post-mortem") and date
    return f"{place}/{slug(date) + '-' if dated else ''}{slug(title)}.md"


def read(root: Path, path: str) -> Page:
    """The page at a path.

    Raises
    ------
    LabError: no such file, not a plain file, longer than `LARGEST`, not UTF-8, or a path out of the notebook.
    """
    return parse(_bytes(inside(root, path), path), path)


def _bytes(place: Path, path: str) -> bytes:
    try:
        status = place.stat()
        if not stat.S_ISREG(status.st_mode):
            raise LabError(f"{path} is no file", why="a page is a plain file", instead="remove what is there")
        if status.st_size > LARGEST:
            raise LabError(f"{path} has {status.st_size} bytes", why=f"pages are read up to {LARGEST}", instead="split it")  # fmt: skip
        return place.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: OSError) -> LabError:
    return LabError(f"{path} cannot be read", why=str(error.strerror or error), instead="check the path and its permissions")  # fmt: skip


def create(root: Path, page: Page) -> Page:
    """Write a new page; the page as it stands in the folder. Without a path it gets one by its kind and title, with a number
    behind it where that is taken.

    Raises
    ------
    LabError: the path is taken or leads out of the notebook, or the folder cannot be written. ResourceError: no room.
    """
    with _writing(root):
        path = page.path or _free(root, path_of(page.kind, page.title, page.date))
        place = inside(root, path)
        if os.path.lexists(place):
            raise LabError(f"{path} is there already", why="a page is never replaced", instead="add to it, or choose another title")  # fmt: skip
        data = render(page)
        _put(place, data, None)
    return parse(data, path)


def _free(root: Path, path: str) -> str:
    stem, n, tried = path.removesuffix(".md"), 1, path
    while os.path.lexists(inside(root, tried)):
        n += 1
        tried = f"{stem}-{n}.md"
    return tried


def append(root: Path, path: str, text: str, *, digest: str | None = None) -> Page:
    """Append text to a page that is there: every byte before it stays. The page as it stands now.

    digest: of the page that the caller read; if the file is another by now, nothing is written.
    Line ends are those that the file has.

    Raises
    ------
    LabError: no such page, not UTF-8, too long, changed meanwhile, or a path out of the notebook. ResourceError: no room.
    """
    with _writing(root):
        return _change(root, path, digest, lambda old: old + _joined(old, text, path))


def add(root: Path, page: Page, entry: Entry, *, digest: str | None = None) -> Page:
    """Append an entry to the page at `page.path` (or its kind's place); the page is made first if it is not there.

    Raises
    ------
    LabError, ResourceError: as `append`.
    """
    with _writing(root):
        path = page.path or path_of(page.kind, page.title, page.date)
        place = inside(root, path)
        if not os.path.lexists(place) and digest is None:
            data = render(page)
            data += _joined(data, write(entry), path)
            _put(place, data, None)
            return parse(data, path)
        return _change(root, path, digest, lambda old: old + _joined(old, write(entry), path))


def replace(root: Path, path: str, change: Callable[[bytes], bytes], *, digest: str | None = None) -> Page:
    """Put what `change` makes of a page's bytes in its place; for computed blocks only (`reviews`).

    Raises
    ------
    LabError, ResourceError: as `append`, and what `change` raises.
    """
    with _writing(root):
        return _change(root, path, digest, change)


def _joined(old: bytes, text: str, path: str) -> bytes:
    """What to write behind `old`: a blank line between, in the line ends of its last line."""
    before = decode(old, path)
    made = text if text.endswith("\n") else text + "\n"
    gap = (
        "" if not before or before.endswith(("\n\n", "\n\r\n")) else "\n" if before.endswith("\n") else "\n\n"
    )
    made = gap + made
    return (
        made.replace("\n", "\r\n") if before[: before.rfind("\n") + 1].endswith("\r\n") else made
    ).encode()


def _change(root: Path, path: str, expected: str | None, change: Callable[[bytes], bytes]) -> Page:
    place = inside(root, path)
    old = _bytes(place, path)
    if expected is not None and digest(old) != expected:
        raise _changed(path)
    if place.is_symlink():
        raise LabError(f"{path} is a symbolic link", why="writing would put a file in its place", instead="edit the file that it points to")  # fmt: skip
    new = change(old)
    decode(new, path)
    if len(new) > LARGEST:
        raise LabError(f"{path} would have {len(new)} bytes", why=f"pages are read up to {LARGEST}", instead="begin a new page")  # fmt: skip
    if new != old:
        _put(place, new, old)
    return parse(new, path)


def _changed(path: str) -> LabError:
    return LabError(f"{path} has changed since it was read", why="somebody saved it meanwhile; nothing was written",
                    instead="save it in your editor, read it again and repeat")  # fmt: skip


def _put(place: Path, data: bytes, old: bytes | None) -> None:
    """Write beside the place, sync, rename: a kill leaves the old page or the new one. `old`: what must still be there."""
    place.parent.mkdir(parents=True, exist_ok=True)
    for stale in place.parent.glob(f".{'?' * 12}.new"):  # of a writer that was killed: we hold the lock
        stale.unlink(missing_ok=True)
    fresh = place.with_name(f".{os.urandom(6).hex()}.new")
    try:
        with fresh.open("xb") as file:
            if old is not None:
                os.chmod(fresh, stat.S_IMODE(place.stat().st_mode))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if old is not None and place.read_bytes() != old:  # an editor knows nothing of our lock
            raise _changed(place.name)
        if old is None:
            _link(fresh, place)
        else:
            os.replace(fresh, place)
        paths.fsync(place.parent)
    finally:
        fresh.unlink(missing_ok=True)


def _link(fresh: Path, place: Path) -> None:
    """Give a new page its name, unless somebody took it meanwhile."""
    try:
        os.link(fresh, place)
    except FileExistsError:
        raise _changed(place.name) from None
    except OSError:  # a file system without hard links
        os.replace(fresh, place)


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    """One writer at a time among the tool's processes; errors of the disk said as ours."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not os.access(root, os.W_OK):
            raise LabError(f"{root} cannot be written", why="you lack the permission", instead="change it, or work in a project of your own")  # fmt: skip
        with paths.lock(root / ".lock"):
            yield
    except OSError as error:
        if paths.is_disk_full(error):
            raise ResourceError(f"no room to write in {root}", why=str(error), instead="free some space; nothing was changed") from error  # fmt: skip
        raise LabError(f"{root} cannot be written", why=str(error), instead="check the folder and its permissions") from error  # fmt: skip
