"""The database of a record: connections, transactions, and what goes wrong with them said in words.

SQLite in WAL mode: readers never wait, writers wait for each other. A durable transaction is synced before it counts as
done; another survives a kill of the process, not a power cut (it becomes durable with the next that is).
"""  # fmt: skip

from __future__ import annotations

import itertools
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, create_engine, event, insert, inspect, text
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, OperationalError

from microtome.errors import LabError, MicrotomeError, ResourceError
from microtome.lab import forks, schema

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from microtome.lab.place import Place

__all__ = [
    "VERSIONS",
    "WAIT",
    "Database",
    "beside",
    "explain",
    "make",
    "never",
    "nothing",
    "other_version",
    "revision",
    "revisions",
]

VERSIONS = [Path(__file__).parent / "migrations" / "versions"]
"""Folders of the steps from revision to revision."""

_inherited: list[Engine] = []

WAIT = 30.0
"""Seconds to wait for another writer."""


class Database:
    """The database at a place. Threads and forked processes may share it; each gets connections of its own."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._engines: dict[str, Engine] = {}
        self._process = os.getpid()
        self._lock = threading.Lock()
        forks.watch(self)
        weakref.finalize(self, _dispose, self._engines, os.getpid()).atexit = False

    @property
    def sqlite(self) -> bool:
        """Whether it is a SQLite file."""
        return not self.place.url or self.place.url.startswith("sqlite")

    @property
    def path(self) -> Path:
        """Where the SQLite file is."""
        return Path(self.place.url.removeprefix("sqlite:///")) if self.place.url else self.place.database

    @contextmanager
    def driver(self) -> Iterator[Any]:
        """A connection of the driver itself, in a transaction that is undone."""
        with forks.passing(), self.told():
            raw = self._engine("read").raw_connection()
            try:
                yield raw.driver_connection
            finally:
                raw.close()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads: what it sees does not change while it lasts.

        Raises LabError: no record there, one of another version, damaged, or out of reach.
        """
        with forks.passing(), self.told(), self._engine("read").connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self, *, durable: bool = True) -> Iterator[Connection]:
        """A transaction that writes, all of it or nothing.

        Raises LabError: locked for longer than half a minute, damaged, read-only; ResourceError: the disk is full.
        """
        kind = "durable" if durable else "quick"
        with forks.passing(), self.told(), self._engine(kind).connect() as connection, connection.begin():
            if not self.sqlite:
                _one_at_a_time(connection, durable)
            yield connection

    def exists(self) -> bool:
        """Whether a record has been made here."""
        if self.sqlite and not self.place.url:
            return self.place.database.is_file() and self.place.database.stat().st_size > 0
        if self.sqlite and not self.path.exists():
            return False  # connecting would make an empty file
        engine = self.raw("read")
        try:
            with forks.passing(), self.told(), engine.connect() as connection:
                return inspect(connection).has_table("meta")
        finally:
            engine.dispose()

    def close(self) -> None:
        """Give back every connection."""
        with self._lock:
            _dispose(self._engines, self._process)

    # ----------------------------------------------------------------------------------------- inside

    def _engine(self, kind: str) -> Engine:
        with self._lock:
            if self._process != os.getpid():
                # `forks` closed them, unless a transaction of another thread lasted too long; then they are kept, for ever: to
                # close them here would undo what the parent writes
                _inherited.extend(self._engines.values())
                self._engines.clear()
                self._process = os.getpid()
            known = self._engines.get(kind)
        if known is not None:
            return known
        engine = self.raw(kind)
        try:
            with self.told():
                self._prepare(engine, kind)
        except MicrotomeError:
            engine.dispose()
            raise
        with self._lock:
            return self._engines.setdefault(kind, engine)

    def raw(self, kind: str) -> Engine:
        """A new engine: read, quick, durable, or upgrade (durable, and foreign keys are not looked at)."""
        if not self.sqlite:
            options: dict[str, Any] = {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10}}
            if kind == "read":
                options |= {
                    "isolation_level": "REPEATABLE READ",
                    "execution_options": {"postgresql_readonly": True},
                }
            with self.told():
                return create_engine(_postgres(self.place.url), **options)
        # by its parts: a path may have any character
        engine = create_engine(URL.create("sqlite", database=str(self.path)), connect_args={"timeout": WAIT})
        _listen(engine, kind)
        return engine

    def _prepare(self, engine: Engine, kind: str) -> None:
        """Make the record where it may be made; refuse one of another version."""
        if kind == "read" and not self.exists():
            raise nothing(self.place)
        with engine.connect() as connection:
            others = inspect(connection).get_table_names()  # first: another process may be making them
            found = revision(connection)
        if found is None and not others and kind != "read":
            make(engine)
        elif found is None and not others:  # whoever made the file was killed before its tables
            raise nothing(self.place)
        elif found is None:
            raise LabError(
                f"{self.place.shown} is no record of Microtome's",
                why="it has none of its tables",
                instead="another database, or another folder",
            )
        elif found != schema.REVISION:
            raise other_version(self.place, found)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Inside it a driver's errors become errors in words."""
        try:
            yield
        except ImportError as error:
            raise LabError(
                f"{self.place.shown} needs a driver that is not installed",
                why=str(error),
                instead="pip install 'microtome[postgres]'",
            ) from error
        except DBAPIError as error:
            raise explain(error, self.place.shown) from error


def _dispose(engines: dict[str, Engine], process: int) -> None:
    if process == os.getpid():
        for engine in engines.values():
            engine.dispose()
    engines.clear()


def beside(path: Path, word: str) -> Path:
    """A name beside a file, with a date, that nothing has yet."""
    name = f"{path.name}.{word}-{time.strftime('%Y%m%d-%H%M%S')}"
    for count in itertools.count(1):
        found = path.with_name(name + (f"-{count}" if count > 1 else ""))
        if not found.exists():
            return found
    raise AssertionError


def nothing(place: Place) -> LabError:
    """The refusal where nothing was recorded."""
    return LabError(
        f"nothing was recorded yet in {place.shown}",
        why="the database is made by the first thing that is recorded",
        instead="run something in the project: microtome dissect ioi, or mt.study(...)",
    )


def make(engine: Engine) -> None:
    """Make the tables of this version, in one transaction; two processes may try at once."""
    with engine.connect() as connection, connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(6034528311)"))
        if revision(connection) is not None:
            return
        schema.metadata.create_all(connection)
        connection.execute(
            text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
        )
        connection.execute(
            text("INSERT INTO alembic_version (version_num) VALUES (:now)"), {"now": schema.REVISION}
        )
        said = {"id": os.urandom(8).hex(), "made_at": repr(time.time())}
        connection.execute(insert(schema.meta), [{"key": k, "value": v} for k, v in said.items()])


def revision(connection: Connection) -> str | None:
    """The revision that a database is at, None for one without tables of ours."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def revisions() -> set[str]:
    """The revisions that this version knows the steps of."""
    return {path.name.split("_")[0] for folder in VERSIONS for path in folder.glob("[0-9]*.py")}


def other_version(place: Place, found: str) -> LabError:
    """The refusal of a record whose tables are not those of this version."""
    if found not in revisions():
        return LabError(
            f"the record {place.shown} is of a newer version (schema {found})",
            why=f"this Microtome writes schema {schema.REVISION}, and would damage what it does not know",
            instead="upgrade microtome",
        )
    return LabError(
        f"the record {place.shown} is of an older version (schema {found})",
        why=f"this Microtome writes schema {schema.REVISION}",
        instead="microtome lab doctor --upgrade; it makes a copy first",
    )


def _one_at_a_time(connection: Connection, durable: bool) -> None:
    """One writer, as in SQLite: what is looked for first and then written is written once."""
    connection.execute(text(f"SET LOCAL lock_timeout = '{WAIT:.0f}s'"))
    if not durable:
        connection.execute(text("SET LOCAL synchronous_commit = off"))
    connection.execute(text("SELECT pg_advisory_xact_lock(6034528312)"))


def _postgres(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://", 1)


def _listen(engine: Engine, kind: str) -> None:
    """SQLite as it should be: its own transactions (the driver's begin late), WAL, foreign keys, and a sync where asked."""

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        if kind == "read":
            cursor.execute("PRAGMA query_only=ON")
        else:
            cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute(f"PRAGMA foreign_keys={'OFF' if kind == 'upgrade' else 'ON'}")
        cursor.execute(f"PRAGMA synchronous={'NORMAL' if kind == 'quick' else 'FULL'}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN" if kind == "read" else "BEGIN IMMEDIATE")


def explain(error: DBAPIError, where: str) -> MicrotomeError:
    """A driver's error in words."""
    said = str(error.orig or error).splitlines()[0] if str(error.orig or error) else type(error).__name__
    low = said.lower()
    if "disk is full" in low or "no space" in low or getattr(error.orig, "sqlstate", "") == "53100":
        return ResourceError(
            f"no room to record in {where}",
            why=said,
            instead="free some space; what was recorded before is untouched",
        )
    if "locked" in low or "busy" in low or "lock timeout" in low:
        return LabError(
            f"{where} is locked", why=f"another process has been writing for {WAIT:.0f} s ({said})",
            instead="wait for it or end it; `fuser FILE` names it",
        )  # fmt: skip
    if "malformed" in low or "not a database" in low or "corrupt" in low or "disk image" in low:
        return LabError(
            f"{where} is damaged",
            why=said,
            instead="microtome lab doctor says what is left, and recovers it",
        )
    if "disk i/o error" in low:
        return LabError(
            f"{where} cannot be written or read",
            why=f"the operating system refused ({said}): a limit on the size of files, or a failing disk",
            instead="see what the disk and its limits say; what was recorded before is untouched",
        )
    if "readonly" in low or "read-only" in low or "permission" in low or "unable to open" in low:
        return LabError(
            f"{where} cannot be written to or opened", why=said, instead="mend its permissions, or the path"
        )
    if isinstance(error, OperationalError):
        return LabError(
            f"{where} does not answer", why=said, instead="see that the database runs and the URL is right"
        )
    kind = "refused what was written" if never(error) else "has an error"
    return LabError(f"{where} {kind}", why=said, instead="microtome lab doctor")


def never(error: BaseException | None) -> bool:
    """Whether writing the same again would fail again: what was written broke a rule of the tables."""
    return isinstance(error, (IntegrityError, DataError))
