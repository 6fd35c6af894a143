"""What commands print with: tables for people, plain columns for pipes, JSON for programs."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from microtome.escapes import visible

if TYPE_CHECKING:
    from rich.console import Console

Row = Sequence[object]


def stdout() -> Console:
    """A console on stdout, made anew so that redirection is seen. Markup in text is never interpreted."""
    return _console(sys.stdout)


def stderr() -> Console:
    """The same on stderr: for errors, progress and whatever is no result."""
    return _console(sys.stderr)


def _console(file: TextIO | None) -> Console:
    from io import StringIO

    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            """Leave it to `failures.guard`, as for every other way of writing."""
            raise  # noqa: PLE0704 - rich calls this while it handles the BrokenPipeError

    # a stream that was closed is None; rich would take stdout instead, and errors would stand in the middle of results
    return Plain(file=StringIO() if file is None else file, markup=False, highlight=False, emoji=False)


def say(text: str, *, style: str = "") -> None:
    """One line on stdout, never wrapped when nobody watches."""
    console = stdout()
    console.print(visible(text), style=style or None, soft_wrap=not console.is_terminal)


def table(head: Sequence[str], rows: Sequence[Row], *, title: str = "", to: Console | None = None) -> None:
    """Rows under a head: a drawn table on a terminal, else aligned columns without lines or truncation."""
    console = to or stdout()
    cells = [[visible(cell) for cell in row] for row in rows]
    if not console.is_terminal:
        _columns([list(head), *cells], title, console)
        return
    words = [max(map(_longest_word, column)) for column in zip(head, *cells, strict=True)]
    if sum(words) + 3 * len(words) > console.width:
        _stacked(head, cells, title, console)
        return
    from rich import box
    from rich.table import Table

    drawn = Table(
        title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
    numeric = [all(_is_number(row[i]) for row in cells if row[i]) for i in range(len(head))]
    for name, right, least in zip(head, numeric, words, strict=True):
        drawn.add_column(
            name, justify="right" if right and cells else "left", overflow="fold", min_width=least
        )
    for row in cells:
        drawn.add_row(*row)
    console.print(drawn)


def _longest_word(cell: str) -> int:
    from rich.cells import cell_len

    return max(map(cell_len, cell.split()), default=0)


def _stacked(head: Sequence[str], rows: Sequence[Sequence[str]], title: str, console: Console) -> None:
    """A table for a terminal that is too narrow to draw it without cutting words: one line per filled cell."""
    if title:
        console.print(title, style="bold")
    for row in rows:
        console.print(f"{head[0]}: {row[0]}", style="bold")
        for name, cell in zip(head[1:], row[1:], strict=True):
            if cell:
                console.print(f"  {name}: {cell}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _columns(rows: Sequence[Sequence[str]], title: str, console: Console) -> None:
    from rich.cells import cell_len

    widths = [max(cell_len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [title] if title else []
    for row in rows:
        padded = [cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(padded).rstrip())
    console.print("\n".join(lines), soft_wrap=True)


def number(value: object, digits: int = 3) -> str:
    """A number as people read it, a count in full; nothing for a number that is not there."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, int | float):
        return "" if value is None else str(value)
    return "" if math.isnan(value) else f"{value:.{digits}g}"


def interval(low: float, high: float) -> str:
    """ "[0.1, 0.3]"; one number where both are the same, nothing where either is not known."""
    if low != low or high != high:
        return ""
    return number(low) if low == high else f"[{number(low)}, {number(high)}]"


def print_json(data: object) -> None:
    """JSON on stdout: ASCII, two spaces, NaN as null."""
    import json

    sys.stdout.write(json.dumps(plain(data), indent=2, ensure_ascii=True, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """Dataclasses, mappings, NumPy scalars, frames and paths as what JSON has."""
    from dataclasses import fields, is_dataclass

    if isinstance(value, bool | str | int) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if hasattr(value, "to_dict") and hasattr(value, "columns"):
        return [plain(row) for row in value.to_dict(orient="records")]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)
