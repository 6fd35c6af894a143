"""Saving and opening: a folder with result.json, Parquet for tables, safetensors for arrays. Never a pickle.

    result.json            kind, schema_version, query, controls, verdict, labels, digests of all files
    arrays.safetensors     "effects" and "tensors/NAME"
    tables/NAME.parquet
    children/000/ ...      the same again, one folder per child

A folder is written beside its place and renamed into it, so that a reader sees all of it or nothing.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ControlError, ResourceError, ResultError
from .frozen import digest, dumps, freeze_json, loads
from .labelled import Labelled
from .query import Query
from .result import SCHEMA_VERSION, Result, control_as_json
from .verdicts import Control, verdict

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

FORMAT = "microtome.result"
_HEAD, _ARRAYS = "result.json", "arrays.safetensors"


def save(result: Result, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Save a result and its children into a folder that is new, empty, or (``overwrite``) an older result.

    All files are on the disk before the folder appears under its name; an interrupted save leaves the older
    result as it was (should the machine itself stop between the two renames of an overwrite, the older one
    is beside it as ``.NAME.<random>.old``). Returns the folder's absolute path.

    Raises ResultError when the result was not stamped by a technique, when something else is at the path,
    and when a table cannot be written; ResourceError when the disk is full.
    """
    place = Path(folder).expanduser().resolve()
    token = os.urandom(6).hex()
    fresh = place.with_name(f".{place.name}.{token}.new")
    try:
        with _disk_errors(place):
            _check_place(place, overwrite)
            place.parent.mkdir(parents=True, exist_ok=True)
            fresh.mkdir()
            _write(result, fresh)
            _put(fresh, place, place.with_name(f".{place.name}.{token}.old"))
            _sync(place.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # there only if something went wrong
    return place


def open_result(folder: str | Path) -> Result:
    """The result that `save` put into the folder, with its children.

    Every file is compared with the digest noted in result.json (and that with its own), and the verdict is computed again.
    Raises ResultError for a path that is missing, a file, or no result; for missing, changed or damaged
    files; and for a schema newer than this version of Microtome.
    """
    place = Path(folder).expanduser()
    if not place.exists():
        raise ResultError(f"no result at {place}", why="the folder does not exist", instead="check the path")
    if not place.is_dir():
        instead = (
            f"open_result({str(place.parent)!r})"
            if place.name == _HEAD
            else "give the folder that save() made"
        )
        raise ResultError(f"{place} is a file", why="a result is a folder", instead=instead)
    return _read(place)


def _check_place(place: Path, overwrite: bool) -> None:
    if not os.path.lexists(place):
        return
    if not place.is_dir():
        raise ResultError(
            f"{place} is a file", why="a result is saved as a folder", instead="choose another name"
        )
    content = {p.name for p in place.iterdir()}
    if not content:
        return
    foreign = _foreign_files(place)
    if _HEAD not in content or foreign is None:
        raise ResultError(
            f"{place} is not empty and is no result",
            why="saving would destroy what is in it",
            instead="choose a new folder",
        )
    if not overwrite:
        raise ResultError(
            f"{place} holds a result already",
            why="results are not replaced unasked",
            instead="overwrite=True, or a new name",
        )
    if foreign:
        raise ResultError(
            f"{place} holds files that are no part of its result: {', '.join(foreign[:5])}",
            why="overwriting would delete them",
            instead="move them, or choose a new folder",
        )


def _foreign_files(place: Path) -> list[str] | None:
    """Files that the result in `place` does not name; None when there is no readable result."""
    try:
        head = _read_head(place)
        own = {_HEAD, *_names(head, "files")}
        for child in _names(head, "children"):
            inner = _foreign_files(place / "children" / child)
            if inner is None:
                return None
            below = place / "children" / child
            own |= {f"children/{child}/{name}" for name in _all_files(below) if name not in inner}
    except ResultError:
        return None
    return sorted(_all_files(place) - own)


def _all_files(place: Path) -> set[str]:
    return {p.relative_to(place).as_posix() for p in place.rglob("*") if not p.is_dir()}


def _put(fresh: Path, place: Path, aside: Path) -> None:
    """Rename `fresh` to `place`; what was there is put aside first and back again if that fails."""
    if place.exists() and any(place.iterdir()):
        os.rename(place, aside)
        try:
            os.rename(fresh, place)
        except BaseException:
            os.rename(aside, place)
            raise
        shutil.rmtree(aside)
        return
    if place.exists():
        place.rmdir()
    os.rename(fresh, place)


# ------------------------------------------------------------------------------------------ writing


def _write(result: Result, folder: Path) -> str:
    """Write one result into an existing empty folder; the digest of its result.json."""
    if result.query is None:
        raise ResultError(
            f"this {result.kind} has no query",
            why="it was not made by a technique, so nobody could say what was asked",
            instead="build it inside a function with @technique, or give query=Query(...)",
        )
    files: dict[str, str] = {}
    arrays: dict[str, np.ndarray] = {f"tensors/{name}": array for name, array in result.tensors.items()}
    if result.effects is not None:
        arrays["effects"] = result.effects.values
    if arrays:
        from safetensors.numpy import save_file

        save_file(arrays, folder / _ARRAYS)
        files[_ARRAYS] = _seal(folder / _ARRAYS)
    tables = {}
    for name, table in result.tables.items():
        (folder / "tables").mkdir(exist_ok=True)
        path = folder / "tables" / f"{name}.parquet"
        tables[name] = {"json_columns": _write_table(name, table, path)}
        files[f"tables/{name}.parquet"] = _seal(path)
    children = []
    for i, child in enumerate(result.children):
        below = folder / "children" / f"{i:03d}"
        below.mkdir(parents=True)
        files[f"children/{below.name}/{_HEAD}"] = _write(child, below)
        children.append(below.name)
    v, effects = result.verdict, result.effects
    head = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "written_by": _version(),
        "kind": result.kind,
        "query": {**result.query.as_json(), "id": result.query.id},
        "effects": None if effects is None else {"dims": effects.dims, "coords": effects.coords},
        "tables": tables,
        "tensors": tuple(result.tensors),
        "controls": tuple(control_as_json(control) for control in result.controls),
        "verdict": {"word": v.word, "reasons": v.reasons, "mandatory": v.mandatory}
        | {"p": v.p, "alpha": v.alpha, "smallest_p": v.smallest_p},
        "raw_examples": result.raw_examples,
        "children": children,
        "files": files,
    }
    head["digest"] = _head_digest(freeze_json(head, "result"))
    (folder / _HEAD).write_text(dumps(freeze_json(head, "result"), indent=1) + "\n", encoding="ascii")
    sealed = _seal(folder / _HEAD)
    for below in (folder / "tables", folder / "children", folder):
        if below.is_dir():
            _sync(below)
    return sealed


def _head_digest(head: Mapping[str, Any]) -> str:
    return digest(dumps({key: value for key, value in head.items() if key != "digest"}))


def _write_table(name: str, table: pd.DataFrame, path: Path) -> list[str]:
    """Write one table; the names of the columns whose entries are stored as JSON text.

    Columns of Python objects (labels of mixed type, lists) have no Parquet type; JSON keeps them exactly.
    """
    import pandas as pd
    import pyarrow as pa

    as_json = [column for column in table.columns if table[column].dtype == object]
    for column in as_json:
        table[column] = pd.Series([dumps(v) for v in table[column].tolist()], index=table.index, dtype=object)
    try:
        table.to_parquet(path, engine="pyarrow")
    except (pa.ArrowException, TypeError, ValueError) as error:  # UnicodeEncodeError is a ValueError
        raise ResultError(
            f"table {name!r} cannot be written as Parquet",
            why=str(error).splitlines()[0],
            instead="give its columns plain types: numbers, text, booleans, dates",
        ) from error
    return as_json


def _seal(path: Path) -> str:
    """Force a file to the disk; its digest."""
    _sync(path)
    return _file_digest(path)


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"microtome {version('microtome')}"
    except PackageNotFoundError:
        return "microtome (not installed)"


@contextmanager
def _disk_errors(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"no room to save {place}", why=str(error), instead="free some space; nothing was changed"
            ) from error
        raise ResultError(
            f"{place} cannot be written", why=str(error), instead="choose a folder that you may write to"
        ) from error


# ------------------------------------------------------------------------------------------ reading


def _broken(place: Path, why: str) -> ResultError:
    return ResultError(
        f"the result in {place} is damaged", why=why, instead="take it from a copy, or run it again"
    )


def _read_head(place: Path) -> Mapping[str, Any]:
    path = place / _HEAD
    try:
        head = loads(path.read_bytes().decode("ascii"))
    except FileNotFoundError:
        raise ResultError(
            f"no result in {place}", why=f"it has no {_HEAD}", instead="give the folder that save() made"
        ) from None
    except (ValueError, OSError, RecursionError) as error:
        raise _broken(place, f"{_HEAD}: {error}") from error
    if not isinstance(head, Mapping) or head.get("format") != FORMAT:
        raise ResultError(
            f"no result in {place}",
            why=f"{_HEAD} is of another kind",
            instead="give the folder that save() made",
        )
    schema = head.get("schema_version")
    if isinstance(schema, bool) or not isinstance(schema, int) or schema < 1:
        raise _broken(place, f"schema_version is {schema!r}")
    if schema > SCHEMA_VERSION:
        raise ResultError(
            f"the result in {place} has schema version {schema}",
            why=f"this Microtome reads up to {SCHEMA_VERSION} (it was written by {head.get('written_by')})",
            instead="upgrade microtome",
        )
    if head.get("digest") != _head_digest(head):
        raise _broken(place, f"{_HEAD} is not the file that was saved (its digest differs)")
    return head


def _read(place: Path) -> Result:
    head = _read_head(place)
    _check_files(place, head)
    try:
        return _build(place, head)
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # the head lacks or mistypes something
        raise _broken(place, f"{_HEAD}: {type(error).__name__}: {error}") from error
    except (ResultError, ControlError) as error:
        if error.what.startswith("the result in "):
            raise
        raise _broken(place, error.what) from error


def _names(head: Mapping[str, Any], key: str) -> tuple[str, ...]:
    names = tuple(head.get(key, ()))
    for name in names:  # a file from elsewhere may name anything: stay inside the folder
        parts = name.split("/") if isinstance(name, str) else [""]
        if any(part in ("", ".", "..") or "\\" in part or ":" in part for part in parts):
            raise ResultError(
                f"{_HEAD} names the file {name!r}", why="it leads out of the folder", instead="do not use it"
            )
    return names


def _check_files(place: Path, head: Mapping[str, Any]) -> None:
    noted = head.get("files")
    if not isinstance(noted, Mapping):
        raise _broken(place, f"{_HEAD} notes no files")
    needed = {f"tables/{name}.parquet" for name in _names(head, "tables")}
    needed |= {f"children/{name}/{_HEAD}" for name in _names(head, "children")}
    if head.get("tensors") or head.get("effects") is not None:
        needed.add(_ARRAYS)
    if lost := needed - set(_names(head, "files")):
        raise _broken(place, f"{_HEAD} notes no digest for {', '.join(sorted(lost))}")
    for name in sorted(noted):
        path = place / name
        if not path.is_file():
            raise _broken(place, f"{name} is missing")
        try:
            same = _file_digest(path) == noted[name]
        except OSError as error:
            raise _broken(place, f"{name}: {error}") from error
        if not same:
            raise _broken(place, f"{name} is not the file that was saved (its digest differs)")


def _build(place: Path, head: Mapping[str, Any]) -> Result:
    asked = dict(head["query"])
    noted = asked.pop("id")
    query = Query(**asked)
    if query.id != noted:
        raise _broken(place, f"{_HEAD}: the query is not the one that was saved (its id differs)")
    arrays = _read_arrays(place) if _ARRAYS in head["files"] else {}
    effects = None
    if head["effects"] is not None:
        effects = Labelled(arrays["effects"], head["effects"]["dims"], head["effects"]["coords"])
    controls = tuple(Control(**control) for control in head["controls"])
    v = head["verdict"]
    judged = verdict(controls, v["mandatory"], v["p"], v["alpha"], v["smallest_p"])
    if judged != v["word"]:
        raise _broken(place, f"it says {v['word']!r}, but {judged.word!r} follows from its controls")
    return Result(
        kind=head["kind"],
        query=query,
        effects=effects,
        tables={n: _read_table(place, n, t["json_columns"]) for n, t in head["tables"].items()},
        tensors={name: arrays[f"tensors/{name}"] for name in head["tensors"]},
        controls=controls,
        verdict=judged,
        raw_examples=head["raw_examples"],
        children=tuple(_read(place / "children" / name) for name in head["children"]),
    )


def _read_arrays(place: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(place / _ARRAYS)
    except (SafetensorError, OSError) as error:
        raise _broken(place, f"{_ARRAYS}: {error}") from error


def _read_table(place: Path, name: str, json_columns: tuple[str, ...]) -> pd.DataFrame:
    import pandas as pd
    import pyarrow as pa

    try:
        table = pd.read_parquet(place / "tables" / f"{name}.parquet", engine="pyarrow")
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _broken(place, f"tables/{name}.parquet: {error}") from error
    for column in json_columns:
        table[column] = pd.Series([loads(v) for v in table[column].tolist()], index=table.index, dtype=object)
    return table
