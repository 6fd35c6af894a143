"""`mt.study`: inside it, everything that runs is recorded without being asked."""

from __future__ import annotations

import atexit
import contextvars
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select, update

from microtome.errors import LabError, MicrotomeError
from microtome.lab import place as places
from microtome.lab import processes, schema
from microtome.lab.database import Database
from microtome.lab.files import Files
from microtome.lab.recorder import Recorder, storable
from microtome.results.events import ObserverWarning, add_observer, remove_observer

if TYPE_CHECKING:
    from types import TracebackType

    from sqlalchemy import Connection

    from microtome.lab.claim_rows import ClaimRow
    from microtome.lab.expecting import Expectation
    from microtome.lab.predicting import Prediction
    from microtome.lab.questions import Question
    from microtome.results import Event, Result

__all__ = ["Study", "study"]

_here: contextvars.ContextVar[str | None] = contextvars.ContextVar("microtome_study", default=None)
_open: dict[str, Study] = {}  # studies that record in this process, by key
_sharing: dict[str, list[Study]] = {}  # other objects for a study that is open
_lock = threading.RLock()
_process: dict[tuple[int, str], str] = {}  # (pid, database) -> id of this process there


def study(
    title: str, *, folder: str | Path | None = None, person: str | None = None, agent: bool = False
) -> Study:
    """A study of this title: the one of that name in the project, else a new one.

    As a context manager, or between `.open()` and `.close()` (a notebook spans cells), every technique that is called
    becomes a run, calls within calls child runs, and every raw `model.run` a look. A thread of this process is in the
    study while it is the only open one, or inside `with study:`; a worker process is handed the study and uses
    `with study:` too.

    Parameters
    ----------
    folder: of the project; default: the one that the current folder is in, else the current folder becomes one.
    person: who works; default `MICROTOME_PERSON`, the project's setting, the account's name.
    agent: whether that is an agent: its runs are marked as an agent's.

    Raises
    ------
    LabError: no title, or a record that cannot be opened or written to.
    """
    if not isinstance(title, str) or not title.strip():
        raise LabError(
            f"a study called {title!r}", why="studies are found by their title", instead="a few words"
        )
    if storable(title) != title:
        raise LabError(
            f"a study called {title!r}",
            why="it has characters that no database keeps as text",
            instead="leave them out",
        )
    found = places.find(folder)
    if found is None:
        found = places.init(folder)
    return Study(found, title.strip(), (person or places.person(found)).strip(), agent)


class Study:
    """A line of work that is recorded. Made by `mt.study`; pickled, it is a reference to the same study.

    Attributes
    ----------
    title, person: what it is about, and who works.
    place: the project. number: the study's number in its record, 0 before it is opened.
    """

    def __init__(
        self, place: places.Place, title: str, person: str, agent: bool = False, key: str = ""
    ) -> None:
        self.place, self.title, self.person, self.agent = place, title, person, agent
        self.key = key
        self.number = 0
        self.database = Database(place)
        self.files = Files(place.files)
        self._recorder: Recorder | None = None
        self._entered: list[contextvars.Token[str | None]] = []
        self._owner = False
        self._last: int | None = None
        self._pid = 0

    # ------------------------------------------------------------------------------------------- life

    def open(self) -> Study:
        """Begin to record. Opening an open study changes nothing."""
        with _lock:
            if self._recorder is not None and self._pid == os.getpid():
                return self
            self._pid = os.getpid()
            with self.database.writing() as connection:
                self.number, self.key = self._find(connection)
                process = self._this_process(connection)
                settle(connection)
                mark = connection.execute(
                    select(schema.meta.c.value).where(schema.meta.c.key == "id")
                ).scalar()
                self.files.belong(str(mark))
            other = _open.get(self.key)
            if other is not None:  # one study records once, however many objects stand for it
                self._recorder, self._owner = other._recorder, False
                _sharing.setdefault(self.key, []).append(self)
                return self
            self._recorder = Recorder(
                self.database, self.files, self.number, self.person, process, self._decide
            )
            self._owner = True
            _open[self.key] = self
            add_observer(self._hear)
        return self

    def close(self) -> None:
        """Stop recording. What could not be written before is tried a last time.

        Raises LabError or ResourceError when something is still not written; the study stays open then, so that it can be
        closed again once there is room, and `rescue` saves the results elsewhere.
        """
        with _lock:
            if self._recorder is None or self._pid != os.getpid():
                self._recorder = None
                return
            shared = _sharing.get(self.key, [])
            if not self._owner:
                shared.remove(self)
            elif shared:  # it stays open for the others
                _open[self.key] = heir = shared.pop()
                heir._owner = True
                add_observer(heir._hear)
                remove_observer(self._hear)
            else:
                self._recorder.flush()
                self._draw(self._recorder.ended)
                with self.database.writing() as connection:
                    at = schema.study.c.number == self.number
                    connection.execute(update(schema.study).where(at).values(closed_at=time.time()))
                remove_observer(self._hear)
                del _open[self.key]
                self._recorder.database.close()
            self._last = self.last
            self._recorder, self._owner = None, False

    @property
    def last(self) -> int | None:
        """The number of the last run that ended at the top of this study in this process."""
        return self._recorder.last if self._recorder is not None else self._last

    def attach(self, path: str | Path, role: str = "report") -> int | None:
        """Keep a file with the last run that ended at the top of this study in this process; its number, None without a run.

        Raises LabError for a file that cannot be read, and what writing raises.
        """  # fmt: skip
        number = self.last
        if number is None:
            return None
        path = Path(path)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise LabError(
                f"{path} cannot be read", why=error.strerror or str(error), instead="check the path"
            ) from error
        suffix = path.suffix.lower()  # of a key, which has few characters
        key = self.files.put(content, suffix if re.fullmatch(r"\.[a-z0-9]{1,12}", suffix) else "")
        with self.database.writing() as connection:
            name = storable(path.name)
            same = (schema.run_file.c.run == number) & (schema.run_file.c.role == role)
            connection.execute(delete(schema.run_file).where(same, schema.run_file.c.name == name))
            row = {"run": number, "role": role, "name": name, "key": key, "bytes": len(content)}
            connection.execute(insert(schema.run_file), row)
        return number

    def predict(
        self,
        statement: str,
        probability: float,
        about: Question,
        holds: Expectation | None = None,
        *,
        claim: int | None = None,
    ) -> Prediction:
        """Predict what a run will show, before it runs: `study.predict("removing L9H6 costs 30-60 %", 0.7, about=mt.query(...),
        holds=mt.expect("effects", site="L9H6.z", low=-0.6, high=-0.3))`.

        Parameters
        ----------
        probability: that it comes true, between 0 and 1 and neither. about: which runs decide it. holds: what their result
            must show; without it a person resolves it (`resolve`). claim: the number of the claim from which it follows.

        What it gives back says whether it is post hoc: whether anything earlier in this record saw what it is about.

        Raises LabError: see `microtome.lab.predicting.make`.
        """  # fmt: skip
        from microtome.lab.predicting import check, make

        check(statement, probability, about, holds)  # what is refused leaves no study behind
        self._known()
        return make(
            self.database, self.number, self.person, statement=statement, probability=probability, about=about,
            holds=holds, claim=claim,
        )  # fmt: skip

    def resolve(self, number: int, outcome: bool | None, *, reason: str) -> Prediction:
        """Say how a prediction without `holds` turned out, and why one can tell; None makes it void."""
        from microtome.lab.predicting import resolve

        self._known()
        return resolve(self.database, number, outcome, reason=reason, person=self.person)

    def claim(
        self,
        statement: str,
        *,
        about: Any = None,
        evidence: Sequence[Any] = (),
        alternatives: Sequence[str] = (),
        falsifiers: Sequence[str] = (),
        limitations: Sequence[str] = (),
    ) -> ClaimRow:
        """Claim something. Its rung is computed from the evidence whenever it is read, and capped with the reason shown.

        See `microtome.lab.claiming.make` for the parameters. Raises LabError.
        """
        from microtome.lab.claim_rows import read
        from microtome.lab.claiming import make
        from microtome.lab.reading import Record

        self._known()
        if self._recorder is not None:
            self._recorder.flush()  # a result that evidence names may still be on its way
        number = make(
            self.database, self.number, self.person, statement, about=about, evidence=evidence,
            alternatives=alternatives, falsifiers=falsifiers, limitations=limitations,
        )  # fmt: skip
        return read(Record(self.place), number)

    def rescue(self, folder: str | Path) -> tuple[Path, ...]:
        """Save results that could not be recorded into a folder, each as `mt.open` reads it; their folders.

        Raises what `Result.save` raises.
        """
        waiting = self._recorder.unwritten if self._recorder is not None else ()
        at = Path(folder).expanduser()
        return tuple(result.save(at / f"{i:03d}-{result.kind}") for i, result in enumerate(waiting, 1))

    def __enter__(self) -> Study:
        self.open()
        self._entered.append(_here.set(self.key))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _here.reset(self._entered.pop())
        if self._entered:
            return
        try:
            self.close()
        except MicrotomeError as fault:
            if error is None:
                raise
            error.add_note(str(fault))  # what went wrong first is what is raised

    def __reduce__(self) -> tuple[Any, ...]:
        self._known()
        return _again, (str(self.place.folder), self.title, self.person, self.agent, self.key)

    def __repr__(self) -> str:
        state = "open" if self._recorder is not None else "closed"
        return f"<Study {self.title!r} of {self.person}: {state}, {self.place.shown}>"

    # -------------------------------------------------------------------------------------- recording

    def _hear(self, event: Event) -> None:
        recorder = self._recorder
        if recorder is not None and self._mine(event):
            recorder(event)

    def _mine(self, event: Event) -> bool:
        """Whether an event belongs to this study: by the block it happens in, else when no other study is open."""
        here = _here.get()
        if here is not None:
            return here == self.key
        if len(_open) == 1:
            return True
        if event.kind == "begin" and event.parent is None and self.key == min(_open):
            titles = ", ".join(repr(s.title) for s in _open.values())
            text = f"{event.method} is not recorded: {len(_open)} studies are open ({titles}); say `with study:` around it"
            warnings.warn(text, ObserverWarning, stacklevel=2)
        return False

    def _decide(self, connection: Connection, number: int, result: Result) -> None:
        """Predictions that this run decides, in the transaction that ends it."""
        from microtome.lab.predicting import decide

        decide(connection, number, result)

    def _draw(self, numbers: Sequence[int]) -> None:
        """Keep pictures of the last runs; what cannot be drawn or written now is drawn when somebody asks."""
        if not numbers:
            return
        from microtome.lab.pictures import keep
        from microtome.lab.reading import Record

        try:
            keep(Record(self.place), numbers)
        except MicrotomeError as fault:
            warnings.warn(f"no pictures were kept: {fault.what}", ObserverWarning, stacklevel=4)

    def _find(self, connection: Connection) -> tuple[int, str]:
        person = select(schema.person).where(schema.person.c.name == self.person)
        found = connection.execute(person).first()
        kind = "agent" if self.agent else "person"
        if found is None:
            row = {"name": self.person, "kind": kind, "since": time.time()}
            connection.execute(insert(schema.person), row)
        elif found.kind != kind:
            raise LabError(
                f"{self.person} is {'a person' if found.kind == 'person' else 'an agent'} in this record",
                why="work of agents and people is kept apart",
                instead="another name",
            )
        by = schema.study.c.key == self.key if self.key else schema.study.c.title == self.title
        known = connection.execute(select(schema.study).where(by).order_by(schema.study.c.number)).first()
        if known is not None:
            return int(known.number), str(known.key)
        key = self.key or os.urandom(8).hex()
        row = {"key": key, "title": self.title, "person": self.person, "opened_at": time.time()}
        done = connection.execute(insert(schema.study), row)
        number = done.inserted_primary_key
        assert number is not None
        return int(number[0]), key

    def _this_process(self, connection: Connection) -> str:
        mark = (os.getpid(), self.place.shown)
        known = select(schema.process.c.id).where(schema.process.c.id == _process.get(mark))
        if (
            connection.execute(known).first() is None
        ):  # not yet, or rolled back, or in a database that is gone
            this = processes.this(self.place.folder)
            diff = self.files.put(this.diff, ".diff") if this.diff else None
            connection.execute(insert(schema.process), this.row(diff))
            _process[mark] = this.id
        return _process[mark]

    def _known(self) -> None:
        """Have a number and a key: another process must find the same study."""
        if not self.number:
            with self.database.writing() as connection:
                self.number, self.key = self._find(connection)


def _again(folder: str, title: str, person: str, agent: bool, key: str) -> Study:
    return Study(places.here(folder), title, person, agent, key)


@atexit.register
def _close_all() -> None:
    """A notebook's kernel ends without closing: what waits is written, or named."""
    for one in list(_open.values()):
        try:
            one.close()
        except MicrotomeError as fault:
            sys.stderr.write(f"{fault}\n")


def _in_a_fork() -> None:
    """A forked process records nothing until it is handed a study: its rows would be its parent's."""
    global _lock
    _lock = threading.RLock()  # another thread of the parent may hold the old one
    for one in list(_open.values()):
        remove_observer(one._hear)
        one._recorder, one._owner = None, False
    _open.clear()
    _sharing.clear()
    _here.set(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_a_fork)


def recording(place: places.Place) -> bool:
    """Whether this process has a study open there."""
    return any(one.place.shown == place.shown for one in _open.values())


def settle(connection: Connection) -> tuple[int, ...]:
    """Mark runs whose process is gone as interrupted; their numbers."""
    run, process = schema.run, schema.process
    rows = connection.execute(
        select(run.c.number, process)
        .join(process, run.c.process == process.c.id)
        .where(run.c.state == "running")
    ).all()
    lost = [int(r.number) for r in rows if processes.gone(r.host, r.boot, r.pid, r.started)]
    if lost:
        values = {
            "state": "interrupted",
            "error": processes.LOST,
        }
        connection.execute(update(run).where(run.c.number.in_(lost)).values(values))
    return tuple(lost)
