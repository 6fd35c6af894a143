"""From an older record to this version's tables, with Alembic: a copy first, then all steps in one transaction.

A new revision: `versions/NNNN_what.py` (script.py.mako is its template), `schema.REVISION`, the tables in schema.py, and a stored
database of the revision before in tests/data. A migration that rebuilds a table of SQLite's uses `op.batch_alter_table`.
"""  # fmt: skip

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microtome.errors import LabError, ResourceError
from microtome.lab import database as databases
from microtome.lab import processes, schema

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection, Engine

    from microtome.lab.place import Place

__all__ = ["Upgraded", "run", "upgrade"]


@dataclass(frozen=True)
class Upgraded:
    """What an upgrade did. before, after: revisions, the same where there was nothing to do.

    copy: of the SQLite file as it was, None without one.
    """

    before: str
    after: str
    copy: Path | None


def upgrade(place: Place) -> Upgraded:
    """Bring a record to this version's tables. A SQLite file is copied first; a dump of PostgreSQL is the user's to make.

    Raises LabError: no record, one of a newer version, one that others record in now, or a step that fails (the record is
    as it was then); ResourceError: no room for the copy.
    """
    database = databases.Database(place)
    if not database.exists():
        raise databases.nothing(place)
    engine = database.raw("upgrade")
    try:
        with database.told(), engine.connect() as connection:
            before = databases.revision(connection)
            if before is not None:
                _alone(connection)
        if before is None:
            raise databases.nothing(place)
        if before == schema.REVISION:
            return Upgraded(before, before, None)
        if before not in databases.revisions():
            raise databases.other_version(place, before)
        copy = _copy(database.path, before) if database.sqlite else None
        with database.told():
            _steps(place, engine, copy)
        return Upgraded(before, schema.REVISION, copy)
    finally:
        engine.dispose()
        database.close()


def run(connection: Connection, to: str) -> None:
    """Run the steps to a revision in the transaction that a connection is in."""
    from alembic import command

    command.upgrade(_config(connection), to)


def _steps(place: Place, engine: Engine, copy: Path | None) -> None:
    from alembic.util import CommandError
    from sqlalchemy import text
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with engine.connect() as connection, connection.begin():
            run(connection, schema.REVISION)
            if connection.dialect.name == "sqlite":
                loose = connection.execute(text("PRAGMA foreign_key_check")).all()
                if loose:
                    raise CommandError(f"{len(loose)} rows would name rows that are not there")
    except (CommandError, SQLAlchemyError) as error:
        raise LabError(
            f"the record {place.shown} could not be upgraded; it is as it was",
            why=str(error).splitlines()[0],
            instead="report this with the message" + (f"; a copy is in {copy}" if copy else ""),
        ) from error


def _config(connection: Connection) -> Config:
    from alembic.config import Config

    config = Config()
    config.attributes["connection"] = connection
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.set_main_option(
        "version_locations", os.pathsep.join(map(str, databases.VERSIONS)).replace("%", "%%")
    )
    return config


def _alone(connection: Connection) -> None:
    """Nobody of the older version writes while the tables change."""
    from sqlalchemy import text

    query = "SELECT host, boot, pid, started FROM process"
    for host, boot, pid, started in connection.execute(text(query)).all():
        known = (host, boot, pid, started)
        if processes.gone(*known) is False and not processes.mine(*known):
            raise LabError(
                f"process {pid} may record here",
                why="its version of Microtome does not know the new tables",
                instead="end it first",
            )


def _copy(path: Path, before: str) -> Path:
    target = databases.beside(path, before)
    try:
        source, copy = sqlite3.connect(path), sqlite3.connect(target)
        try:
            source.backup(copy)
        finally:
            source.close()
            copy.close()
        _sync(target)
        _sync(target.parent)
    except (OSError, sqlite3.Error) as error:
        target.unlink(missing_ok=True)
        raise ResourceError(
            f"no copy of {path} could be made, so it was not upgraded",
            why=str(error),
            instead=f"make room for {path.stat().st_size / 1e6:.0f} MB beside it",
        ) from error
    return target


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return
    handle: Any = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
