"""Where corpora come from: Python's standard library, files, lists, streamed datasets."""

from __future__ import annotations

import ast
import codecs
import hashlib
import inspect
import io
import json
import platform
import re
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from microtome.errors import TaskError
from microtome.results.arguments import suggest
from microtome.tasks.checks import quote
from microtome.tasks.corpus import Corpus, Document, Wanted, digest
from microtome.tasks.rng import shuffled

__all__ = ["dataset", "files", "standard_library", "texts"]

PARTS = "1"  # version of how a module is taken apart; part of the hash
ENDINGS = {
    ".txt": "text",
    ".md": "markdown",
    ".rst": "rst",
    ".py": "code",
    ".jsonl": "row",
    ".ndjson": "row",
    ".parquet": "row",
}
_CHUNK = 1 << 20  # characters of one document of a large file
_NOT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3", "_bundled"}


def _ordered(items: Sequence[Any], seed: int | None) -> Sequence[Any]:
    return items if seed is None else shuffled(items, seed, "corpus/order")


# the standard library


@lru_cache(maxsize=1)
def standard_library() -> Corpus:
    """Docstrings, comments and code of every module (tests left out), and the topics of `help()`."""
    from pydoc_data.topics import topics

    root = Path(sysconfig.get_path("stdlib"))
    found = [p for p in root.rglob("*.py") if not _NOT & set(p.relative_to(root).parts)]
    modules = sorted((p.relative_to(root).as_posix(), p) for p in found if p.name != "topics.py")
    state = hashlib.blake2b(PARTS.encode(), digest_size=16)
    for name, path in modules:
        state.update(digest([name]).encode() + path.read_bytes())
    state.update(digest([part for item in sorted(topics.items()) for part in item]).encode())
    units: list[tuple[str, Path | None]] = [*modules, *((f"help/{name}", None) for name in sorted(topics))]

    def read(seed: int | None, wanted: Wanted) -> Iterator[Document]:
        for name, path in _ordered([unit for unit in units if wanted(unit[0])], seed):
            if path is None:
                yield Document(name, topics[name.removeprefix("help/")], "topic")
                continue
            parts = _parts(path.read_text(encoding="utf-8", errors="replace"))
            yield from (Document(f"{name}#{kind}", text, kind) for kind, text in parts.items())

    told = {
        "source": "standard library",
        "python": platform.python_version(),
        "modules": len(modules),
        "topics": len(topics),
    }
    return Corpus("python", state.hexdigest(), read, told)


def _parts(source: str) -> dict[str, str]:
    """A module taken apart: its docstrings, its comments, and its code without either."""
    try:
        tree = ast.parse(source)
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (SyntaxError, tokenize.TokenError, ValueError):
        return {"code": source}
    lines = source.splitlines()
    holders = [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    docs = []
    for node in holders:
        first = node.body[0] if node.body else None
        if (
            isinstance(first, ast.Expr)
            and isinstance(first.value, ast.Constant)
            and isinstance(first.value.value, str)
        ):
            docs.append(inspect.cleandoc(first.value.value))
            lines[first.lineno - 1 : first.end_lineno] = [""] * (
                (first.end_lineno or first.lineno) - first.lineno + 1
            )
    comments: list[str] = []
    before = -1
    for token in tokens:
        if token.type != tokenize.COMMENT:
            continue
        row, column = token.start
        lines[row - 1] = lines[row - 1][:column].rstrip()
        said = token.string.lstrip("#").strip()
        if row == before + 1 and comments:
            comments[-1] += "\n" + said
        else:
            comments.append(said)
        before = row
    code = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")
    return {"docstrings": "\n\n".join(docs), "comments": "\n\n".join(comments), "code": code}


# files of the user


def files(path: Path, column: str, skip: bool) -> Corpus:
    """A file, or the files of a folder and its folders.

    Raises
    ------
    TaskError: none of a known ending, files that are not UTF-8 (unless `skip`), nothing but empty ones.
    """
    root = path if path.is_dir() else path.parent
    every = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    known = [p for p in every if p.suffix.lower() in ENDINGS]
    if not known:
        there = Counter(p.suffix or "no ending" for p in every).most_common(3)
        raise TaskError(f"{quote(str(path))} has no text", why=f"endings read here: {', '.join(ENDINGS)}; found {dict(there) or 'nothing'}",
                        instead="convert to one of these, or give a list of texts")  # fmt: skip
    state = hashlib.blake2b(column.encode(), digest_size=16)
    bad: list[str] = []
    good: list[tuple[str, Path]] = []
    for p in known:
        name = p.relative_to(root).as_posix()
        problem = _scan(p, name, state)
        if problem:
            bad.append(problem)
        else:
            good.append((name, p))
    if bad and (not skip or not good):
        raise TaskError(f"{len(bad)} of {len(known)} files are not UTF-8: {'; '.join(bad[:5])}", why="another encoding would change the text without a word",
                        instead='save them as UTF-8, or undecodable="skip" leaves them out and lists them')  # fmt: skip
    if not any(p.stat().st_size for _, p in good):
        raise TaskError(
            f"{quote(str(path))} has no text",
            why=f"its {len(good)} files are empty",
            instead="give files with words in them",
        )

    def read(seed: int | None, wanted: Wanted) -> Iterator[Document]:
        for name, p in _ordered(good, seed):
            if p.suffix.lower() not in _READ and not wanted(name):
                continue
            yield from _READ.get(p.suffix.lower(), _plain)(p, name, column)

    told = {"source": path.name, "files": len(good), "skipped": bad, "other_files": len(every) - len(known)}
    return Corpus(path.stem or path.name, state.hexdigest(), read, told)


def _scan(path: Path, name: str, state: Any) -> str:
    """The file into the hash, piece by piece; what is wrong with it as text, "" if nothing."""
    decoder = None if path.suffix.lower() == ".parquet" else codecs.getincrementaldecoder("utf-8")()
    own = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            while piece := file.read(_CHUNK):
                own.update(piece)
                if decoder is not None:
                    decoder.decode(piece)
        if decoder is not None:
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        return f"{name} ({error.reason})"
    except OSError as error:
        raise TaskError(
            f"{quote(name)} cannot be read",
            why=error.strerror or type(error).__name__,
            instead="check its permissions",
        ) from error
    state.update(digest([name, own.hexdigest()]).encode())
    return ""


def _plain(path: Path, name: str, column: str) -> Iterator[Document]:
    kind = ENDINGS[path.suffix.lower()]
    with path.open(encoding="utf-8-sig", newline=None) as file:
        first = file.read(_CHUNK)
        if len(first) < _CHUNK:
            yield Document(name, first, kind)
            return
        part = 0
        while first:
            whole = first + file.readline()  # a part ends where a line does
            yield Document(f"{name}#{part}", whole, kind)
            first, part = file.read(_CHUNK), part + 1


def _jsonl(path: Path, name: str, column: str) -> Iterator[Document]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise TaskError(f"{name} line {number} is not JSON: {quote(line.strip())}", why=str(error), instead="write one JSON object per line") from error  # fmt: skip
            yield Document(f"{name}:{number}", _cell(row, column, f"{name} line {number}"), "row")


def _parquet(path: Path, name: str, column: str) -> Iterator[Document]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise TaskError(
            f"{quote(name)} is not Parquet", why=" ".join(str(error).split())[:200], instead="write it again"
        ) from error
    with file:
        names = file.schema_arrow.names
        if column not in names:
            raise _no_column(column, names, name)
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=[column]):
            for row in batch.to_pylist():
                yield Document(f"{name}:{number}", _cell(row, column, f"{name} row {number}"), "row")
                number += 1


_READ: dict[str, Callable[[Path, str, str], Iterator[Document]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".parquet": _parquet,
}


def _cell(row: Any, column: str, where: str) -> str:
    if not isinstance(row, dict) or column not in row:
        raise _no_column(column, row if isinstance(row, dict) else (), where)
    if not isinstance(row[column], str):
        raise TaskError(
            f"{where}: {quote(column)} is {row[column]!r}",
            why="a document is text",
            instead="leave the row out, or name another column",
        )
    return str(row[column])


def _no_column(column: str, names: Any, where: str) -> TaskError:
    return TaskError(f"{where}: the column {quote(column)} is missing", why=f"found {', '.join(names) or 'none'}",
                     instead=f"column=NAME; {suggest(column, names)}")  # fmt: skip


# lists and datasets


def texts(given: Sequence[str]) -> Corpus:
    """Texts held in a list.

    Raises
    ------
    TaskError: what is no text among them, or nothing but empty ones.
    """
    held = list(given)
    for i, text in enumerate(held):
        if not isinstance(text, str):
            raise TaskError(
                f"text {i} is a {type(text).__name__}",
                why="a corpus is a list of texts",
                instead="give each as str",
            )
    full = [(f"text-{i}", t) for i, t in enumerate(held) if t.strip()]
    if not full:
        raise TaskError(
            f"a corpus of {len(held)} texts with nothing in them",
            why="there is no text to read",
            instead="give texts with words in them",
        )

    def read(seed: int | None, wanted: Wanted) -> Iterator[Document]:
        return (Document(name, text, "text") for name, text in _ordered(full, seed))

    return Corpus(
        "texts",
        digest([t for _, t in full]),
        read,
        {"source": "list", "texts": len(full), "empty": len(held) - len(full)},
    )


_LOOK = 64  # documents of a stream that its hash covers


def dataset(address: str, split: str, column: str) -> Corpus:
    """A Hugging Face dataset, streamed in its own order.

    Raises as `hub.open_dataset`, and TaskError: no such column.
    """
    from microtome.tasks.hub import open_dataset

    def rows() -> Iterator[Any]:
        return iter(open_dataset(address, split, streaming=True)[0])

    _, told = open_dataset(address, split, streaming=True)

    def read(seed: int | None, wanted: Wanted) -> Iterator[Document]:
        for i, row in enumerate(rows()):
            yield Document(f"row-{i}", _cell(row, column, f"{address} row {i}"), "row")

    head = [document.text for document, _ in zip(read(None, lambda _: True), range(_LOOK), strict=False)]
    if not head:
        raise TaskError(
            f"{quote(address)} has no text",
            why=f'its split "{split}" has no rows',
            instead="name another split",
        )
    covers = f"name, split, column, and the first {len(head)} documents: the rest of a stream is not read before it is needed"
    told = {**told, "source": "datasets", "hash_covers": covers}
    return Corpus(str(told["hub"]), digest([str(told["hub"]), split, column, *head]), read, told)
