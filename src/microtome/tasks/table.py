"""A file of pairs (CSV, TSV, JSONL, YAML) as rows, or one error that says which line and what is wrong."""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from microtome.errors import TaskError
from microtome.tasks.checks import quote

__all__ = ["NEEDED", "OPTIONAL", "Row", "check_columns", "read", "read_text", "unique"]

NEEDED = ("clean", "corrupt", "answer", "wrong")
OPTIONAL = ("template", "entity", "group")
SPAN = "span:"
TAB = "\t"
FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".yaml": "yaml",
    ".yml": "yaml",
}

Row = tuple[str, Mapping[str, Any]]  # where it stands ("line 4"), and its cells


def read(path: str | Path) -> list[Row]:
    """The rows of a file, in order, with the line or item number of each.

    A cell of a CSV file is taken as it stands, leading space included; one that begins with [" is a JSON list
    (a set of answers). JSONL and YAML cells are strings or lists of strings.

    Raises
    ------
    TaskError: no such file, an unknown ending, not UTF-8, empty, a header alone, ragged or malformed rows,
    missing or unknown columns (the nearest is suggested), a column given twice, another separator than the ending says.
    """
    file = Path(path)
    kind = FORMATS.get(file.suffix.lower())
    if kind is None:
        raise TaskError(
            f"{quote(file.name)} does not say what it is by its ending",
            why=f"endings read here: {', '.join(FORMATS)}",
            instead="rename it, or convert it to CSV with the columns " + ", ".join(NEEDED),
        )
    text = read_text(file)
    if not text.strip():
        raise TaskError(f"{quote(file.name)} is empty", why="it holds no pairs", instead=_example())
    rows = {"csv": _csv, "tsv": _tsv, "jsonl": _jsonl, "yaml": _yaml}[kind](text, file.name)
    if not rows:
        raise TaskError(
            f"{quote(file.name)} has a header and no pairs",
            why="nothing follows its first line",
            instead=_example(),
        )
    return rows


def _example() -> str:
    return f"give one row per pair under the header {','.join(NEEDED)}"


def read_text(file: Path) -> str:
    """A file's text, a byte order mark left out. Raises TaskError where it cannot be read or is not UTF-8."""
    try:
        data = file.read_bytes()
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise TaskError(f"{quote(str(file))} cannot be read", why=why, instead="check the path") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        line = data[: error.start].count(b"\n") + 1
        raise TaskError(
            f"{quote(file.name)} is not UTF-8: byte {data[error.start]:#04x} at offset {error.start} (line {line})",
            why="it begins like UTF-16"
            if wide
            else "another encoding would change the prompts without a word",
            instead="save it as UTF-8",
        ) from error


def check_columns(names: Sequence[str], where: str) -> None:
    """The needed columns are there, nothing else but the optional ones and spans, none twice."""
    known = (*NEEDED, *OPTIONAL)
    for name in names:
        if name not in known and not (name.startswith(SPAN) and name != SPAN):
            near = difflib.get_close_matches(name.strip().lower(), known, n=1, cutoff=0.6)
            raise TaskError(
                f"{where}: there is no column {quote(name)}",
                why=f"columns: {', '.join(NEEDED)}; optional {', '.join(OPTIONAL)}, {SPAN}NAME",
                instead=f'did you mean "{near[0]}"?' if near else "remove it",
            )
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise _twice(twice[0], where)
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise TaskError(
            f"{where}: the column {quote(missing[0])} is missing",
            why=f"found {', '.join(quote(n, 20) for n in names) or 'none'}",
            instead=f"a file of pairs has the columns {', '.join(NEEDED)}",
        )


def _csv(text: str, name: str) -> list[Row]:
    return _delimited(text, name, ",")


def _tsv(text: str, name: str) -> list[Row]:
    return _delimited(text, name, TAB)


def _delimited(text: str, name: str, delimiter: str) -> list[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    rows: list[Row] = []
    before = 0
    try:
        for cells in reader:
            where, before = f"{name} line {before + 1}", reader.line_num
            if not cells:
                continue
            if not header:
                header = cells
                _check_separator(header, name, delimiter)
                check_columns(header, name)
                continue
            if len(cells) != len(header):
                raise TaskError(
                    f"{where} has {len(cells)} cells, the header {len(header)}",
                    why="a comma or a quote in a prompt splits or joins cells unless the cell is quoted",
                    instead='put text with commas in double quotes, and write " inside it as ""',
                )
            rows.append((where, {k: _cell(v, where) for k, v in zip(header, cells, strict=True)}))
    except csv.Error as error:
        raise TaskError(
            f"{name} line {reader.line_num}: {error}",
            why="the file is not well-formed CSV",
            instead="check the quotes on that line",
        ) from error
    return rows


def _check_separator(header: Sequence[str], name: str, delimiter: str) -> None:
    """Spreadsheets of some languages write semicolons into what they call CSV."""
    if len(header) > 1 or not header:
        return
    for other, word in ((";", "semicolons"), ("\t", "tabs"), (",", "commas")):
        if other != delimiter and other in header[0]:
            raise TaskError(
                f"{name} separates its columns by {word}",
                why=f"by its ending it has {'tabs' if delimiter == TAB else 'commas'}; guessing would cut prompts",
                instead="save it with commas, or with tabs as .tsv",
            )


def _cell(text: str, where: str) -> Any:
    if not text.startswith('["'):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise TaskError(
            f"{where}: {quote(text)} begins like a JSON list and is none",
            why=str(error),
            instead='write ["a", "b"]',
        ) from error


def _jsonl(text: str, name: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=partial(unique, where=f"{name} line {number}"))
        except (ValueError, RecursionError) as error:
            raise TaskError(
                f"{name} line {number} is not JSON: {quote(line)}",
                why=str(error),
                instead="write one JSON object per line",
            ) from error
        rows.append((f"{name} line {number}", _object(row, f"{name} line {number}")))
    return rows


def unique(cells: Sequence[tuple[Any, Any]], where: str, what: str = "column") -> dict[Any, Any]:
    """A mapping from its cells; JSON and YAML would keep the last of two that have one name, without a word."""
    names = [name for name, _ in cells]
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise _twice(str(twice[0]), where, what)
    return dict(cells)


def _twice(name: str, where: str, what: str = "column") -> TaskError:
    return TaskError(
        f"{where}: the {what} {quote(name)} is there twice",
        why="one of them would be lost",
        instead="remove one",
    )


def _yaml(text: str, name: str) -> list[Row]:
    import yaml

    class Loader(yaml.SafeLoader):
        """Plain data only, and no name twice."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            unique([(key, None) for key in names], f"{name} line {node.start_mark.line + 1}")
            return super().construct_mapping(node, deep)

    try:
        data = yaml.load(text, Loader)
    except (yaml.YAMLError, RecursionError) as error:
        short = " ".join(str(error).split())[:200]
        raise TaskError(
            f"{name} is not YAML", why=short, instead="write a list of pairs, each with " + ", ".join(NEEDED)
        ) from error
    if not isinstance(data, list):
        raise TaskError(
            f"{name} holds a {type(data).__name__}",
            why="a YAML file of pairs is a list, one item per pair",
            instead='begin each pair with "- clean: ..."',
        )
    return [(f"{name} item {i}", _object(row, f"{name} item {i}")) for i, row in enumerate(data, 1)]


def _object(row: object, where: str) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise TaskError(
            f"{where} is a {type(row).__name__}",
            why="a pair is a mapping of column to value",
            instead=f"give each pair the keys {', '.join(NEEDED)}",
        )
    check_columns([str(key) for key in row], where)
    return {str(key): value for key, value in row.items()}
