"""A file of pairs or labelled texts (CSV, TSV, JSONL, YAML, Parquet) as rows, or one error that says where and what is wrong."""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from microtome.errors import TaskError
from microtome.tasks.checks import quote

__all__ = ["NEEDED", "OPTIONAL", "PAIRS", "Layout", "Row", "check_columns", "read"]
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
    ".parquet": "parquet",
}

Row = tuple[str, Mapping[str, Any]]  # where it stands ("line 4"), and its cells


@dataclass(frozen=True)
class Layout:
    """Which columns a file has.

    noun: what a row is, in errors. closed: other columns are refused; open: only those that resemble an optional one.
    lists: a CSV cell that begins with [" is a JSON list.
    """

    needed: tuple[str, ...]
    optional: tuple[str, ...]
    noun: str
    closed: bool = True
    lists: bool = True
    formats: tuple[str, ...] = ("csv", "tsv", "jsonl", "yaml")

    @property
    def endings(self) -> dict[str, str]:
        """The endings read, and what each means."""
        return {ending: kind for ending, kind in FORMATS.items() if kind in self.formats}

    @property
    def example(self) -> str:
        """What to do about a file without rows."""
        return f"give one row per {self.noun.removesuffix('s')} under the header {','.join(self.needed)}"


PAIRS = Layout(NEEDED, OPTIONAL, "pairs")


def read(path: str | Path, layout: Layout = PAIRS) -> list[Row]:
    """The rows of a file, in order, with the line or item number of each.

    A cell of a CSV file is taken as it stands, leading space included; one that begins with [" is a JSON list
    (a set of answers). JSONL and YAML cells are strings or lists of strings.

    Raises
    ------
    TaskError: no such file, an unknown ending, not UTF-8, empty, a header alone, ragged or malformed rows,
    missing or unknown columns (the nearest is suggested), a column given twice, another separator than the ending says.
    """
    file = Path(path)
    kind = layout.endings.get(file.suffix.lower())
    if kind is None:
        raise TaskError(
            f"{quote(file.name)} does not say what it is by its ending",
            why=f"endings read here: {', '.join(layout.endings)}",
            instead="rename it, or convert it to CSV with the columns " + ", ".join(layout.needed),
        )
    if kind == "parquet":
        rows = _parquet(file, layout)
    else:
        text = read_text(file)
        if not text.strip():
            raise TaskError(
                f"{quote(file.name)} is empty", why=f"it holds no {layout.noun}", instead=layout.example
            )
        rows = {"csv": _csv, "tsv": _tsv, "jsonl": _jsonl, "yaml": _yaml}[kind](text, file.name, layout)
    if not rows:
        raise TaskError(
            f"{quote(file.name)} has a header and no {layout.noun}",
            why="nothing follows its first line",
            instead=layout.example,
        )
    return rows


def _parquet(file: Path, layout: Layout) -> list[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        found = parquet.read_table(file)
    except (OSError, pa.ArrowException) as error:
        short = " ".join(str(error).split())[:200]
        raise TaskError(f"{quote(str(file))} cannot be read", why=short, instead="check the path, or write it again") from error  # fmt: skip
    check_columns(found.column_names, file.name, layout)
    return [(f"{file.name} row {i}", row) for i, row in enumerate(found.to_pylist())]


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


def check_columns(names: Sequence[str], where: str, layout: Layout = PAIRS) -> None:
    """The needed columns are there, nothing else but the optional ones and spans (unless the layout is open), none twice.

    Raises
    ------
    TaskError: otherwise; the nearest column is suggested.
    """
    known = (*layout.needed, *layout.optional)
    missing = [name for name in layout.needed if name not in names]
    for name in names:
        if name in known or (name.startswith(SPAN) and name != SPAN):
            continue
        # an open layout takes any other column, but not one that is a slip of the pen for one that it reads
        wanted = known if layout.closed else (*missing, *layout.optional)
        near = difflib.get_close_matches(
            name.strip().lower(), wanted, n=1, cutoff=0.6 if layout.closed else 0.8
        )
        if layout.closed or (near and near[0] not in names):
            raise TaskError(
                f"{where}: there is no column {quote(name)}",
                why=f"columns: {', '.join(layout.needed)}; optional {', '.join(layout.optional)}, {SPAN}NAME",
                instead=f'did you mean "{near[0]}"?' if near else "remove it",
            )
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise _twice(twice[0], where)
    if missing:
        raise TaskError(
            f"{where}: the column {quote(missing[0])} is missing",
            why=f"found {', '.join(quote(n, 20) for n in names) or 'none'}",
            instead=f"a file of {layout.noun} has the columns {', '.join(layout.needed)}",
        )


def _csv(text: str, name: str, layout: Layout) -> list[Row]:
    return _delimited(text, name, ",", layout)


def _tsv(text: str, name: str, layout: Layout) -> list[Row]:
    return _delimited(text, name, TAB, layout)


def _delimited(text: str, name: str, delimiter: str, layout: Layout) -> list[Row]:
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
                check_columns(header, name, layout)
                continue
            if len(cells) != len(header):
                raise TaskError(
                    f"{where} has {len(cells)} cells, the header {len(header)}",
                    why="a comma or a quote in a prompt splits or joins cells unless the cell is quoted",
                    instead='put text with commas in double quotes, and write " inside it as ""',
                )
            rows.append(
                (
                    where,
                    {k: _cell(v, where) if layout.lists else v for k, v in zip(header, cells, strict=True)},
                )
            )
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


def _jsonl(text: str, name: str, layout: Layout) -> list[Row]:
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
        rows.append((f"{name} line {number}", _object(row, f"{name} line {number}", layout)))
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


def _yaml(text: str, name: str, layout: Layout) -> list[Row]:
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
            f"{name} is not YAML",
            why=short,
            instead=f"write a list of {layout.noun}, each with {', '.join(layout.needed)}",
        ) from error
    if not isinstance(data, list):
        raise TaskError(
            f"{name} holds a {type(data).__name__}",
            why=f"a YAML file of {layout.noun} is a list, one item each",
            instead=f'begin each with "- {layout.needed[0]}: ..."',
        )
    return [(f"{name} item {i}", _object(row, f"{name} item {i}", layout)) for i, row in enumerate(data, 1)]


def _object(row: object, where: str, layout: Layout) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise TaskError(
            f"{where} is a {type(row).__name__}",
            why=f"each of the {layout.noun} is a mapping of column to value",
            instead=f"give it the keys {', '.join(layout.needed)}",
        )
    check_columns([str(key) for key in row], where, layout)
    return {str(key): value for key, value in row.items()}
