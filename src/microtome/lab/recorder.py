"""From events to rows: the observer through which everything that runs in a study is recorded.

A run is a row when it begins. When it ends, its files come first and the row that names them after. What cannot be
written now (a full disk, a locked database) is kept in memory and tried again with later events and on closing.
"""  # fmt: skip

from __future__ import annotations

import json
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, select, update
from sqlalchemy.exc import DBAPIError

from microtome.errors import LabError, MicrotomeError, ResourceError, ResultError
from microtome.lab import keeping, schema
from microtome.lab.arguments import family_of, sites_of
from microtome.lab.database import never
from microtome.lab.processes import called_from
from microtome.results import pieces

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from microtome.lab.database import Database
    from microtome.lab.files import Files
    from microtome.results import Event, Result

__all__ = ["Recorder", "storable"]

_Pieces = tuple[str, tuple[tuple[str, str], ...]]

BEAT = 30.0
"""Seconds between two signs of life of a process while something runs."""
STATES = {"end": "finished", "failed": "failed", "interrupted": "interrupted"}


class Recorder:
    """Records the events of one study, for one person and one process.

    after: called with (connection, number, result) in the transaction that ends a run: predictions are decided there.
    last: the number of the last run that ended and that no other had called. ended: all such that have a result.
    """

    def __init__(
        self,
        database: Database,
        files: Files,
        study: int,
        person: str,
        process: str,
        after: Callable[[Connection, int, Result], None] | None = None,
    ) -> None:
        self.database, self.files = database, files
        self.study, self.person, self.process = study, person, process
        self.after = after
        self._lock = threading.RLock()
        self._open: dict[str, _Run] = {}
        self._stored = _Stored()
        self._waiting: list[tuple[Callable[[], None], Result | None]] = []
        self._next = 0.0  # when it is tried again
        self._beat = time.monotonic()
        self._look: tuple[Any, int] | None = None
        self.last: int | None = None
        self.ended: list[int] = []

    def __call__(self, event: Event) -> None:
        """Record one event. Raises what keeps it from being written; it is tried again later."""
        with self._lock:
            if event.kind == "progress":
                self._alive()
            elif event.kind == "look":
                self._looked(event)
            elif event.kind == "begin":
                self._look = None
                self._began(event)
            elif event.run in self._open:
                run = self._open.pop(event.run)
                run.ended = event.at
                self._do(lambda: self._end(run, event), event.result)

    @property
    def waiting(self) -> int:
        """How many entries could not be written yet."""
        return len(self._waiting)

    @property
    def unwritten(self) -> tuple[Result, ...]:
        """Results that are in no record yet."""
        with self._lock:
            return tuple(result for _, result in self._waiting if result is not None)

    def flush(self) -> None:
        """Write what could not be written before. Raises LabError or ResourceError when it still cannot.

        What can never be written (a result that no file format holds) is given up, or it would keep all others waiting.
        """
        with self._lock:
            while self._waiting:
                try:
                    self._waiting[0][0]()
                except Exception as error:
                    if not isinstance(error, (LabError, ResourceError)) or never(error.__cause__):
                        del self._waiting[0]
                    raise
                del self._waiting[0]

    # ---------------------------------------------------------------------------------------- writing

    def _do(self, entry: Callable[[], None], result: Result | None = None) -> None:
        self._waiting.append((entry, result))
        began = time.monotonic()
        if began < self._next:
            return  # it was said that entries wait
        try:
            self.flush()
        except (LabError, ResourceError) as error:
            # a locked database keeps a writer for half a minute: at most a tenth of a measurement's time goes into that
            self._next = time.monotonic() + 9 * (time.monotonic() - began)
            waits = f"{len(self._waiting)} entries wait in memory and are tried again"
            raise type(error)(error.what, why=error.why, instead=f"{error.instead}; {waits}") from error

    def _began(self, event: Event) -> None:
        run = _Run.of(event, self._open.get(event.parent or ""))
        self._open[event.run] = run
        fault: MicrotomeError | None = None
        try:
            run.call = keeping.call(event, self.files, self._recorded)
        except MicrotomeError as error:  # the run is recorded all the same; it cannot be run again from here
            fault = error
            why = f"its arguments were not kept: {error.what}"
            family = family_of(event.arguments or {})  # by which later predictions are found to be post hoc
            run.call = keeping.Call({"family": family, "arguments": None, "not_again": why})
        self._do(lambda: self._begin(run))
        if fault is not None:
            raise fault

    def _begin(self, run: _Run) -> None:
        with self.database.writing(durable=False) as connection:
            if run.tried:  # a connection may have been lost after the commit
                known = connection.execute(
                    select(schema.run.c.number).where(schema.run.c.id == run.row["id"])
                ).scalar()
                if known is not None:
                    run.number = int(known)
                    return
            run.tried = True
            parent = run.parent.number or None if run.parent is not None else None
            row = {**run.row, **run.call.row, "parent": parent, "study": self.study, "person": self.person,
                   "process": self.process, "state": "running"}  # fmt: skip
            run.number = _number(connection.execute(insert(schema.run), row))
            keeping.subjects(connection, run.call)
            keeping.link(connection, run.number, "argument", run.call.files, self.files)

    def _end(self, run: _Run, event: Event) -> None:
        result = event.result
        stored, unkept = self._keep(result)
        with self.database.writing() as connection:
            if run.closing and _ended(connection, run.number):
                return
            run.closing = True
            values: dict[str, Any] = {
                "state": STATES[event.kind], "ended_at": event.at, "seconds": event.seconds, "memory": _peak_memory(),
                "error": storable(event.error) or (f"its result was not kept: {unkept}" if unkept is not None else ""),
            }  # fmt: skip
            sites = {*run.sites, *run.call.sites}
            if result is not None and stored is not None:
                values |= {"result": stored[0], "verdict": str(result.verdict), "p": result.verdict.p}
                sites |= set(sites_of(event.method, {}, result))
                keeping.link(connection, run.number, "result", stored[1], self.files)
                keeping.controls(connection, run.number, result)
            keeping.sites(connection, run.number, sites)
            connection.execute(update(schema.run).where(schema.run.c.number == run.number).values(values))
            self._heard(connection)
            fault = self._after(connection, run.number, result) if result is not None else None
        if run.parent is None:
            self.last = run.number
            self.ended += [run.number] if stored is not None else []
        if unkept is not None:
            raise unkept
        if fault is not None:
            raise fault

    def _after(self, connection: Connection, number: int, result: Result) -> Exception | None:
        """Decide what the run decides. The run has ended all the same when that cannot be done: why, to be said after the commit."""
        if self.after is None:
            return None
        try:
            with connection.begin_nested():
                self.after(connection, number, result)
        except Exception as error:
            if isinstance(error, DBAPIError) and not never(error):
                raise  # nothing was written: all of it is tried again
            return error
        return None

    def _recorded(self, query: str) -> bool:
        run = schema.run
        with self.database.reading() as connection:
            kept = select(run.c.number).where(run.c.query == query, run.c.result.is_not(None)).limit(1)
            return connection.execute(kept).first() is not None

    def _keep(self, result: Result | None) -> tuple[_Pieces | None, ResultError | None]:
        """Where a result's pieces are; or why it can be in no file, which trying again would not change."""
        try:
            return (self._stored.put(result, self.files) if result is not None else None), None
        except ResultError as error:
            return None, error

    def _looked(self, event: Event) -> None:
        parent = self._open.get(event.parent or "")
        sites = (event.look.sites or ("logits",)) if event.look is not None else ()
        if parent is not None:  # a technique's own reading is part of what that technique saw
            parent.see(sites)
            return
        run = _Run.of(event, None)
        run.call = keeping.look(event, self.files)
        run.see(sites)
        same = (run.row["query"], run.row["model"], run.sites)
        if self._look is not None and self._look[0] == same:
            number = self._look[1]
            self._do(lambda: self._again(number, event.at))
            return
        self._do(lambda: self._first_look(run, event, same))

    def _first_look(self, run: _Run, event: Event, same: Any) -> None:
        with self.database.writing(durable=False) as connection:
            row = {**run.row, **run.call.row, "study": self.study, "person": self.person, "process": self.process,
                   "state": "finished", "ended_at": event.at, "seconds": 0.0}  # fmt: skip
            number = _number(connection.execute(insert(schema.run), row))
            keeping.subjects(connection, run.call)
            keeping.sites(connection, number, run.sites)
            keeping.link(connection, number, "argument", run.call.files, self.files)
        self._look = (same, number)

    def _again(self, number: int, at: float) -> None:
        with self.database.writing(durable=False) as connection:
            more = {"times": schema.run.c.times + 1, "ended_at": at}
            connection.execute(update(schema.run).where(schema.run.c.number == number).values(more))

    def _alive(self) -> None:
        if time.monotonic() - self._beat > BEAT:
            self._beat = time.monotonic()  # now, or a locked database would be waited for at every step
            with self.database.writing(durable=False) as connection:
                self._heard(connection)

    def _heard(self, connection: Connection) -> None:
        self._beat = time.monotonic()
        mine = schema.process.c.id == self.process
        connection.execute(update(schema.process).where(mine).values(heard_at=time.time()))


class _Run:
    """A run that has not ended."""

    def __init__(self, row: dict[str, Any], parent: _Run | None) -> None:
        self.row, self.parent = row, parent
        self.number = 0
        self.ended = 0.0
        self.tried = self.closing = False  # whether its begin, its end were written once, perhaps in vain
        self.sites: frozenset[str] = frozenset()
        self.call = keeping.Call()

    @classmethod
    def of(cls, event: Event, parent: _Run | None) -> _Run:
        query = event.query
        asked = keeping.question_of(event)
        row = {
            "id": event.run, "method": event.method, "version": query.version if query else "",
            "code": keeping.code_of(event.method), "begun_at": event.at, "times": 1, "error": "",
            "question": json.dumps(asked, sort_keys=True), "query": query.id if query else pieces.piece_digest(json.dumps(asked).encode()),
            "model": query.model if query else (event.look.model if event.look else ""),
            "task": query.task if query else "", "data": query.data if query else "",
            "seed": query.seed if query else None, "family": "", "called_from": called_from() if parent is None else "",
        }  # fmt: skip
        return cls(row, parent)

    def see(self, sites: tuple[str, ...]) -> None:
        """Sites that were looked at while it ran; its parents saw them too."""
        self.sites |= frozenset(sites)
        if self.parent is not None:
            self.parent.see(sites)


class _Stored:
    """Results whose pieces are in the files: a stage's pieces are not written again with the whole."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Result], str, tuple[tuple[str, str], ...]]] = {}

    def put(self, result: Result, files: Files) -> tuple[str, tuple[tuple[str, str], ...]]:
        """(key of the head, (name, key) of every piece)."""
        names: list[tuple[str, str]] = []

        def put(name: str, content: bytes) -> str:
            key = files.put(content, "." + name.rpartition(".")[2], sync=False)
            names.append((name, key))
            return key[:32]

        def known(child: Result, prefix: str) -> str | None:
            entry = self._known.get(id(child))
            if entry is None or entry[0]() is not child:
                return None
            names.extend((prefix + name, key) for name, key in entry[2])
            return entry[1][:32]

        pieces.write(result, put, known)
        files.sync(key for _, key in names)
        head = names[-1][1]
        mark = id(result)
        self._known[mark] = (
            weakref.ref(result, lambda _gone: self._known.pop(mark, None)),
            head,
            tuple(names),
        )
        return head, tuple(names)


def _ended(connection: Connection, number: int) -> bool:
    state = connection.execute(select(schema.run.c.state).where(schema.run.c.number == number)).scalar()
    return state in STATES.values() and state != "interrupted"


def _number(done: Any) -> int:
    return int(done.inserted_primary_key[0])


def _peak_memory() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def storable(text: str) -> str:
    """Text with what no database keeps (lone surrogates, NUL) written as an escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")
