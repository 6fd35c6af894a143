"""Where the commands of a notebook find it, and how they say what they wrote."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from microtome.cli import output
from microtome.errors import LabError

if TYPE_CHECKING:
    from microtome.lab.notebook.entries import Entry
    from microtome.lab.notebook.pages import Page
    from microtome.lab.notebook.timeline import Activity

Why = Annotated[str, typer.Option(help="Why.")]
Answers = Annotated[list[str] | None, typer.Option("--answer", help="KEY=ANSWER; may be repeated.")]


def notebook() -> Path:
    """The notebook of the project whose folder, the current one or one above, has `.microtome/`.

    Raises
    ------
    LabError: there is none, or `notebook` is a link that leads out of the project.
    """
    from microtome.lab import place

    found = place.here()
    if not found.notebook.resolve().is_relative_to(found.folder.resolve()):
        raise LabError(f"{found.notebook} leads out of the project", why="it is a symbolic link", instead="put the folder itself there")  # fmt: skip
    return found.notebook


def person() -> str:
    """Who is at work in this project, as the record has it."""
    from microtome.lab import place

    return place.person(place.here())


def now() -> datetime:
    """The time, with its offset from UTC."""
    return datetime.now().astimezone()


def read_pages() -> tuple[Page, ...]:
    """Every page of the notebook."""
    from microtome.lab.notebook.indexing import index

    return index(notebook())


def timeline(pages: Sequence[Page]) -> tuple[Activity, ...]:
    """What was done when, by the pages and by the record, each with the stage that it fell in."""
    from microtome.lab.notebook.stages import history
    from microtome.lab.notebook.timeline import of_pages, staged

    done = sorted((*of_pages(pages), *recorded()), key=lambda a: a.begin)
    return staged(done, [(m.at, m.to) for m in history(pages)])


def recorded() -> tuple[Activity, ...]:
    """The runs and looks of the project's record; none before anything was recorded."""
    from microtome.lab.activities import activities
    from microtome.lab.reading import open_record

    record = open_record()
    return activities(record) if record.database.exists() else ()


def add(placed: tuple[Page, Entry], json: bool) -> None:
    """Append an entry to its page, and say where."""
    from microtome.lab.notebook import folder

    wrote(folder.add(notebook(), *placed), json)


def wrote(page: Page, json: bool) -> None:
    """Say which page was written."""
    if json:
        output.print_json(told(page))
    else:
        output.say(f"notebook/{page.path}")


def told(page: Page) -> dict[str, Any]:
    """A page without its text."""
    made = {"path": page.path, "kind": page.kind, "date": page.date, "title": page.title}
    return {**made, "fields": page.fields, "digest": page.digest, "problems": page.problems}


def answers_of(given: Sequence[str] | None) -> dict[str, str]:
    """KEY=ANSWER as key -> answer.

    Raises
    ------
    LabError: one without "=".
    """
    for one in given or ():
        if "=" not in one:
            raise LabError(
                f"{one!r} is no answer", why="it names no question", instead='--answer "KEY=ANSWER"'
            )
    return {key.strip(): text.strip() for key, text in (one.split("=", 1) for one in given or ())}


def keep(pages: Sequence[Page]) -> None:
    """Write the index into the record, for queries."""
    from microtome.lab.activities import keep_index
    from microtome.lab.reading import open_record

    keep_index(open_record(), pages)
