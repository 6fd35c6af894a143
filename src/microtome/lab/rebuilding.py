"""Rows that a recovery makes anew: runs of results whose files are there, and what stands for rows that are gone."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, delete, insert, select, union, update

from microtome.errors import LabError, ResultError
from microtome.lab import keeping, schema
from microtome.lab.arguments import sites_of
from microtome.results import pieces

if TYPE_CHECKING:
    from sqlalchemy import Column, Connection

    from microtome.lab.files import Files
    from microtome.results import Result

__all__ = ["NOT_AGAIN", "STUDY", "from_files", "links", "loose", "placeholders"]

STUDY = "recovered"
"""Title of the study that runs without a known one are in."""
NOT_AGAIN = "its row was lost and made again from its files: when it ran, by whom and with which arguments is not known"
_NOBODY = "unknown"


def from_files(connection: Connection, files: Files) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Make a finished run of every result in the files that no run has and that is no child of another.

    Returns the new runs' numbers, and the keys of heads that cannot be read whole.
    """
    link = schema.run_file
    known = set(connection.execute(select(link.c.key)).scalars())
    heads = {key: stat.st_mtime for key, stat in files.stored() if key.endswith(".json") and key not in known}
    suffixes = {key[:32]: key for key, _ in files.stored()}
    found: dict[str, tuple[Result, dict[str, str], float]] = {}
    unreadable, children = [], set()
    for key, at in heads.items():
        head = _head(files, key)
        if head is None:
            continue
        names = _names(files, key, head, suffixes)
        children |= {names[name] for name in names if name.startswith("children/") and name.endswith(f"/{pieces.HEAD}")}  # fmt: skip
        try:
            found[key] = (pieces.read(lambda name, names=names: files.get(names[name]), key), names, at)  # type: ignore[misc]
        except (LabError, ResultError, KeyError):
            unreadable.append(key)
    numbers = [_run(connection, *found[key], files) for key in sorted(found, key=lambda k: found[k][2]) if key not in children]  # fmt: skip
    return tuple(numbers), tuple(key for key in unreadable if key not in children)


def links(connection: Connection, files: Files) -> int:
    """Link runs to the files of their results again where that was lost; how many rows."""
    link, made = schema.run_file, 0
    suffixes = {key[:32]: key for key, _ in files.stored()}
    for number, key in connection.execute(select(schema.run.c.number, schema.run.c.result)).all():
        head = _head(files, key) if key is not None else None
        if head is None:
            continue
        mine = select(link.c.name).where(link.c.run == number, link.c.role == "result")
        known = set(connection.execute(mine).scalars())
        fresh = [(n, k) for n, k in _names(files, key, head, suffixes).items() if n not in known]
        keeping.link(connection, number, "result", fresh, files)
        made += len(fresh)
    return made


def _head(files: Files, key: str) -> dict[str, Any] | None:
    """A result's head, None for any other JSON."""
    try:
        return dict(pieces.read_head(lambda _name: files.get(key), key))
    except (ResultError, LabError):
        return None


def _names(files: Files, key: str, head: dict[str, Any], suffixes: dict[str, str], prefix: str = "") -> dict[str, str]:  # fmt: skip
    """Name -> key of all pieces that are there, as `run_file` has them."""
    names = {prefix + pieces.HEAD: key}
    for name, digest in head["files"].items():
        at = suffixes.get(digest)
        if at is None:
            continue
        names[prefix + name] = at
        if name.endswith(f"/{pieces.HEAD}") and (inner := _head(files, at)) is not None:
            names |= _names(files, at, inner, suffixes, prefix + name[: -len(pieces.HEAD)])
    return names


def _run(connection: Connection, result: Result, names: dict[str, str], at: float, files: Files) -> int:
    query = result.query
    assert query is not None
    asked = dict(query.as_json())
    row = {
        "id": os.urandom(8).hex(), "parent": None, "study": _study(connection), "process": _process(connection, "recovered"),
        "person": _person(connection, _NOBODY), "method": query.method, "version": query.version, "code": "", "state": "finished",
        "begun_at": at, "ended_at": at, "seconds": None, "memory": None, "times": 1, "question": json.dumps(asked, sort_keys=True),
        "query": query.id, "model": query.model or "", "task": query.task or "", "data": query.data or "", "family": "", "seed": query.seed,
        "arguments": None, "not_again": NOT_AGAIN, "called_from": "", "result": names[pieces.HEAD], "verdict": str(result.verdict),
        "p": result.verdict.p, "error": "",
    }  # fmt: skip
    done = connection.execute(insert(schema.run), row).inserted_primary_key
    assert done is not None
    number = int(done[0])
    keeping.link(connection, number, "result", names.items(), files)
    keeping.controls(connection, number, result)
    keeping.sites(connection, number, sites_of(result.kind, {}, result))
    return number


# ----------------------------------------------------------------------------- what stands for what is gone


def placeholders(connection: Connection) -> int:
    """Rows for people, processes and studies that are named and gone; how many. What was recorded of them is not made up."""
    made = 0
    for table, make in ((schema.person, _person), (schema.process, _process), (schema.study, _study)):
        for value in _missing(connection, next(iter(table.primary_key))):
            make(connection, value)
            made += 1
    return made


def loose(connection: Connection) -> dict[str, int]:
    """Names of rows that are gone are taken out where a row says something without them; else the row is. Counts by table."""
    counts: dict[str, int] = {}
    changed = True
    while changed:
        changed = False
        for table in schema.metadata.sorted_tables:
            for key in table.foreign_keys:
                here, there = key.parent, key.column
                gone = and_(here.is_not(None), here.not_in(select(there.table.alias().c[there.name])))
                work = update(table).values({here.name: None}) if here.nullable else delete(table)
                n = connection.execute(work.where(gone)).rowcount
                counts[table.name] = counts.get(table.name, 0) + n
                changed |= n > 0
    return counts


def _missing(connection: Connection, target: Column[Any]) -> list[Any]:
    columns = [key.parent for table in schema.metadata.sorted_tables for key in table.foreign_keys if key.column is target]  # fmt: skip
    named = union(*(select(column).where(column.is_not(None)) for column in columns))
    known = set(connection.execute(select(target)).scalars())
    return sorted(value for value in connection.execute(named).scalars() if value not in known)


def _person(connection: Connection, name: str) -> str:
    if connection.execute(select(schema.person.c.name).where(schema.person.c.name == name)).first() is None:
        connection.execute(insert(schema.person), {"name": name, "kind": "person", "since": time.time()})
    return name


def _process(connection: Connection, mark: str) -> str:
    if connection.execute(select(schema.process.c.id).where(schema.process.c.id == mark)).first() is None:
        row = {"id": mark, "host": _NOBODY, "boot": "", "pid": 0, "started": 0.0, "heard_at": 0.0, "command": "",
               "versions": "{}", "commit": "", "diff": None}  # fmt: skip
        connection.execute(insert(schema.process), row)
    return mark


def _study(connection: Connection, number: int | None = None) -> int:
    study = schema.study
    title = STUDY if number is None else f"{STUDY} {number}"
    known = connection.execute(select(study.c.number).where(study.c.title == title)).scalar()
    if known is not None:
        return int(known)
    row = {"key": os.urandom(8).hex(), "title": title, "person": _person(connection, _NOBODY), "opened_at": time.time()}  # fmt: skip
    done = connection.execute(insert(study), row | ({} if number is None else {"number": number})).inserted_primary_key  # fmt: skip
    assert done is not None
    return int(done[0])
