"""The pages of a notebook, as the record indexes them."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path, PurePosixPath

from microtome.errors import LabError
from microtome.lab.notebook import front
from microtome.lab.notebook.folder import LARGEST
from microtome.lab.notebook.pages import Page, parse

__all__ = ["index"]


def index(folder: Path) -> tuple[Page, ...]:
    """Every page (``*.md``) below a folder, sorted by path. One bad file hides no other: it is listed with its problems.

    Hidden files and folders are left out. Symbolic links that lead out of the folder are not followed, folders behind a
    link never; a file longer than `LARGEST` is listed without its text. A folder that is not there has no pages.

    Raises
    ------
    LabError: `folder` is a file, or cannot be listed.
    """
    top = folder.resolve()
    if top.exists() and not top.is_dir():
        raise LabError(f"{folder} is a file", why="a notebook is a folder", instead="give the folder")
    found: list[Page] = []
    if not top.exists():
        return ()
    for here, names, files in os.walk(top, onerror=_refuse):
        below = Path(here)
        for name in [n for n in names if (below / n).is_symlink()]:
            found += [] if name.startswith(".") else [_bare(top, below / name, "a link to a folder; links are not followed")]  # fmt: skip
        names[:] = [n for n in names if not n.startswith(".")]  # walk itself follows no links
        found += [_page(top, below / n) for n in files if n.lower().endswith(".md") and not n.startswith(".")]
    return tuple(sorted(found, key=lambda page: page.path))


def _refuse(error: OSError) -> None:
    raise LabError(f"{error.filename} cannot be listed", why=str(error.strerror or error), instead="check its permissions") from error  # fmt: skip


def _page(top: Path, place: Path) -> Page:
    if not place.resolve().is_relative_to(top):
        return _bare(top, place, "a symbolic link that leads out of the notebook; it is not read")
    try:
        status = place.stat()
        if not stat.S_ISREG(status.st_mode):
            return _bare(top, place, "no plain file; it is not read")
        if status.st_size > LARGEST:
            with place.open("rb") as file:
                sum_ = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
            return _bare(top, place, f"{status.st_size} bytes; pages are read up to {LARGEST}, so it is listed without text", sum_)  # fmt: skip
        return parse(place.read_bytes(), _relative(top, place))
    except LabError as error:
        return _bare(top, place, f"{error.what}: {error.why}")
    except OSError as error:
        return _bare(top, place, f"it cannot be read: {error.strerror or error}")


def _bare(top: Path, place: Path, problem: str, digest: str = "") -> Page:
    """A page of which only the place is known."""
    path = _relative(top, place)
    named = parse(b"", path)
    return Page(
        named.kind, named.title, named.date, path=path, digest=digest, problems=(front.shown(problem),)
    )


def _relative(top: Path, place: Path) -> str:
    """The path as text; bytes of a name that are no UTF-8 are shown as escapes."""
    path = PurePosixPath(place.relative_to(top).as_posix())
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")
