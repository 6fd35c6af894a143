"""SQL that only reads, for users: one statement, a limit of rows and of time, and nothing that it could change."""

from __future__ import annotations

import re
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microtome.errors import LabError
from microtome.lab.database import Database

if TYPE_CHECKING:
    from collections.abc import Callable

    from microtome.lab.place import Place

__all__ = ["LIMIT", "SECONDS", "Answer", "query"]

LIMIT = 1_000
"""Rows that are given when no other limit is said."""
SECONDS = 10.0
"""How long a statement may take."""
_MOST = 1_000_000
_BYTES = 50_000_000  # of one value
_TOTAL = 100_000_000  # of all values
_AT_ONCE = 50  # rows
_READS = ("select", "with", "values", "table", "explain", "pragma")
_PRAGMAS = {"table_info", "table_xinfo", "table_list", "index_list", "index_info", "foreign_key_list"}
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}


_MODIFIES = re.compile(
    r'data-modifying|INTO is not allowed|at or near "(INSERT|UPDATE|DELETE|MERGE|INTO)"', re.IGNORECASE
)


@dataclass(frozen=True)
class Answer:
    """What a statement gave. rows: a tuple of values each. more: whether there were more rows than the limit."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    more: bool


def query(place: Place, sql: str, limit: int = LIMIT, *, seconds: float = SECONDS) -> Answer:
    """Ask a record in SQL. docs/reference/record.md has its tables.

    sql: one statement that reads. limit: of rows. seconds: that it may take.

    Raises LabError: SQL that writes, several statements, one that is wrong or takes too long, a limit that is none,
    a record that cannot be read or is of another version.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= _MOST:
        raise LabError(f"limit={limit!r}", why=f"it is a number of rows, 1 to {_MOST:,}", instead=f"{LIMIT}")
    if not isinstance(sql, str) or not sql.strip().rstrip("; \n\t"):
        raise LabError("no SQL was given", why="there is nothing to ask", instead="SELECT * FROM run LIMIT 5")
    database = Database(place)
    try:
        with database.reading():  # there, of this version, not damaged
            pass
        if database.sqlite:
            return _sqlite(database.path, sql, limit, seconds)
        return _postgres(database, sql, limit, seconds)
    finally:
        database.close()


def _taken(fetch: Callable[[int], list[Any]], wanted: int) -> list[Any]:
    """Up to `wanted` rows, a few at a time, as long as all of them together fit in memory."""
    rows: list[Any] = []
    size = 0
    while len(rows) < wanted:
        some = fetch(min(_AT_ONCE, wanted - len(rows)))
        if not some:
            break
        rows += some
        size += sum(len(v) for row in some for v in row if isinstance(v, (str, bytes)))
        if size > _TOTAL:
            raise LabError(
                f"the answer is larger than {_TOTAL // 1_000_000} MB",
                why="it is held in memory",
                instead="ask for fewer columns or rows",
            )
    return rows


class _Judge:
    """SQLite asks it of everything that a statement would do; it remembers what it refused."""

    def __init__(self) -> None:
        self.refused = ""

    def __call__(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        if action in _ALLOWED:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() != "load_extension":
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_UPDATE and first == "sqlite_master":
            return (
                sqlite3.SQLITE_OK
            )  # json_each(...) asks for it to declare itself; SQLite lets nobody write there
        if action == sqlite3.SQLITE_PRAGMA and (first or "").lower() in _PRAGMAS:
            return sqlite3.SQLITE_OK
        self.refused = self.refused or (_ACTIONS.get(action, "something else than a read") + f" ({first or second or ''})")  # fmt: skip
        return sqlite3.SQLITE_DENY


_ACTIONS = {
    getattr(sqlite3, f"SQLITE_{name}"): name.replace("_", " ")
    for name in (
        "INSERT", "UPDATE", "DELETE", "ATTACH", "DETACH", "PRAGMA", "TRANSACTION", "SAVEPOINT", "REINDEX", "ANALYZE", "ALTER_TABLE",
        "CREATE_TABLE", "CREATE_INDEX", "CREATE_VIEW", "CREATE_TRIGGER", "CREATE_TEMP_TABLE", "CREATE_TEMP_INDEX",
        "CREATE_TEMP_VIEW", "CREATE_TEMP_TRIGGER", "CREATE_VTABLE", "DROP_TABLE", "DROP_INDEX", "DROP_VIEW", "DROP_TRIGGER", "DROP_VTABLE",
        "FUNCTION",
    )
}  # fmt: skip


def _sqlite(path: Path, sql: str, limit: int, seconds: float) -> Answer:
    judge = _Judge()
    until = time.monotonic() + seconds
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=seconds)
    except sqlite3.Error as error:
        raise LabError(f"{path} cannot be read", why=str(error), instead="microtome lab doctor") from error
    try:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _BYTES)
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        connection.set_progress_handler(lambda: time.monotonic() > until, 1_000)
        connection.set_authorizer(judge)
        cursor = connection.execute(sql)
        if cursor.description is None:
            raise _writes("it gives no rows")
        rows = _taken(cursor.fetchmany, limit + 1)
        names = tuple(column[0] for column in cursor.description)
    except (sqlite3.Warning, sqlite3.Error, ValueError) as error:
        raise _said(str(error), seconds, judge.refused) from error
    finally:
        connection.close()
    return Answer(names, tuple(rows[:limit]), len(rows) > limit)


def _postgres(database: Database, sql: str, limit: int, seconds: float) -> Answer:
    """A cursor is declared: that takes one SELECT and nothing else, in the extended protocol one statement only."""
    import psycopg

    words = sql.strip().rstrip("; \n\t")
    first = _first_word(words)
    if first not in _READS[:4]:
        raise _writes(f"it begins with {first.upper() or words[:20]!r}")
    with database.driver() as connection, connection.cursor() as cursor:
        try:
            cursor.execute("SET TRANSACTION READ ONLY")
            cursor.execute(f"SET LOCAL statement_timeout = {max(1, round(seconds * 1000))}")
            _step_down(cursor.execute)
            cursor.execute(f"DECLARE asked NO SCROLL CURSOR FOR {words}\n", prepare=True)
            rows = _taken(lambda n: cursor.execute(f"FETCH {n} FROM asked").fetchall(), limit + 1)
            names = tuple(column.name for column in cursor.description or ())
        except psycopg.Error as error:
            writes = error.sqlstate in ("25006", "0A000") or _MODIFIES.search(str(error))
            timed = "interrupted" if error.sqlstate == "57014" else ""
            text = timed or str(error).splitlines()[0]
            raise _said(text, seconds, text if writes else "") from error
        finally:
            connection.rollback()
    return Answer(names, tuple(tuple(row) for row in rows[:limit]), len(rows) > limit)


def _step_down(execute: Callable[[str], Any]) -> None:
    """An administrator's functions reach files of the server: be somebody who only reads tables."""
    found = execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()
    if found and found[0]:
        execute("SET LOCAL ROLE pg_read_all_data")


def _first_word(sql: str) -> str:
    bare = re.sub(r"^(\s+|--[^\n]*(\n|$)|/\*.*?\*/|\()*", "", sql, flags=re.DOTALL)
    found = re.match(r"[A-Za-z]+", bare)
    return found.group().lower() if found else ""


def _writes(why: str) -> LabError:
    return LabError(
        "this SQL would change something",
        why=f"{why}; SQL here only reads the record",
        instead="SELECT ...; what is recorded is changed by runs, predictions and claims alone",
    )


def _said(text: str, seconds: float, refused: str) -> LabError:
    low = text.lower()
    if "one statement" in low or "multiple commands" in low:
        return LabError("several statements were given", why="one is run", instead="one SELECT at a time")
    if refused:
        return _writes(refused)
    if "permission denied" in low:
        return LabError(
            "the SQL was refused", why=text, instead="SQL here reads the tables of the record, nothing else"
        )
    if "interrupted" in low:
        return LabError(
            f"the statement took longer than {seconds:g} s",
            why="it was stopped, so that it holds nobody up",
            instead="narrow it with WHERE, or read a copy of the database with other tools",
        )
    return LabError("the SQL was not understood", why=text, instead="docs/reference/record.md has the tables")
