"""What a learner did, in one plain file that only grows: a YAML list in the project's notebook, an entry an event.

Source of the boxes: S. Leitner, So lernt man lernen (1972): an item that was answered rightly moves up a box and is asked
again after twice as long; one that was not goes back to the first.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microtome.errors import LabError

__all__ = ["Box", "Entry", "append", "boxes", "read"]

UNCOUNTED = ("reading", "talk")
KINDS = (*UNCOUNTED, "quiz", "exercise", "summary")
HIGHEST = 6
LARGEST = 5_000_000
HEAD = "# What was learned, as `microtome tutor` and `microtome quiz` saw it. Only lines at the end are added; edit it freely.\n"
_KEYS = {"date", "topic", "kind", "passed", "minutes", "detail", "answers"}


@dataclass(frozen=True)
class Entry:
    """One thing that was done.

    kind: "reading" or "talk", which are kept but do not count, "quiz", "exercise" or "summary". passed: whether it was good
    enough; of what does not count always False. minutes: spent on it, as far as known. answers: item of the built-in quiz -> answered rightly.

    Raises
    ------
    LabError: no such kind, or one that does not count was passed, or minutes that are no duration.
    """

    date: datetime.date
    topic: str
    kind: str
    passed: bool = False
    minutes: float = 0.0
    detail: str = ""
    answers: Mapping[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise LabError(
                f"an entry of the kind {self.kind!r}", why="it is unknown", instead=", ".join(KINDS)
            )
        if self.kind in UNCOUNTED and self.passed:
            raise LabError(f"{self.kind} was passed", why=f"{self.kind} alone does not count as progress", instead="a quiz, an exercise or a summary")  # fmt: skip
        if not 0 <= self.minutes < 24 * 60:
            raise LabError(f"{self.minutes} minutes", why="it is no time spent on one day", instead="minutes from 0 to 1439")  # fmt: skip


@dataclass(frozen=True)
class Box:
    """Where an item of the quiz stands: box 1 to 6, and the day on which it is to be asked again."""

    number: int
    due: datetime.date


def read(path: Path) -> tuple[Entry, ...]:
    """The entries of a file, in its order; none where there is no file.

    Raises
    ------
    LabError: it cannot be read, is no list of entries, or an entry is wrong (its number is said). Nothing is skipped.
    """
    import yaml

    if not path.exists():
        return ()
    try:
        if path.stat().st_size > LARGEST:
            raise LabError(
                f"{path} is too large", why=f"more than {LARGEST} bytes", instead="move old entries away"
            )
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise LabError(f"{path} cannot be read", why=" ".join(str(error).split()), instead="correct the file by hand") from None  # fmt: skip
    if rows is None:
        return ()
    if not isinstance(rows, list):
        raise LabError(
            f"{path} is no list", why="every entry begins with '- '", instead="correct the file by hand"
        )
    return tuple(_entry(row, f"{path}, entry {number}") for number, row in enumerate(rows, 1))


def _entry(row: Any, where: str) -> Entry:
    wrong = ""
    if not isinstance(row, dict) or not {"date", "topic", "kind"} <= set(row) or set(row) - _KEYS:
        wrong = f"an entry has date, topic, kind, and may have {', '.join(sorted(_KEYS - {'date', 'topic', 'kind'}))}"
    elif type(row["date"]) is not datetime.date:
        wrong = "date is no day such as 2026-01-31"
    elif not all(isinstance(row.get(name, ""), str) for name in ("topic", "kind", "detail")):
        wrong = "topic, kind and detail are texts"
    elif not isinstance(row.get("passed", False), bool) or not _is_number(row.get("minutes", 0)):
        wrong = "passed is true or false, minutes is a number"
    elif not _are_answers(row.get("answers", {})):
        wrong = "answers are 'item: true' or 'item: false'"
    if not wrong:
        try:
            return Entry(**row)
        except LabError as error:
            wrong = f"{error.what}: {error.why}"
    raise LabError(f"{where} is wrong", why=wrong, instead="correct it by hand, or delete it")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_answers(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(k, str) and isinstance(v, bool) for k, v in value.items()
    )


def append(path: Path, entry: Entry) -> None:
    """Add an entry at the end, in one write: two processes that do so at once lose nothing, and comments stay.

    Raises
    ------
    LabError: the file cannot be written.
    """
    import yaml

    row: dict[str, Any] = {
        "date": entry.date,
        "topic": entry.topic,
        "kind": entry.kind,
        "passed": entry.passed,
    }
    row |= {"minutes": round(entry.minutes, 1)} if entry.minutes else {}
    row |= {"detail": entry.detail} if entry.detail else {}
    row |= {"answers": dict(entry.answers)} if entry.answers else {}
    text = yaml.safe_dump([row], sort_keys=False, allow_unicode=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # an editor may have left the last line without its end; a blank line more is nothing to YAML
        lead = HEAD if not path.exists() else "" if path.read_bytes()[-1:] in (b"", b"\n") else "\n"
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(handle, (lead + text).encode("utf-8"))
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise LabError(f"{path} cannot be written", why=str(error), instead="a folder that you can write to") from None  # fmt: skip


def boxes(entries: Iterable[Entry]) -> dict[str, Box]:
    """Where every item that was answered stands after all entries, taken by day: a function of the file alone.

    Box b is due 2^(b-1) days after its last answer: 1, 2, 4, ... 32. A second right answer on the day on which an item is
    not yet due does not move it up.
    """
    found: dict[str, Box] = {}
    for entry in sorted(entries, key=lambda e: e.date):
        for item, right in entry.answers.items():
            now = found.get(item)
            if right and now and entry.date < now.due:
                continue
            number = min((now.number if now else 1) + 1, HIGHEST) if right else 1
            found[item] = Box(number, entry.date + datetime.timedelta(days=2 ** (number - 1)))
    return found
