"""Results by reference or whole; stores of activations by their folder."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from microtome.errors import LabError, MicrotomeError

from .opening import Opening
from .values import TAG, bad, building, field
from .writing import Writing

_PART = re.compile(r"(children/\d{3,}/)*(result\.json|arrays\.safetensors|tables/[a-z][a-z0-9_]*\.parquet)")
"""The files of a saved result (`results.store`)."""


def write_result(writing: Writing, value: Any, depth: int) -> Any:
    """A result: by its query where that is recorded, else all its files."""
    if value.query is None:
        return writing.lost(value, "no technique made it, so that it cannot be saved")
    head = {TAG: "result", "query": value.query.id, "numbers": numbers_of(value)}
    if writing.recorded(value.query.id):
        return head
    try:
        return {**head, "files": _save(writing, value)}
    except MicrotomeError as error:
        return writing.lost(value, error.what)


def _save(writing: Writing, value: Any) -> dict[str, str]:
    with tempfile.TemporaryDirectory(prefix="microtome-arguments-") as folder:
        root = value.save(Path(folder) / "result")
        found = sorted(p for p in root.rglob("*") if p.is_file())
        return {p.relative_to(root).as_posix(): writing.put(p.read_bytes(), p.suffix) for p in found}


def read_result(opening: Opening, data: Mapping[str, Any], depth: int) -> Any:
    """The result. Raises LabError where it is damaged, not recorded, or has other numbers than it had."""
    query = field(data, "query", str)
    with building(f"the result of the query {query}"):
        found = _open(opening, field(data, "files", dict)) if "files" in data else opening.result_of(query)
    if found.query is None or found.query.id != query or numbers_of(found) != data.get("numbers"):
        raise LabError(
            f"the result of the query {query} is not the one that was given to this call",
            why="it answers another query, or its numbers differ",
            instead="take the record from a copy, or call the technique anew with the result of today",
        )
    return found


def _open(opening: Opening, files: Mapping[str, Any]) -> Any:
    from microtome.results.store import open_result

    with tempfile.TemporaryDirectory(prefix="microtome-arguments-") as folder:
        root = Path(folder)
        for name, key in files.items():
            if not _PART.fullmatch(name):
                raise bad("a result", f"{name!r} is no file of one")
            place = root / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(opening.get(key))
        return open_result(root)


def numbers_of(result: Any) -> str:
    """Digest of a result's numbers: effects, tensors, tables, controls and verdict, of its children too."""
    from microtome.results.frozen import digest, dumps, freeze_json
    from microtome.results.result import control_as_json

    parts = [
        str(result.verdict),
        dumps(freeze_json([control_as_json(c) for c in result.controls], "controls")),
    ]
    arrays = dict(result.tensors) | ({} if result.effects is None else {"": result.effects.values})
    parts += [f"{name} {a.dtype} {a.shape} {digest(a.tobytes())}" for name, a in sorted(arrays.items())]
    parts += [f"{name} {digest(table.to_csv())}" for name, table in sorted(result.tables.items())]
    return digest("\n".join([*parts, *(numbers_of(child) for child in result.children)]))


def write_store(writing: Writing, value: Any, depth: int) -> Any:
    """A store by its folder and the digest of its manifest, which covers every shard."""
    if value.folder is None or value.temporary:
        return writing.lost(
            value,
            "its activations are in memory or in a temporary folder; mt.store(..., folder=...) keeps them",
        )
    return {TAG: "store", "folder": str(value.folder.absolute()), "manifest": _manifest(value)}


def read_store(opening: Opening, data: Mapping[str, Any], depth: int) -> Any:
    """The store. Raises LabError where it is gone, or was written anew."""
    from microtome.activations.reading import Store

    found = Store.open(field(data, "folder", str))
    if _manifest(found) != data.get("manifest"):
        raise LabError(
            f"the store in {data['folder']} is not the one that was recorded",
            why="its manifest differs",
            instead="put the folder back as it was, or capture and call anew",
        )
    return found


def _manifest(store: Any) -> str:
    from microtome.results.frozen import digest, dumps

    return digest(dumps(store.manifest))
