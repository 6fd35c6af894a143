"""A record read: studies and runs as values, results as they were."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Select, func, select

from microtome.errors import LabError
from microtome.escapes import visible
from microtome.lab import place as places
from microtome.lab import processes
from microtome.lab.database import Database
from microtome.lab.files import Files
from microtome.lab.schema import (
    claim,
    control,
    model,
    person,
    prediction,
    process,
    run,
    run_file,
    run_site,
    study,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from microtome.lab.place import Place
    from microtome.results import Result

__all__ = ["ControlRow", "Entry", "FileRow", "Record", "RunRow", "StudyRow", "Wanted", "log", "open_record"]


@dataclass(frozen=True)
class StudyRow:
    """A study: its number, title and person, when it was opened and last closed, and how many runs it has by state."""

    number: int
    key: str
    title: str
    person: str
    opened_at: float
    closed_at: float | None
    runs: int
    failed: int


@dataclass(frozen=True)
class RunRow:
    """A run; see the columns of the table `run`. `state` is "interrupted" also where the process is found gone now.

    title: of its study. by: "person" or "agent". model_name: what the model is called. children: how many runs it called.
    heard_at, host: of its process.
    """

    number: int
    id: str
    parent: int | None
    study: int
    title: str
    person: str
    by: str
    method: str
    version: str
    code: str
    state: str
    begun_at: float
    ended_at: float | None
    seconds: float | None
    memory: int | None
    times: int
    question: dict[str, Any]
    query: str
    model: str
    model_name: str
    task: str
    data: str
    family: str
    seed: int | None
    arguments: str | None
    not_again: str
    called_from: str
    result: str | None
    verdict: str | None
    p: float | None
    error: str
    children: int
    host: str
    heard_at: float
    process: str

    def __repr__(self) -> str:
        of = f" on {self.family}" if self.family else ""
        model = f" in {self.model_name}" if self.model_name else ""
        return visible(
            f"<Run {self.number}: {self.method}{of}{model}, {self.verdict or self.state}, by {self.person}>"
        )

    @property
    def about(self) -> str:
        """Its parameters that say something, in one line."""
        given = self.question.get("parameters", {})
        return ", ".join(f"{k}={_short(v)}" for k, v in given.items() if v not in (None, "", (), []))


@dataclass(frozen=True)
class ControlRow:
    """A control of a run's result."""

    name: str
    mandatory: bool
    gates: bool
    passed: bool | None
    rules_out: str
    expected: str
    observed: str
    n: int | None
    detail: str


@dataclass(frozen=True)
class FileRow:
    """A file of a run."""

    role: str
    name: str
    key: str
    bytes: int


@dataclass(frozen=True)
class Wanted:
    """Which runs: fields left out do not matter.

    below: children of that run; None: runs that no other called, unless `nested`. model: its name, its hash, or the first
    eight digits of that or more. looks: raw looks too. before: only runs with a lower number (for paging).
    """

    study: int | None = None
    method: str | None = None
    family: str | None = None
    model: str | None = None
    state: str | None = None
    verdict: str | None = None
    person: str | None = None
    since: float | None = None
    before: int | None = None
    below: int | None = None
    nested: bool = False
    looks: bool = True


def open_record(folder: str | Path | None = None) -> Record:
    """The record of the project that `folder` (default: the current one) is in. Raises LabError where there is none."""
    return Record(places.here(folder))


class Record:
    """The record of a project, for reading."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.database = Database(place)
        self.files = Files(place.files)

    def studies(self) -> tuple[StudyRow, ...]:
        """Every study, the oldest first."""
        inner = select(func.count()).where(run.c.study == study.c.number, run.c.parent.is_(None))
        failed = inner.where(run.c.state.in_(("failed", "interrupted")))
        query = select(study, inner.scalar_subquery().label("runs"), failed.scalar_subquery().label("failed"))
        with self.database.reading() as connection:
            rows = connection.execute(query.order_by(study.c.number)).mappings().all()
        return tuple(StudyRow(**row) for row in rows)

    def runs(self, wanted: Wanted = Wanted(), limit: int | None = 30) -> tuple[RunRow, ...]:
        """The runs that are wanted, the newest first, at most `limit`."""
        query = _where(_runs(), wanted).order_by(run.c.number.desc())
        cut_off = wanted.state in ("running", "interrupted")  # which of the two, the processes say
        with self.database.reading() as connection:
            rows = connection.execute(query.limit(None if cut_off else limit)).mappings().all()
        found = tuple(_run(row) for row in rows)
        return tuple(row for row in found if row.state == wanted.state)[:limit] if cut_off else found

    def run(self, which: int | str) -> RunRow:
        """One run, by its number or the first digits of its id.

        Raises LabError when there is none, or several.
        """
        number = _as_number(which)
        if number is None and not str(which):
            raise LabError(
                "no run was named", why="the text is empty", instead="microtome lab runs lists them"
            )
        is_id = run.c.id.startswith(str(which), autoescape=True)
        by = is_id if number is None else run.c.number == number
        if isinstance(which, str) and len(which) >= 6:  # an id may begin with nothing but decimals
            by |= is_id
        with self.database.reading() as connection:
            rows = connection.execute(_runs().where(by).limit(2)).mappings().all()
            last = connection.execute(select(func.max(run.c.number))).scalar()
        if len(rows) == 1:
            return _run(rows[0])
        raise LabError(
            f"{'no run' if not rows else 'more than one run'} {which}",
            why=f"the record {self.place.shown} has runs 1 to {last}" if last else "nothing ran yet",
            instead="microtome lab runs lists them",
        )

    def parents(self, number: int) -> tuple[int, ...]:
        """The runs that a run was called by, the outermost last."""
        found = []
        with self.database.reading() as connection:
            at = connection.execute(select(run.c.parent).where(run.c.number == number)).scalar()
            while at is not None:
                found.append(int(at))
                at = connection.execute(select(run.c.parent).where(run.c.number == at)).scalar()
        return tuple(found)

    def controls(self, number: int) -> tuple[ControlRow, ...]:
        """The controls of a run's result, as they were declared."""
        names = [f.name for f in control.c if f.name != "run"]
        query = select(*(control.c[name] for name in names)).where(control.c.run == number)
        with self.database.reading() as connection:
            return tuple(ControlRow(**row) for row in connection.execute(query).mappings().all())

    def sites(self, number: int) -> tuple[str, ...]:
        """The addresses that a run saw; () where that is not known."""
        query = select(run_site.c.site).where(run_site.c.run == number).order_by(run_site.c.site)
        with self.database.reading() as connection:
            return tuple(connection.execute(query).scalars())

    def files_of(self, number: int, role: str | None = None) -> tuple[FileRow, ...]:
        """The files of a run, of one role or all."""
        query = select(run_file).where(run_file.c.run == number)
        if role is not None:
            query = query.where(run_file.c.role == role)
        with self.database.reading() as connection:
            rows = connection.execute(query.order_by(run_file.c.role, run_file.c.name)).mappings().all()
        return tuple(FileRow(r["role"], r["name"], r["key"], r["bytes"]) for r in rows)

    def decided(self, number: int) -> tuple[int, ...]:
        """Numbers of the predictions that a run decided."""
        query = select(prediction.c.number).where(prediction.c.run == number).order_by(prediction.c.number)
        with self.database.reading() as connection:
            return tuple(connection.execute(query).scalars())

    def certificate(self, model_hash: str) -> dict[str, Any] | None:
        """A model's certificate as recorded, None while none was asked for."""
        with self.database.reading() as connection:
            found = connection.execute(select(model.c.certificate).where(model.c.hash == model_hash)).scalar()
        return None if found is None else dict(json.loads(found))

    def result(self, which: int | str) -> Result:
        """The result of a run, every piece compared with its digest.

        Raises LabError: the run has none (it failed, was interrupted, is running, or was a look), or a file is missing.
        """
        from microtome.results import pieces

        row = self.run(which)
        if row.method == "look":
            raise LabError(
                f"run {row.number} has no result",
                why="it was a raw look, and a look keeps no numbers",
                instead="a technique's call is what is kept",
            )
        if row.result is None:
            raise LabError(
                f"run {row.number} has no result",
                why=f"it is {row.state}" + (": " + row.error.splitlines()[0] if row.error else ""),
                instead=f"microtome lab rerun {row.number}",
            )
        keys = {f.name: f.key for f in self.files_of(row.number, "result")}

        def get(name: str) -> bytes:
            if name not in keys:
                raise FileNotFoundError(name)
            return self.files.get(keys[name])

        return pieces.read(get, f"run {row.number}")

    def export(self, which: int | str, folder: str | Path) -> Path:
        """Write a run's result as a folder that `mt.open` reads. Raises what `result` and `Result.save` raise."""
        return self.result(which).save(folder)

    def close(self) -> None:
        """Give back the connections."""
        self.database.close()


def _runs() -> Select[Any]:
    inner = run.alias("inner")
    children = select(func.count()).where(inner.c.parent == run.c.number).scalar_subquery()
    return (
        select(
            run,
            study.c.title,
            person.c.kind.label("by"),
            func.coalesce(model.c.name, "").label("model_name"),
            children.label("children"),
            process.c.host,
            process.c.boot,
            process.c.pid,
            process.c.started,
            process.c.heard_at,
        )
        .join(study, run.c.study == study.c.number)
        .join(person, run.c.person == person.c.name)
        .join(process, run.c.process == process.c.id)
        .outerjoin(model, run.c.model == model.c.hash)
    )


def _where(query: Select[Any], wanted: Wanted) -> Select[Any]:
    same = {"study": wanted.study, "method": wanted.method, "family": wanted.family,
            "verdict": wanted.verdict, "person": wanted.person}  # fmt: skip
    if wanted.state in ("running", "interrupted"):
        query = query.where(run.c.state.in_(("running", "interrupted")))
    elif wanted.state is not None:
        query = query.where(run.c.state == wanted.state)
    for name, value in same.items():
        if value is not None:
            query = query.where(run.c[name] == value)
    if wanted.model is not None:
        given = (
            run.c.model.startswith(wanted.model, autoescape=True)
            if len(wanted.model) >= 8
            else run.c.model == wanted.model
        )
        query = query.where((model.c.name == wanted.model) | given)
    if wanted.since is not None:
        query = query.where(run.c.begun_at >= wanted.since)
    if wanted.before is not None:
        query = query.where(run.c.number < wanted.before)
    if wanted.below is not None:
        query = query.where(run.c.parent == wanted.below)
    elif not wanted.nested:
        query = query.where(run.c.parent.is_(None))
    if not wanted.looks:
        query = query.where(run.c.method != "look")
    return query


def _run(row: Any) -> RunRow:
    values = {name: row[name] for name in RunRow.__dataclass_fields__}
    values["question"] = json.loads(values["question"])
    if values["state"] == "running" and processes.gone(row["host"], row["boot"], row["pid"], row["started"]):
        values["state"] = "interrupted"
        values["error"] = processes.LOST
    return RunRow(**values)


def _as_number(which: int | str) -> int | None:
    if isinstance(which, int) and not isinstance(which, bool):
        return which
    return int(which) if isinstance(which, str) and which.isdecimal() and len(which) < 10 else None


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def newest(connection: Connection) -> int:
    """The highest number of a run, 0 for none."""
    return int(connection.execute(select(func.max(run.c.number))).scalar() or 0)


@dataclass(frozen=True)
class Entry:
    """One thing that happened: at (seconds since 1970), what kind of thing, its number ("" where it has none), who, and
    a line about it."""

    at: float
    kind: str
    number: str
    who: str
    said: str


def log(record: Record, *, since: float | None = None, limit: int = 200) -> tuple[Entry, ...]:
    """What happened in a project, the oldest first: runs that no other called, predictions and how they came out, claims.
    At most `limit`, the newest of them."""
    after = since if since is not None else 0.0
    found = [_of_run(row) for row in record.runs(Wanted(since=since), limit=limit)]
    with record.database.reading() as connection:
        for row in connection.execute(select(prediction)).mappings():
            said = f"{row['statement']}, with {row['probability']:g}" + (
                " (post hoc)" if row["post_hoc"] else ""
            )
            found.append(Entry(row["made_at"], "prediction", str(row["number"]), row["person"], said))
            if row["resolved_at"] is not None:
                by = row["resolved_by"] or f"run {row['run']}"
                found.append(
                    Entry(
                        row["resolved_at"], f"came out {row['state']}", str(row["number"]), by, row["reason"]
                    )
                )
        for row in connection.execute(select(claim)).mappings():
            found.append(Entry(row["made_at"], "claim", str(row["number"]), row["person"], row["statement"]))
            if row["withdrawn_at"] is not None:
                found.append(
                    Entry(
                        row["withdrawn_at"],
                        "withdrawn",
                        str(row["number"]),
                        row["person"],
                        row["why_withdrawn"],
                    )
                )
    kept = sorted((e for e in found if e.at >= after), key=lambda e: (e.at, e.kind, e.number))
    return tuple(kept[-limit:])


def _of_run(row: RunRow) -> Entry:
    what = " ".join(
        part
        for part in (row.method, row.family and f"on {row.family}", row.model_name and f"in {row.model_name}")
        if part
    )
    end = (
        f": {row.verdict or row.state}" if row.method != "look" else f", {row.times} times" * (row.times > 1)
    )
    return Entry(
        row.begun_at, "look" if row.method == "look" else "run", str(row.number), row.person, what + end
    )
