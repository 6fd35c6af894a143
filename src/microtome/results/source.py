"""The hash of the code that made a number, so that what was measured of it can go out of date."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any


def code_hash(function: Any) -> str:
    """Hex digest of the source that a function comes from: of its whole file, since helpers beside it count.

    Without a file (a notebook cell, a console): of its own source, else of its byte code and constants.
    """
    import inspect

    function = inspect.unwrap(function)
    try:
        path = inspect.getsourcefile(function)
        if path is not None:
            with open(path, encoding="utf-8") as stream:  # text mode: the same with Windows' line ends
                return _digest(stream.read())
    except (OSError, TypeError, UnicodeDecodeError):
        pass  # no file
    try:
        return _digest(inspect.getsource(function))
    except (OSError, TypeError):
        return _digest(_code_text(getattr(function, "__code__", None)) or repr(type(function)))


def _code_text(code: Any) -> str:
    """Byte code, names and constants, nested functions included: reprs of code objects hold addresses."""
    if code is None:
        return ""
    import inspect

    constants = [_code_text(c) if inspect.iscode(c) else repr(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def _digest(text: str) -> str:
    import hashlib

    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


DECIDE = ("methods", "circuits", "features", "controls", "graph")
"""Packages whose code decides what a technique says, beside the technique's own module (docs/decisions/0015)."""
_ROOT = __package__.rpartition(".")[0]


@functools.lru_cache(maxsize=64)
def reach_hash(module: str) -> str:
    """Hex digest of a module and of every module of DECIDE that it imports, directly or through others of them.

    Docstrings, comments, blank lines and what only type checkers import are left out, and so are the packages' `__init__`
    files, which list names. The same on every platform and version of Python. "" for a module without a file.
    """
    seen: dict[str, str] = {}
    open_ = [module]
    while open_:
        name = open_.pop()
        if name in seen:
            continue
        found = _read(name)
        if found is None:
            continue
        seen[name], imports = found
        open_ += [i for i in imports if i not in seen and _decides(i)]
    if module not in seen:
        return ""
    return _digest("\n".join(f"{name}\n{seen[name]}" for name in sorted(seen)))


def _decides(name: str) -> bool:
    root, _, rest = name.partition(".")
    return root == _ROOT and rest.partition(".")[0] in DECIDE and "." in rest


@functools.lru_cache(maxsize=512)
def _read(name: str) -> tuple[str, tuple[str, ...]] | None:
    """(the text that counts, what it imports by full names); None where there is no such file."""
    import ast

    path = _file(name)
    if path is None:
        return None
    with open(path, encoding="utf-8") as stream:
        text = stream.read()
    tree = ast.parse(text)
    return _bare(text, tree), tuple(dict.fromkeys(_imports(name, tree)))


def _file(name: str) -> str | None:
    """The file of a module, found without importing anything of Microtome; None for packages and what is no module."""
    from importlib.util import find_spec
    from pathlib import Path

    root, _, rest = name.partition(".")
    if root == _ROOT:
        path = Path(__file__).parents[1].joinpath(*rest.split(".")).with_suffix(".py")
        return str(path) if rest and path.is_file() else None
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return None
    usable = (
        spec is not None
        and spec.origin
        and spec.origin.endswith(".py")
        and not spec.submodule_search_locations
    )
    return spec.origin if spec is not None and usable else None


def _bare(text: str, tree: Any) -> str:
    """The lines that count."""
    import ast

    gone: set[int] = set()
    strings: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body
            if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
                gone |= _lines(body[0])
        elif isinstance(node, ast.If) and _for_checkers(node):
            gone |= _lines(node)
        elif isinstance(node, (ast.Constant, ast.JoinedStr)) and node.end_lineno != node.lineno:
            strings |= _lines(node)
    kept = []
    for i, line in enumerate(text.splitlines(), 1):
        plain = line.strip()
        if i not in gone and (i in strings or (plain and not plain.startswith("#"))):
            kept.append(line.rstrip())
    return "\n".join(kept)


def _lines(node: Any) -> set[int]:
    return set(range(node.lineno, node.end_lineno + 1))


def _for_checkers(node: Any) -> bool:
    return getattr(node.test, "id", getattr(node.test, "attr", "")) == "TYPE_CHECKING" and not node.orelse


def _imports(name: str, tree: Any) -> Iterator[str]:
    import ast

    checked: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and _for_checkers(node):
            checked |= _lines(node)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and node.lineno not in checked:
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.lineno not in checked:
            above = name.rsplit(".", node.level)[0] if node.level else ""
            base = ".".join(part for part in (above, node.module or "") if part)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)  # where it is a module
