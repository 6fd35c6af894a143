"""Which runs are out of date: their code, model or data are not what they were.

The code of a technique is its module and every module that decides its numbers (`microtome.results.source.reach_hash`).
Reading it takes a second for all techniques, so it is kept beside the record until one of the package's files changes.
"""  # fmt: skip

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from microtome.errors import MicrotomeError
from microtome.lab.schema import material, model, run
from microtome.lab.stamps import changed
from microtome.results import registry
from microtome.results.frozen import loads

if TYPE_CHECKING:
    from microtome.lab.reading import Record, RunRow

__all__ = ["stale"]


def stale(record: Record, rows: Sequence[RunRow]) -> dict[int, tuple[str, ...]]:
    """Number of a run -> what changed since it ran, a sentence each; runs of which nothing changed are left out."""
    code = _code(record, {row.method for row in rows if row.code})
    models = _models(record, {row.model_name for row in rows if row.model_name})
    data = _data(record, {mark for row in rows for mark in (row.task, row.data) if mark})
    found: dict[int, tuple[str, ...]] = {}
    for row in rows:
        said = []
        now = code.get(row.method, "")
        if row.code and not now:
            said.append(f"the technique {row.method} is not installed here")
        elif row.code and now != row.code:
            said.append(f"the code of {row.method} has changed")
        latest = models.get(row.model_name, row.model)
        if row.model and latest != row.model:
            said.append(f"{row.model_name} has other weights now ({latest[:12]})")
        said += [why for mark in (row.task, row.data) if (why := data.get(mark))]
        if said:
            found[row.number] = tuple(said)
    return found


def _code(record: Record, methods: Iterable[str]) -> Mapping[str, str]:
    """Method -> hash of its code now."""
    path = record.place.home / "cache" / "code.json"
    mark = _mark()
    known: dict[str, str] = {}
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["mark"] == mark:
            known = {str(k): str(v) for k, v in kept["code"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        known = {}  # a cache: made anew
    missing = [name for name in methods if name not in known]
    if missing:
        from microtome.results.calibration import technique_hash

        known |= {name: technique_hash(name) for name in missing}
        _keep(path, {"mark": mark, "code": known})
    return known


def _keep(path: Path, value: object) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
        fresh.write_text(json.dumps(value), encoding="utf-8")
        os.replace(fresh, path)
    except OSError:
        return  # a project that may only be read: the hashes are computed each time


def _mark() -> str:
    """Changes when any file of the installed package does."""
    root = Path(__file__).parents[1]
    found = hashlib.blake2b(digest_size=16)
    for folder, inner, names in os.walk(root):
        inner.sort()
        for name in sorted(names):
            if name.endswith(".py"):
                stat = os.stat(os.path.join(folder, name))
                found.update(
                    f"{folder}/{name} {stat.st_mtime_ns} {stat.st_size}\n".encode("utf-8", "surrogateescape")
                )
    return found.hexdigest()


def _models(record: Record, names: set[str]) -> dict[str, str]:
    """Name of a model -> the hash that it had in its latest run."""
    if not names:
        return {}
    latest = (
        select(model.c.name, func.max(run.c.number).label("number"))
        .join(run, run.c.model == model.c.hash)
        .where(model.c.name.in_(names))
        .group_by(model.c.name)
        .subquery()
    )
    with record.database.reading() as connection:
        rows = connection.execute(
            select(latest.c.name, run.c.model).join(run, run.c.number == latest.c.number)
        ).all()
    return {str(row[0]): str(row[1]) for row in rows}


def _data(record: Record, marks: set[str]) -> dict[str, str]:
    """Hash of a task or data -> what changed of where it came from; those of which nothing did are left out."""
    if not marks:
        return {}
    wanted = select(material.c.hash, material.c.recipe).where(
        material.c.hash.in_(marks), material.c.recipe.is_not(None)
    )
    with record.database.reading() as connection:
        rows = connection.execute(wanted).all()
    return {row.hash: why for row in rows if (why := _moved(loads(row.recipe)))}


def _moved(recipe: Mapping[str, Any]) -> str:
    if (kept := recipe.get("stamp")) is not None:
        return changed(kept)
    name, version = recipe.get("task"), recipe.get("version")
    if not isinstance(name, str) or not isinstance(version, str):
        return ""
    try:
        now = getattr(registry.get("tasks", name), "version", version)
    except MicrotomeError:
        return f"the task {name} is not installed here"
    return (
        "" if now == version else f"the task {name} draws other prompts now (version {now}, then {version})"
    )
