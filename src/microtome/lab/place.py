"""Where a project's record is: a folder with `.microtome/` in it, found as git finds its own, by walking up."""

from __future__ import annotations

import getpass
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microtome.errors import LabError

__all__ = ["HOME", "URL", "Place", "find", "here", "init", "person"]

HOME = ".microtome"
URL, PERSON, CEILING = "MICROTOME_LAB_URL", "MICROTOME_PERSON", "MICROTOME_CEILING"
_SETTINGS = "lab.toml"
_KNOWN = {"name", "url", "person", "files"}
_IGNORE = "# the record: large, and of this machine; pages in notebook/ are what is worth versioning\n*\n"


@dataclass(frozen=True)
class Place:
    """A project's folder and where its record is.

    folder: the project. url: of the database; "" for the SQLite file. name: for titles.
    files: the folder of content-addressed files. who: the person that the settings name, "" for none.
    """

    folder: Path
    url: str = ""
    name: str = ""
    files: Path = Path()
    who: str = ""

    @property
    def home(self) -> Path:
        """`.microtome` of the project."""
        return self.folder / HOME

    @property
    def database(self) -> Path:
        """The SQLite file, whether or not it is the one in use."""
        return self.home / "lab.db"

    @property
    def notebook(self) -> Path:
        """The folder of pages that a person reads and edits."""
        return self.folder / "notebook"

    @property
    def shown(self) -> str:
        """The database as it may be shown: a URL without its password."""
        return hidden(self.url) if self.url else str(self.database)


def find(start: str | Path | None = None) -> Place | None:
    """The project that `start` (default: the current folder) is in, None for none.

    `MICROTOME_CEILING` names folders (as PATH does) that are not looked into, nor what is above them.

    Raises LabError for settings that cannot be read.
    """
    at = Path(start or Path.cwd()).expanduser().absolute()
    ceiling = {Path(one) for one in os.environ.get(CEILING, "").split(os.pathsep) if one}
    for folder in (at, *at.parents):
        if folder in ceiling:
            return None
        if (folder / HOME / _SETTINGS).is_file():
            return _read(folder)
    return None


def here(start: str | Path | None = None) -> Place:
    """The project that `start` is in. Raises LabError where there is none."""
    found = find(start)
    if found is None:
        at = Path(start or Path.cwd()).expanduser().absolute()
        raise LabError(
            f"no project in {at} or above it",
            why=f"none of these folders has {HOME}/{_SETTINGS}",
            instead="microtome lab init, in the folder of your project",
        )
    return found


def init(folder: str | Path | None = None, *, url: str = "", name: str = "") -> Place:
    """Make a folder a project; one that is a project already stays as it is. The database is made on first use.

    url: of a PostgreSQL database (SQLAlchemy's form); "" for a SQLite file in the project.

    Raises LabError: the folder cannot be written to, a URL with a password (it would lie in a file; give it in the
    environment or in ~/.pgpass), or a project there with another database.
    """
    place = Path(folder or Path.cwd()).expanduser().absolute()
    settings = place / HOME / _SETTINGS
    if settings.is_file():
        found = _read(place)
        if url and url != found.url:
            raise LabError(
                f"{place} is a project already",
                why=f"its record is {found.shown}",
                instead=f"change url in {settings}, or choose another folder",
            )
        return found
    if url:
        _check_url(url, settings)
    lines = [f"name = {_quoted(name or place.name)}", *([f"url = {_quoted(url)}"] if url else [])]
    try:
        settings.parent.mkdir(parents=True, exist_ok=True)
        (settings.parent / ".gitignore").write_text(_IGNORE, encoding="utf-8")
        fresh = settings.with_suffix(f".{os.getpid()}.new")
        fresh.write_text("\n".join(lines) + "\n", encoding="utf-8")
        os.replace(fresh, settings)
    except OSError as error:
        raise LabError(
            f"{place} cannot become a project",
            why=error.strerror or str(error),
            instead="choose a folder that you may write to",
        ) from error
    return _read(place)


def person(place: Place) -> str:
    """Who is at work: `MICROTOME_PERSON`, else the project's setting, else the name of the account."""
    named = os.environ.get(PERSON, "").strip() or place.who
    if named:
        return named
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in some containers
        return f"user {os.getuid()}" if hasattr(os, "getuid") else "unknown"


def hidden(url: str) -> str:
    """A URL without its password."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", url)


def _read(folder: Path) -> Place:
    path = folder / HOME / _SETTINGS
    try:
        settings: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise LabError(f"{path} cannot be read", why=str(error), instead="mend it; it is TOML") from error
    for key, value in settings.items():
        if key not in _KNOWN or not isinstance(value, str):
            raise LabError(
                f"{path}: {key} = {value!r}",
                why=f"known are {', '.join(sorted(_KNOWN))}, all of them text",
                instead="mend it",
            )
    url = os.environ.get(URL, "").strip()
    if not url and settings.get("url"):
        url = settings["url"]
        _check_url(url, path)
    files = Path(settings["files"]).expanduser() if settings.get("files") else folder / HOME / "files"
    return Place(
        folder, url, settings.get("name", folder.name), folder / files, settings.get("person", "").strip()
    )


def _check_url(url: str, where: Path) -> None:
    if not re.match(r"(postgresql(\+psycopg)?|sqlite)://", url):
        raise LabError(
            f"{hidden(url)} is no database that a record can be in",
            why="PostgreSQL and SQLite are tested",
            instead="postgresql+psycopg://USER@HOST/NAME, or no URL",
        )
    if hidden(url) != url:
        raise LabError(
            "the database's URL carries a password",
            why=f"it would be kept in {where}, in the open",
            instead=f"leave it out there; give it in ~/.pgpass, PGPASSWORD, or the whole URL in {URL}",
        )


def _quoted(text: str) -> str:
    import json

    return json.dumps(text)  # a TOML basic string
