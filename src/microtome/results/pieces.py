"""A result as named pieces of bytes and back: what a folder, and any other place, stores of it.

    result.json            kind, schema_version, query, controls, verdict, labels, digests of all pieces
    arrays.safetensors     "effects" and "tensors/NAME"
    tables/NAME.parquet
    children/000/ ...      the same again, one folder of names per child

A piece is known by its digest (BLAKE2b, 128 bits); result.json has the digests of all others, so that its own digest names
the whole.
"""  # fmt: skip

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import ControlError, ResultError
from .frozen import digest, dumps, freeze_json, loads
from .labelled import Labelled
from .query import Query
from .result import SCHEMA_VERSION, Result, control_as_json
from .verdicts import Control, verdict

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

__all__ = ["ARRAYS", "FORMAT", "HEAD", "Get", "Known", "Put", "names", "read", "read_head", "write"]

FORMAT = "microtome.result"
HEAD, ARRAYS = "result.json", "arrays.safetensors"

Put = Callable[[str, bytes], str]
"""Stores a piece under its name; its digest."""
Get = Callable[[str], bytes]
"""The piece of that name; raises FileNotFoundError or OSError."""
Known = Callable[[Result, str], "str | None"]
"""For a child and the prefix of its names: the digest of its head where all its pieces are stored already, else None."""


def write(result: Result, put: Put, known: Known | None = None, prefix: str = "") -> str:
    """Store a result and its children piece by piece, the head last; the digest of the head.

    Raises ResultError when the result was not stamped by a technique, and when a table cannot be written.
    """
    if result.query is None:
        raise ResultError(
            f"this {result.kind} has no query",
            why="it was not made by a technique, so nobody could say what was asked",
            instead="build it inside a function with @technique, or give query=Query(...)",
        )
    files: dict[str, str] = {}

    def store(name: str, content: bytes) -> None:
        files[name] = put(prefix + name, content)

    arrays: dict[str, np.ndarray] = {f"tensors/{name}": array for name, array in result.tensors.items()}
    if result.effects is not None:
        arrays["effects"] = result.effects.values
    if arrays:
        from safetensors.numpy import save

        store(ARRAYS, save(arrays))
    tables = {}
    for name, table in result.tables.items():
        content, as_json = _table_bytes(name, table)
        tables[name] = {"json_columns": as_json}
        store(f"tables/{name}.parquet", content)
    children = [f"{i:03d}" for i in range(len(result.children))]
    for name, child in zip(children, result.children, strict=True):
        below = f"{prefix}children/{name}/"
        stored = known(child, below) if known is not None else None
        files[f"children/{name}/{HEAD}"] = stored or write(child, put, known, below)
    head = freeze_json(_head(result, tables, children, files), "result")
    return put(prefix + HEAD, (dumps(head, indent=1) + "\n").encode("ascii"))


def _head(
    result: Result, tables: Mapping[str, Any], children: list[str], files: Mapping[str, str]
) -> dict[str, Any]:
    assert result.query is not None
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
    return {**head, "digest": head_digest(freeze_json(head, "result"))}


def head_digest(head: Mapping[str, Any]) -> str:
    """The digest of a head's content, without the entry that holds it."""
    return digest(dumps({key: value for key, value in head.items() if key != "digest"}))


def _table_bytes(name: str, table: pd.DataFrame) -> tuple[bytes, list[str]]:
    """One table as Parquet; the names of the columns whose entries are stored as JSON text.

    Columns of Python objects (labels of mixed type, lists) have no Parquet type; JSON keeps them exactly.
    """
    import pandas as pd
    import pyarrow as pa

    as_json = [column for column in table.columns if table[column].dtype == object]
    for column in as_json:
        table[column] = pd.Series([dumps(v) for v in table[column].tolist()], index=table.index, dtype=object)
    stream = io.BytesIO()
    try:
        table.to_parquet(stream, engine="pyarrow")
    except (pa.ArrowException, TypeError, ValueError) as error:  # UnicodeEncodeError is a ValueError
        raise ResultError(
            f"table {name!r} cannot be written as Parquet",
            why=str(error).splitlines()[0],
            instead="give its columns plain types: numbers, text, booleans, dates",
        ) from error
    return stream.getvalue(), as_json


@functools.cache  # reading it takes longer than writing a small result
def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"microtome {version('microtome')}"
    except PackageNotFoundError:
        return "microtome (not installed)"


# ------------------------------------------------------------------------------------------ reading


def read(get: Get, place: str, prefix: str = "") -> Result:
    """The result whose pieces `get` gives, with its children; `place` names it in errors.

    Every piece is compared with the digest noted in its head (and the head with its own), and the verdict is computed again.
    Raises ResultError for pieces that are missing, changed or damaged, and for a schema newer than this version.
    """
    head = read_head(get, place, prefix)
    pieces = _checked(get, place, prefix, head)
    try:
        return _build(get, place, prefix, head, pieces)
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # the head lacks or mistypes something
        raise broken(place, f"{HEAD}: {type(error).__name__}: {error}") from error
    except (ResultError, ControlError) as error:
        if error.what.startswith("the result in "):
            raise
        raise broken(place, error.what) from error


def broken(place: str, why: str) -> ResultError:
    """The error for a result that is not as it was saved."""
    return ResultError(
        f"the result in {place} is damaged", why=why, instead="take it from a copy, or run it again"
    )


def read_head(get: Get, place: str, prefix: str = "") -> Mapping[str, Any]:
    """The head alone, checked: its own digest, format and schema version."""
    try:
        head = loads(get(prefix + HEAD).decode("ascii"))
    except FileNotFoundError:
        raise ResultError(
            f"no result in {place}", why=f"it has no {HEAD}", instead="give the folder that save() made"
        ) from None
    except (ValueError, OSError, RecursionError) as error:
        raise broken(place, f"{HEAD}: {error}") from error
    if not isinstance(head, Mapping) or head.get("format") != FORMAT:
        raise ResultError(
            f"no result in {place}",
            why=f"{HEAD} is of another kind",
            instead="give the folder that save() made",
        )
    schema = head.get("schema_version")
    if isinstance(schema, bool) or not isinstance(schema, int) or schema < 1:
        raise broken(place, f"schema_version is {schema!r}")
    if schema > SCHEMA_VERSION:
        raise ResultError(
            f"the result in {place} has schema version {schema}",
            why=f"this Microtome reads up to {SCHEMA_VERSION} (it was written by {head.get('written_by')})",
            instead="upgrade microtome",
        )
    if head.get("digest") != head_digest(head):
        raise broken(place, f"{HEAD} is not the file that was saved (its digest differs)")
    return head


def names(head: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Names that a head lists under `key`, none of which leads out of its folder. Raises ResultError for one that does."""
    found = tuple(head.get(key, ()))
    for name in found:  # a file from elsewhere may name anything: stay inside the folder
        parts = name.split("/") if isinstance(name, str) else [""]
        if any(part in ("", ".", "..") or "\\" in part or ":" in part for part in parts):
            raise ResultError(
                f"{HEAD} names the file {name!r}", why="it leads out of the folder", instead="do not use it"
            )
    return found


def _checked(get: Get, place: str, prefix: str, head: Mapping[str, Any]) -> dict[str, bytes]:
    """Every piece that the head notes, compared with its digest."""
    noted = head.get("files")
    if not isinstance(noted, Mapping):
        raise broken(place, f"{HEAD} notes no files")
    needed = {f"tables/{name}.parquet" for name in names(head, "tables")}
    needed |= {f"children/{name}/{HEAD}" for name in names(head, "children")}
    if head.get("tensors") or head.get("effects") is not None:
        needed.add(ARRAYS)
    if lost := needed - set(names(head, "files")):
        raise broken(place, f"{HEAD} notes no digest for {', '.join(sorted(lost))}")
    pieces = {}
    for name in sorted(noted):
        try:
            content = get(prefix + name)
        except (FileNotFoundError, IsADirectoryError):
            raise broken(place, f"{name} is missing") from None
        except OSError as error:
            raise broken(place, f"{name}: {error}") from error
        if piece_digest(content) != noted[name]:
            raise broken(place, f"{name} is not the file that was saved (its digest differs)")
        pieces[name] = content
    return pieces


def piece_digest(content: bytes) -> str:
    """The digest by which a piece is known."""
    import hashlib

    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _build(get: Get, place: str, prefix: str, head: Mapping[str, Any], pieces: Mapping[str, bytes]) -> Result:
    asked = dict(head["query"])
    noted = asked.pop("id")
    query = Query(**asked)
    if query.id != noted:
        raise broken(place, f"{HEAD}: the query is not the one that was saved (its id differs)")
    arrays = _arrays(place, pieces[ARRAYS]) if ARRAYS in pieces else {}
    effects = None
    if head["effects"] is not None:
        effects = Labelled(arrays["effects"], head["effects"]["dims"], head["effects"]["coords"])
    controls = tuple(Control(**control) for control in head["controls"])
    v = head["verdict"]
    judged = verdict(controls, v["mandatory"], v["p"], v["alpha"], v["smallest_p"])
    if judged != v["word"]:
        raise broken(place, f"it says {v['word']!r}, but {judged.word!r} follows from its controls")
    tables = {n: _table(place, n, pieces, t["json_columns"]) for n, t in head["tables"].items()}
    return Result(
        kind=head["kind"],
        query=query,
        effects=effects,
        tables=tables,
        tensors={name: arrays[f"tensors/{name}"] for name in head["tensors"]},
        controls=controls,
        verdict=judged,
        raw_examples=head["raw_examples"],
        children=tuple(
            read(get, f"{place}/children/{name}", f"{prefix}children/{name}/") for name in head["children"]
        ),
    )


def _arrays(place: str, content: bytes) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(content)
    except SafetensorError as error:
        raise broken(place, f"{ARRAYS}: {error}") from error


def _table(place: str, name: str, pieces: Mapping[str, bytes], json_columns: tuple[str, ...]) -> pd.DataFrame:
    import pandas as pd
    import pyarrow as pa

    try:
        table = pd.read_parquet(io.BytesIO(pieces[f"tables/{name}.parquet"]), engine="pyarrow")
    except (pa.ArrowException, OSError, ValueError) as error:
        raise broken(place, f"tables/{name}.parquet: {error}") from error
    for column in json_columns:
        table[column] = pd.Series([loads(v) for v in table[column].tolist()], index=table.index, dtype=object)
    return table
