"""A damaged SQLite record recovered: what can be read goes into a new file, the damaged one is kept beside it.

Tables are read by ranges of row numbers that are halved around what cannot be read (as SQLite's own .recover does from pages;
see sqlite.org/recovery.html). Results whose rows are lost are found again in the folder of files.
"""  # fmt: skip

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, create_engine, event, insert
from sqlalchemy.exc import DBAPIError

from microtome.errors import LabError, ResourceError
from microtome.lab import database as databases
from microtome.lab import processes, rebuilding, schema
from microtome.lab.files import Files
from microtome.lab.study import recording

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, Table

    from microtome.lab.place import Place

__all__ = ["Recovered", "TableLeft", "recover"]

_BEYOND = 1_000  # row numbers that are looked at after the last that could be read
_MOST = 10**9  # a higher row number is noise
_SEQUENCE = "SELECT seq FROM sqlite_sequence WHERE name = '{}'"
_TRIES = 200_000  # reads of one table: a table that is all damage must end


@dataclass(frozen=True)
class TableLeft:
    """What is left of a table. kept: rows in the new file. lost: row numbers that could not be read, or not be kept; None
    where nobody can say, because the table itself could not be found.

    loose: rows that named a row which is gone; they were dropped, or kept without that name.
    """

    kept: int
    lost: int | None
    loose: int


@dataclass(frozen=True)
class Recovered:
    """What a recovery did. damaged: where the damaged file is now. tables: what is left of each, by name.

    rebuilt: numbers of runs made anew from files of results. unreadable: heads of results of which a file is missing or damaged.
    placeholders: studies, people and processes that runs named and that are gone; they stand in the new file by their name alone.
    relinked: files of results that were linked to their runs again.
    """  # fmt: skip

    damaged: Path | None
    tables: Mapping[str, TableLeft]
    rebuilt: tuple[int, ...]
    unreadable: tuple[str, ...]
    placeholders: int
    relinked: int


def recover(place: Place) -> Recovered:
    """Make a new database of what is left of a damaged one, or of the files alone where none is left. Nothing is deleted.

    Raises LabError: a PostgreSQL record (its own tools do that), one that is whole, is of another version, or is being
    written; ResourceError: no room.
    """
    database = databases.Database(place)
    if not database.sqlite:
        raise LabError(
            f"{place.shown} is a PostgreSQL database",
            why="its damage is for its own tools",
            instead="restore a dump; see pg_amcheck and pg_dump in its manual",
        )
    path, files = database.path, Files(place.files)
    try:
        _needed(path, files, place)
        damaged = _kept(path)
        fresh = path.with_name(f"{path.name}.recovering")
        for suffix in (
            "-journal",
            "",
        ):  # of an attempt that was killed: SQLite would roll its journal back into the new file
            fresh.with_name(fresh.name + suffix).unlink(missing_ok=True)
        engine = _engine(fresh)
        try:
            databases.make(engine)
            tables, holders = _salvage(damaged, engine) if damaged else ({}, 0)
            _same_record(engine, damaged, files)
            with engine.connect() as connection, connection.begin():
                relinked = rebuilding.links(connection, files)
                rebuilt, unreadable = rebuilding.from_files(connection, files)
        finally:
            engine.dispose()
        _put(fresh, path)
    except OSError as error:
        raise ResourceError(
            f"{place.shown} was not recovered; it is as it was",
            why=error.strerror or str(error),
            instead="make room, or mend the permissions",
        ) from error
    return Recovered(damaged, tables, rebuilt, unreadable, holders, relinked)


def _needed(path: Path, files: Files, place: Place) -> None:
    if recording(place):
        raise LabError(
            f"{path} is being written", why="this process records", instead="close the study first"
        )
    if not path.exists() or not path.stat().st_size:
        if next(files.stored(), None) is None:
            raise databases.nothing(place)
        return
    # read only: whoever closes a connection that writes would have SQLite write its log into the damaged file
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        said = [row[0] for row in connection.execute("PRAGMA integrity_check(1)")]
        loose = connection.execute("PRAGMA foreign_key_check").fetchall()
        found = [row[0] for row in connection.execute("SELECT version_num FROM alembic_version")]
        others = connection.execute("SELECT host, boot, pid, started FROM process").fetchall()
    except sqlite3.Error:
        return
    finally:
        connection.close()
    if found and found[0] != schema.REVISION:
        raise databases.other_version(place, found[0])
    if said == ["ok"] and not loose:
        raise LabError(f"{path} is not damaged", why="SQLite finds it whole", instead="microtome lab doctor")
    for known in others:
        if processes.gone(*known) is False and not processes.mine(*known):
            raise LabError(
                f"{path} may be written by process {known[2]}",
                why="it recorded here and runs",
                instead="end it first",
            )


def _kept(path: Path) -> Path | None:
    """A copy of the damaged file, with what SQLite keeps beside it, under a dated name."""
    if not path.exists():
        return None
    damaged = databases.beside(path, "damaged")
    for suffix in ("-wal", ""):
        source, target = path.with_name(path.name + suffix), damaged.with_name(damaged.name + suffix)
        if source.exists():
            shutil.copy2(source, target)
            _sync(target)
    _sync(path.parent)
    return damaged


def _put(fresh: Path, path: Path) -> None:
    """The new file in the old one's place. The old log goes first: SQLite would write it into the new file."""
    _sync(fresh)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    _sync(path.parent)
    os.replace(fresh, path)
    _sync(path.parent)


def _engine(path: Path) -> Engine:
    engine = create_engine(URL.create("sqlite", database=str(path)))

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys=OFF")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine


# ------------------------------------------------------------------------------------------- reading


def _salvage(damaged: Path, engine: Engine) -> tuple[dict[str, TableLeft], int]:
    left: dict[str, tuple[int, int | None]] = {}
    source = sqlite3.connect(f"{damaged.absolute().as_uri()}?mode=ro", uri=True)
    try:
        with engine.connect() as connection, connection.begin():
            connection.execute(schema.meta.delete())  # a new one's id; the old one's follows
            for table in schema.metadata.sorted_tables:
                last = _last(source, table)
                left[table.name] = (0, None) if last is None else _copy(source, connection, table, last)
                if last is not None and table.dialect_options["sqlite"]["autoincrement"]:
                    given = _number(source, _SEQUENCE.format(table.name)) or 0
                    _never_again(connection, table.name, max(last, given))
            holders = rebuilding.placeholders(connection)
            loose = rebuilding.loose(connection)
    finally:
        source.close()
    return {name: TableLeft(*counts, loose.get(name, 0)) for name, counts in left.items()}, holders


def _copy(source: sqlite3.Connection, connection: Connection, table: Table, last: int) -> tuple[int, int]:
    kept = lost = 0
    for row in _rows(source, table, last):
        if isinstance(row, int):
            lost += row
        elif _insert(connection, table, row):
            kept += 1
        else:
            lost += 1
    return kept, lost


def _never_again(connection: Connection, table: str, last: int) -> None:
    """Numbers of rows that are gone are not given to others."""
    at = connection.exec_driver_sql("SELECT max(seq) FROM sqlite_sequence WHERE name = ?", (table,)).scalar()
    connection.exec_driver_sql("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
    connection.exec_driver_sql("INSERT INTO sqlite_sequence VALUES (?, ?)", (table, max(last, at or 0)))


def _insert(connection: Connection, table: Table, row: dict[str, Any]) -> bool:
    try:
        connection.exec_driver_sql(
            f'INSERT INTO "{table.name}" ({", ".join(f"{chr(34)}{c}{chr(34)}" for c in row)}) VALUES ({", ".join("?" * len(row))})',
            tuple(row.values()),
        )
    except DBAPIError:  # a row that breaks the table's rules is not what was recorded
        return False
    return True


def _rows(source: sqlite3.Connection, table: Table, last: int) -> Iterator[dict[str, Any] | int]:
    """Every row that can be read, and how many row numbers cannot."""
    names = [column.name for column in table.columns]
    columns = ", ".join(f'"{name}"' for name in names)
    tries = [_TRIES]

    def read(low: int, high: int) -> Iterator[dict[str, Any] | int]:
        if tries[0] <= 0:
            yield high - low + 1
            return
        tries[0] -= 1
        try:
            query = f'SELECT rowid, {columns} FROM "{table.name}" WHERE rowid BETWEEN ? AND ? ORDER BY rowid'
            found = source.execute(query, (low, high)).fetchall()
        except sqlite3.Error:
            if low == high:
                yield 1
                return
            middle = (low + high) // 2
            yield from read(low, middle)
            yield from read(middle + 1, high)
            return
        for row in found:
            yield dict(zip(names, row[1:], strict=True))

    if last > 0:
        yield from read(1, last)


def _last(source: sqlite3.Connection, table: Table) -> int | None:
    """A row number that no row is above; None where the table cannot be read at all."""
    try:
        source.execute(f'SELECT 1 FROM "{table.name}" LIMIT 0').fetchall()
    except sqlite3.Error:
        return None
    queries = (f'SELECT max(rowid) FROM "{table.name}"', _SEQUENCE.format(table.name))
    for query in queries:
        found = _number(source, query)
        if found is not None:
            return found
    highest = 0
    try:
        for row in source.execute(f'SELECT rowid FROM "{table.name}"'):
            highest = max(highest, int(row[0]))
    except sqlite3.Error:
        return highest + _BEYOND
    return highest


def _number(source: sqlite3.Connection, query: str) -> int | None:
    """A number that a query gives, 0 where it gives none; None where it cannot be read, or is noise."""
    try:
        found = source.execute(query).fetchone()
    except sqlite3.Error:
        return None
    if found is None:
        return None
    value = found[0] or 0
    return value if type(value) is int and 0 <= value < _MOST else None


def _same_record(engine: Engine, damaged: Path | None, files: Files) -> None:
    """It stays the record that its files know."""
    with engine.connect() as connection, connection.begin():
        said = {row.key: row.value for row in connection.execute(schema.meta.select()).all()}
        known = files.records()
        if "id" not in said:
            said["id"] = known.pop() if len(known) == 1 else os.urandom(8).hex()
            connection.execute(insert(schema.meta), {"key": "id", "value": said["id"]})
        note = f"{time.time()!r} from {damaged.name if damaged else 'files alone'}"
        connection.execute(schema.meta.delete().where(schema.meta.c.key == "recovered"))
        connection.execute(insert(schema.meta), {"key": "recovered", "value": note})
    files.belong(said["id"])


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
