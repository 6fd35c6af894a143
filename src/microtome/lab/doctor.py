"""What is left of a record: examined without changing it, dead runs settled, garbage collected.

A damaged database is recovered by `microtome.lab.salvage`, an older one upgraded by `microtome.lab.migrations`.
"""

from __future__ import annotations

import glob
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select, text, union

from microtome.errors import LabError
from microtome.lab import processes, schema, seals
from microtome.lab.database import Database
from microtome.lab.files import GRACE, Files, Swept
from microtome.lab.study import recording, settle

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row

    from microtome.lab.place import Place

__all__ = ["Finding", "Report", "collect", "examine", "repair", "used"]


@dataclass(frozen=True)
class Finding:
    """Something that an examination found.

    grave: whether something is lost or wrong, not merely left over. about: settings, version, database, rows, files, runs or
    predictions. what, instead: in words.
    """  # fmt: skip

    grave: bool
    about: str
    what: str
    instead: str = ""


@dataclass(frozen=True)
class Report:
    """What an examination found. database: where it is. schema: its version, "" where none can be read.

    studies, runs, predictions, claims, files: how many; bytes: of all files.
    """

    database: str
    schema: str
    studies: int
    runs: int
    predictions: int
    claims: int
    files: int
    bytes: int
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing grave was found."""
        return not any(f.grave for f in self.findings)


def examine(place: Place, deep: bool = False) -> Report:
    """Look at everything and change nothing.

    deep: compare every file with its digest, not only that it is there and how large it is, and decide every prediction
    again that a stored result decided.
    """
    database, files = Database(place), Files(place.files)
    findings: list[Finding] = []
    counts = dict.fromkeys(("study", "run", "prediction", "claim"), 0)
    version = ""
    stored = {key: stat.st_size for key, stat in files.stored()}
    findings += _copies(database)
    try:
        if not database.exists():
            if stored:
                findings.append(Finding(True, "database", f"there is none, but {len(stored)} files",
                                        "microtome lab doctor --recover makes runs of the results among them"))  # fmt: skip
            else:
                findings.append(Finding(False, "database", "nothing was recorded yet"))
        else:
            with database.reading() as connection:
                version = schema.REVISION
                findings += _tables(connection, database.sqlite)
                for name in counts:
                    counts[name] = connection.execute(select(func.count()).select_from(schema.metadata.tables[name])).scalar() or 0  # fmt: skip
                findings += _runs(connection)
                findings += _files(connection, files, stored, deep)
                rows = connection.execute(select(schema.prediction).order_by(schema.prediction.c.number))
                findings += _seals([dict(row) for row in rows.mappings()])
            if deep:
                findings += _outcomes(place)
    except LabError as error:
        findings.append(Finding(True, "version" if "version" in error.what else "database", f"{error.what}: {error.why}", error.instead))  # fmt: skip
    finally:
        database.close()
    return Report(place.shown, version, counts["study"], counts["run"], counts["prediction"], counts["claim"], len(stored), sum(stored.values()), tuple(findings))  # fmt: skip


def repair(place: Place) -> tuple[int, ...]:
    """Mark runs whose process is gone as interrupted; their numbers. Opening a study does the same."""
    database = Database(place)
    try:
        with (
            database.reading(),
            database.writing() as connection,
        ):  # reading: a record is not made by a doctor
            return settle(connection)
    finally:
        database.close()


def collect(place: Place, *, now: bool = False, remove: bool = True) -> Swept:
    """Remove files that nothing in the record uses, and leftovers of writers that were killed.

    now: also those younger than an hour, which a writer may be about to use: refused while any other process records here.
    remove: false only counts.

    Raises LabError: no record or a damaged one (what is used is not known then), a folder of files that other records use too,
    or `now` while somebody records.
    """  # fmt: skip
    database, files = Database(place), Files(place.files)
    try:
        with database.reading() as connection:
            ours = connection.execute(select(schema.meta.c.value).where(schema.meta.c.key == "id")).scalar()
        if others := files.records() - {ours}:
            raise LabError(
                f"{place.files} is used by other records too ({', '.join(sorted(others))})",
                why="which of their files are in use is not known here",
                instead=f"give each project a folder of its own, or delete {files.register} if they are gone",
            )
        # inside a transaction that writes: no commit with a new use is under way, and none begins a study
        with database.writing() as connection:
            keys = used(connection)
            if now:
                _alone(connection, place)
                return files.sweep(keys, grace=0.0, remove=remove)
        return files.sweep(keys, grace=GRACE, remove=remove)
    finally:
        database.close()


def used(connection: Connection) -> set[str]:
    """Keys of all files that a row names."""
    run = schema.run
    columns = (schema.run_file.c.key, run.c.arguments, run.c.result, schema.process.c.diff)
    return {key for key in connection.execute(union(*(select(c) for c in columns))).scalars() if key}


def _alone(connection: Connection, place: Place) -> None:
    if recording(place):
        raise LabError(
            "this process records here",
            why="files of a run that is under way would be taken from it",
            instead="close the study first",
        )
    for row in connection.execute(select(schema.process)).all():
        gone = processes.gone(row.host, row.boot, row.pid, row.started)
        mine = processes.mine(row.host, row.boot, row.pid, row.started)
        silent = gone is None and time.time() - row.heard_at > 7 * 86400
        if not (gone or mine or silent):
            raise LabError(
                f"process {row.pid} on {row.host} may record here",
                why=f"it runs: {row.command}" if gone is False else "nothing can be told of another machine",
                instead="end it, or collect without --now: files older than an hour are safe to remove",
            )


# ------------------------------------------------------------------------------------------- examining


def _copies(database: Database) -> Iterator[Finding]:
    if not database.sqlite:
        return
    path = database.path
    beside = [p for p in path.parent.glob(f"{glob.escape(path.name)}.*") if p.is_file()]
    if beside:
        size = sum(p.stat().st_size for p in beside)
        said = f"{len(beside)} files of upgrades and recoveries beside it ({size / 1e6:.1f} MB): {beside[0].name}, ..."
        yield Finding(False, "database", said, "delete them once you trust the record")


def _tables(connection: Connection, sqlite: bool) -> Iterator[Finding]:
    if not sqlite:
        return
    said = [str(line) for line in connection.execute(text("PRAGMA integrity_check(20)")).scalars()]
    if said != ["ok"]:
        yield Finding(True, "database", "it is damaged: " + "; ".join(said), "microtome lab doctor --recover")
        return
    loose: dict[str, int] = {}
    for table, *_ in connection.execute(text("PRAGMA foreign_key_check")):
        loose[table] = loose.get(table, 0) + 1
    for table, n in loose.items():
        yield Finding(True, "rows", f"{n} rows of {table} name rows that are not there", "microtome lab doctor --recover")  # fmt: skip


def _runs(connection: Connection) -> Iterator[Finding]:
    run, process = schema.run, schema.process
    query = select(run.c.number, process).join(process, run.c.process == process.c.id).where(run.c.state == "running")  # fmt: skip
    states: dict[bool | None, list[Row[Any]]] = {True: [], False: [], None: []}
    for row in connection.execute(query).all():
        states[processes.gone(row.host, row.boot, row.pid, row.started)].append(row)
    if dead := states[True]:
        yield Finding(False, "runs", f"{_list(r.number for r in dead)}: {processes.LOST}", "the next study settles them")  # fmt: skip
    if live := states[False]:
        yield Finding(False, "runs", f"{_list(r.number for r in live)}: running now")
    for row in states[None]:
        hours = (time.time() - row.heard_at) / 3600
        yield Finding(False, "runs", f"run {row.number} runs on {row.host}, last heard of {hours:.1f} h ago")


def _files(connection: Connection, files: Files, stored: dict[str, int], deep: bool) -> Iterator[Finding]:
    link, run = schema.run_file, schema.run
    rows = connection.execute(select(link.c.run, link.c.role, link.c.key, link.c.bytes)).all()
    gone: dict[str, set[int]] = {"is missing": set(), "is damaged": set()}
    checked: dict[str, str] = {}
    for number, _, key, size in rows:
        if key not in checked:
            checked[key] = _state(files, stored, key, size, deep)
        if checked[key]:
            gone[checked[key]].add(number)
    for word, numbers in gone.items():
        if numbers:
            yield Finding(True, "files", f"{_list(numbers)}: a file {word}", "take it from a copy; microtome lab rerun NUMBER")  # fmt: skip
    mine = select(link.c.key).where(link.c.run == run.c.number)
    heads = select(run.c.number).where(run.c.result.is_not(None), run.c.result.not_in(mine))
    if lost := connection.execute(heads).scalars().all():
        yield Finding(True, "files", f"{_list(lost)}: the files of the result are not linked", "take the database from a copy")  # fmt: skip
    wanted = used(connection)
    orphans = [key for key in stored if key not in wanted]
    if orphans:
        size = sum(stored[key] for key in orphans)
        yield Finding(False, "files", f"{len(orphans)} files ({size / 1e6:.1f} MB) that nothing uses", "microtome lab gc")  # fmt: skip
    left = sum(1 for _ in files.root.glob("??/.*.new"))
    if left:
        yield Finding(False, "files", f"{left} leftovers of writers that were killed", "microtome lab gc")


def _state(files: Files, stored: dict[str, int], key: str, size: int, deep: bool) -> str:
    if key not in stored:
        return "is missing"
    if stored[key] != size:
        return "is damaged"
    if deep:
        try:
            files.get(key)
        except LabError:
            return "is damaged"
    return ""


def _seals(rows: list[dict[str, object]]) -> Iterator[Finding]:
    if not any(row["seal"] for row in rows):
        return
    for number in seals.broken(rows):
        yield Finding(True, "predictions", f"prediction {number} was changed after it was made, or one before it is gone",
                      "the record of a score is not to be trusted from there on")  # fmt: skip


def _outcomes(place: Place) -> Iterator[Finding]:
    """Seals cover what was said before a result; how it came out follows from the result, which is stored."""
    from microtome.lab.predicting import redecided
    from microtome.lab.reading import Record

    record = Record(place)
    try:
        for one, held in redecided(record):
            said = "is not decided by" if held is None else f"is {str(held).lower()} by"
            by = "any run" if one.run is None else f"the stored result of run {one.run}"
            yield Finding(True, "predictions", f"prediction {one.number} is recorded as {one.state} and {said} {by}", "its score is not to be trusted")  # fmt: skip
    finally:
        record.close()


def _list(numbers: object) -> str:
    every = sorted(numbers)  # type: ignore[call-overload]
    shown = ", ".join(map(str, every[:10])) + (f" and {len(every) - 10} more" if len(every) > 10 else "")
    return f"run {shown}" if len(every) == 1 else f"runs {shown}"
