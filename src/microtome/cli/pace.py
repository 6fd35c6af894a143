"""`microtome lab stage|timers|gate|audit|review|postmortem`: where a project stands, what is due, where the time went."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from microtome.cli import output
from microtome.cli.inputs import Json
from microtome.cli.notebook_place import (
    Answers,
    Why,
    add,
    answers_of,
    notebook,
    now,
    read_pages,
    timeline,
    wrote,
)

if TYPE_CHECKING:
    from microtome.lab.notebook.pages import Page
    from microtome.lab.notebook.timers import Trigger

app = typer.Typer(no_args_is_help=True, help="Stages, timers and reviews of a project.")

Days = Annotated[float, typer.Option(min=0.01, max=36500, help="How many days back.")]


@app.command()
def stage(
    to: Annotated[str, typer.Argument(metavar="[STAGE]", show_default=False)] = "",
    answer: Answers = None,
    why: Why = "",
    json: Json = False,
) -> None:
    """Show the stage of the project, or move to another: its questions are asked on a terminal, "not yet" is an answer."""
    from microtome.lab.notebook import folder, stages, views
    from microtome.lab.notebook.limits import read_limits

    moves = stages.history(read_pages())
    if to:
        before, table = moves[-1].to if moves else "", read_limits(notebook())
        answers = answers_of(answer)
        stages.move(now(), before, to, answers, why=why)  # refused before it asks anything
        if sys.stdin is not None and sys.stdin.isatty() and not json:
            rest = {k: q for k, q in stages.asked(before, to, table).items() if k not in answers}
            answers |= {k: typer.prompt(f"{q}\n  ", default="", show_default=False) for k, q in rest.items()}
        page, made = stages.move(now(), before, to, answers, why=why, limits=table)
        folder.create(notebook(), page)
        moves = (*moves, made)
    if json:
        output.print_json({"stage": moves[-1].to if moves else "", "moves": moves})
        return
    for line in views.stage(moves):
        output.say(line)


@app.command()
def timers(
    project: Annotated[
        str,
        typer.Option(
            help="foundation, mini, full or timed; default: as the last `did project-begin` says.",
            show_default=False,
        ),
    ] = "",
    limits: Annotated[bool, typer.Option("--limits", help="Show the numbers instead.")] = False,
    json: Json = False,
) -> None:
    """What is due by the guide's timers, with the number and its source."""
    from microtome.lab.notebook import views
    from microtome.lab.notebook.limits import read_limits, said

    table = read_limits(notebook())
    if limits:
        if json:
            output.print_json(table.table)
        else:
            output.table(("name", "value", "source", "what"), said(table))
        return
    found = due_now(project)
    if json:
        output.print_json(found)
        return
    for line in views.triggers(found):
        output.say(line)


def due_now(project: str = "") -> tuple[Trigger, ...]:
    """What the timers of the project's notebook say now; project: its kind, "" for what the notebook says."""
    from microtome.lab.notebook.limits import read_limits
    from microtome.lab.notebook.stages import history
    from microtome.lab.notebook.timers import due, settings_of

    pages = read_pages()
    moves, done = history(pages), timeline(pages)
    ideas = sum(p.kind == "idea" for p in pages)
    settings = settings_of(done, project=project, ideas=ideas, limits=read_limits(notebook()))
    return due(now(), moves[-1].to if moves else "", done, settings)


@app.command()
def gate(
    minutes: Annotated[float, typer.Argument(metavar="MINUTES", help="How long it should take.", show_default=False)],
    what: Annotated[str, typer.Argument(metavar="EXPERIMENT", show_default=False)],
    alternative: Annotated[list[str] | None, typer.Option(help="A quicker way to know; may be repeated.")] = None,
    reason: Annotated[str, typer.Option(help="Why it should run without alternatives: recorded.")] = "",
    json: Json = False,
) -> None:  # fmt: skip
    """Before a long experiment: are there quicker ways to know? The answer is recorded in the log."""
    from dataclasses import replace

    from microtome.lab.notebook.limits import read_limits
    from microtome.lab.notebook.records import log_entry
    from microtome.lab.notebook.timers import gate as asked

    passed = asked(minutes * 60, alternative or (), reason=reason, limits=read_limits(notebook()))
    page, entry = log_entry(now(), tried=what)
    add((page, replace(entry, fields={**entry.fields, **passed.fields()})), json)


def _span(days: float) -> tuple[datetime, datetime]:
    until = now()
    return until - timedelta(days=days), until


def _audit(days: float, pages: Sequence[Page]) -> Any:
    from microtome.lab.notebook.audit import audit as made
    from microtome.lab.notebook.limits import read_limits

    return made(timeline(pages), *_span(days), read_limits(notebook()))


@app.command()
def audit(days: Days = 7, json: Json = False) -> None:
    """Where the time went."""
    from microtome.lab.notebook import views

    found = _audit(days, read_pages())
    if json:
        shares = ("failed_share", "runs_per_highlight", "highlights_per_hour")
        output.print_json({**output.plain(found), **{name: getattr(found, name) for name in shares}})
    else:
        output.table(("", ""), views.audit(found))


@app.command()
def review(days: Days = 7, json: Json = False) -> None:
    """The weekly review: seven questions and the week in numbers; once it is there, only the numbers are made again."""
    from microtome.lab.notebook import folder, reviews
    from microtome.lab.notebook.audit import markdown

    pages = read_pages()
    found = _audit(days, pages)
    page = reviews.weekly_review(now(), found)
    if any(p.path == page.path for p in pages):
        wrote(reviews.refresh(notebook(), page.path, markdown(found)), json)
    else:
        wrote(folder.create(notebook(), page), json)


@app.command()
def postmortem(
    title: Annotated[str, typer.Argument(metavar="TITLE", show_default=False)],
    days: Days = 14,
    json: Json = False,
) -> None:
    """A page for looking back at a mini-project or a sprint."""
    from microtome.lab.notebook import folder, reviews

    wrote(folder.create(notebook(), reviews.post_mortem(now(), title, _audit(days, read_pages()))), json)
