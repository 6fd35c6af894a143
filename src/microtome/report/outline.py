"""The stages of a result in reading order, with what the result says of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..figures.tables import table_of
from ..figures.text import visible
from ..results.verdicts import VERDICTS
from .prose import title_of

if TYPE_CHECKING:
    from ..results.result import Result

_SAME = 24  # characters by which a note is recognised as a reason that the verdict gives already


@dataclass(frozen=True)
class Stage:
    """One section: its number from 1, the result, the indices of children that lead to it, n and seconds (None: not known)."""

    number: int
    name: str
    result: Result
    path: tuple[int, ...]
    n: int | None = None
    seconds: float | None = None
    note: str = ""

    @property
    def anchor(self) -> str:
        """The id of its section."""
        return f"stage-{self.number}"


@dataclass(frozen=True)
class Refused:
    """A stage that came to no result: `after` is the number of the stage before it (0: none)."""

    name: str
    word: str
    after: int
    n: int | None
    seconds: float | None
    note: str


def heading(stage: Stage) -> str:
    """Its name as a heading."""
    return capital(visible(stage.name, most=80, prose=True))


def capital(text: str) -> str:
    """With a capital letter in front."""
    return text[:1].upper() + text[1:]


def outline(result: Result) -> tuple[Stage, ...]:
    """The stages: the children, each followed by its own; the result itself where it has none."""
    if not result.children:
        return (Stage(1, title_of(result), result, (), prompts_of(result)),)
    found: list[Stage] = []
    _walk(result, (), found)
    return tuple(found)


def _walk(result: Result, path: tuple[int, ...], found: list[Stage]) -> None:
    said = _said(result)
    for i, child in enumerate(result.children):
        row = said[i] if i < len(said) else {}
        n, seconds = _whole(row.get("n")), _real(row.get("seconds"))
        note = _text(row.get("note"))
        if note and note[:_SAME] in {reason[:_SAME] for reason in child.verdict.reasons}:
            note = ""  # the reasons of the verdict stand beside it anyway
        name = str(row.get("stage") or title_of(child))
        found.append(
            Stage(
                len(found) + 1,
                name,
                child,
                (*path, i),
                prompts_of(child) if n is None else n,
                seconds,
                note,
            )
        )
        _walk(child, (*path, i), found)


def _said(result: Result) -> Sequence[dict[Any, Any]]:
    """The rows of tables["stages"] that came to a result, one per child; none where they do not match."""
    ran, _ = _rows(result)
    return ran if len(ran) == len(result.children) else ()


def unlinked(result: Result, found: Sequence[Stage]) -> list[Refused]:
    """Rows of tables["stages"] without a result: stages that were refused, or that cannot be matched."""
    ran, _ = _rows(result)
    matched = len(ran) == len(result.children)
    numbers = [s.number for s in found if len(s.path) == 1]
    table = table_of(result, "stages")
    out, seen = [], 0
    for row in [] if table is None else table.to_dict("records"):
        if matched and row in ran:
            seen += 1
            continue
        after = numbers[seen] - 1 if seen < len(numbers) else (found[-1].number if found else 0)
        word = str(row.get("verdict") or "no result")
        out.append(
            Refused(
                _text(row.get("stage")),
                word,
                after,
                _whole(row.get("n")),
                _real(row.get("seconds")),
                _text(row.get("note")),
            )
        )
    return out


def _rows(result: Result) -> tuple[list[dict[Any, Any]], list[dict[Any, Any]]]:
    """The rows of tables["stages"] with a verdict (or, where there is no such column, all), and the others."""
    table = table_of(result, "stages")
    rows: list[dict[Any, Any]] = [] if table is None else table.to_dict("records")
    ran = [r for r in rows if "verdict" not in r or str(r["verdict"]) in VERDICTS]
    return ran, [r for r in rows if r not in ran]


def prompts_of(result: Result) -> int | None:
    """On how many prompts a result rests, as far as it says."""
    if result.effects is not None and "prompt" in result.effects.coords:
        return len(result.effects.coords["prompt"])
    for name in ("held_out", "sides"):
        table = result.tables.get(name)
        if table is not None and len(table) and "n" in table.columns:
            return _whole(table["n"].iloc[0])
    return None


def _whole(value: Any) -> int | None:
    number = _real(value)
    return None if number is None else int(number)


def _real(value: Any) -> float | None:
    if value is None or value != value or isinstance(value, str):
        return None
    return float(value)


def _text(value: Any) -> str:
    return "" if value is None or value != value else str(value)
