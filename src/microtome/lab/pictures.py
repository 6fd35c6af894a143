"""Pictures of recorded results, drawn once and kept with their run.

They are drawn from the stored result when a study closes, as long as that takes a blink, else when somebody asks.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sqlalchemy import insert, select

from microtome.errors import MicrotomeError
from microtome.lab.reading import FileRow, Record
from microtome.lab.schema import run_file
from microtome.results.events import ObserverWarning

if TYPE_CHECKING:
    from microtome.results import Result

__all__ = ["draw", "keep"]

BUDGET = 2.0
"""Seconds that drawing may take when a study closes."""
WIDTH = 640


def keep(record: Record, numbers: Sequence[int], *, budget: float = BUDGET) -> int:
    """Draw and keep the pictures of these runs, the last first, for at most `budget` seconds; of how many runs."""
    until = time.monotonic() + budget
    done = 0
    for number in reversed(numbers):
        if time.monotonic() > until:
            break
        draw(record, number)
        done += 1
    return done


def draw(record: Record, number: int) -> tuple[FileRow, ...]:
    """The pictures of a run as SVG files of the record, drawn now where they are not kept yet.

    Raises LabError for a run without a result.
    """
    kept = record.files_of(number, "figure")
    if kept:
        return kept
    made = [(name, record.files.put(text.encode("utf-8"), ".svg"), len(text.encode("utf-8")))
            for name, text in _svgs(record.result(number))]  # fmt: skip
    rows = [
        {"run": number, "role": "figure", "name": name, "key": key, "bytes": size} for name, key, size in made
    ]
    if rows:
        with record.database.writing(durable=False) as connection:
            there = select(run_file.c.run).where(run_file.c.run == number, run_file.c.role == "figure")
            if connection.execute(there).first() is None:  # another process may have drawn them meanwhile
                connection.execute(insert(run_file), rows)
    return record.files_of(number, "figure")


def _svgs(result: Result) -> list[tuple[str, str]]:
    from microtome.figures import pictures_of, static_svg

    found = []
    for i, picture in enumerate(pictures_of(result)):
        name = re.sub(r"[^a-z0-9]+", "-", picture.name.lower()).strip("-") or "picture"
        try:
            found.append((f"{i:02d}-{name}.svg", static_svg(picture.draw(), width=WIDTH)))
        except MicrotomeError:  # a result may lack what one of its pictures shows; its report says so
            continue
        except Exception as fault:  # noqa: BLE001 - a plug-in's renderer is foreign code: it must not keep a study open
            text = f"the picture {picture.name!r} was not drawn: {type(fault).__name__}: {fault}"
            warnings.warn(text, ObserverWarning, stacklevel=2)
    return found
