"""`microtome lab claim`: claims, the evidence that they rest on, and how far they may be believed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from microtome.cli import output
from microtome.cli.inputs import Folder, Json

if TYPE_CHECKING:
    from microtome.lab.claim_rows import ClaimRow
    from microtome.lab.claiming import Link
    from microtome.lab.reading import Record

__all__ = ["app", "study_of"]

app = typer.Typer(
    no_args_is_help=True,
    help="Claims: their evidence, and how far they may be believed (computed, never typed).",
)

Number = Annotated[int, typer.Argument(metavar="CLAIM", min=1, help="A claim's number.", show_default=False)]
StudyName = Annotated[
    str | None,
    typer.Option("--study", help="Title or number of a study.", show_default=False),
]
Run = Annotated[
    list[int] | None,
    typer.Option(
        "--run", min=1, help="A run that it rests on, for it and strong. Repeatable.", show_default=False
    ),
]
Weight = Annotated[
    str, typer.Option(help="strong, big_if_true (probably fails), sanity (probably passes) or weak.")
]
Alternatives = Annotated[
    list[str] | None,
    typer.Option("--alternative", help="What else could explain it. Repeatable.", show_default=False),
]
Falsifiers = Annotated[
    list[str] | None,
    typer.Option("--falsifier", help="What would show it wrong. Repeatable.", show_default=False),
]
Limitations = Annotated[
    list[str] | None,
    typer.Option("--limitation", help="What it does not say. Repeatable.", show_default=False),
]


@app.command("new")
def new(
    statement: Annotated[str, typer.Argument(help="What is claimed, in one sentence.", show_default=False)],
    study: StudyName = None,
    run: Run = None,
    model: Annotated[
        str | None,
        typer.Option(help="Name or hash of the model it is about; default: any.", show_default=False),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Name of the task or data it is about; default: any.", show_default=False),
    ] = None,
    sites: Annotated[
        list[str] | None,
        typer.Option(help="Where; repeat for more. Default: not about the inside.", show_default=False),
    ] = None,
    alternative: Alternatives = None,
    falsifier: Falsifiers = None,
    limitation: Limitations = None,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Make a claim. Without an alternative and something that would show it wrong it stays at the lowest rungs."""
    from microtome.lab import claiming
    from microtome.lab.questions import query

    record = _record(folder)
    about = query(model=model, task=task, sites=tuple(sites or ())) if model or task or sites else None
    number = claiming.make(record.database, study_of(record, study, new=True), _person(record), statement, about=about, evidence=run or (),
                           alternatives=alternative or (), falsifiers=falsifier or (), limitations=limitation or ())  # fmt: skip
    _show(record, number, json)


@app.command("show")
def show(claim: Number, folder: Folder = None, json: Json = False) -> None:
    """Show a claim: its rung, why it is not higher, what would lift it, and its evidence."""
    _show(_record(folder), claim, json)


@app.command("link")
def link(
    claim: Number,
    run: Annotated[
        int | None, typer.Argument(metavar="RUN", min=1, help="A run's number.", show_default=False)
    ] = None,
    prediction: Annotated[
        int | None, typer.Option(min=1, help="A prediction's number, instead of a run.", show_default=False)
    ] = None,
    weight: Weight = "strong",
    against: Annotated[bool, typer.Option("--against", help="It speaks against the claim.")] = False,
    note: Annotated[str, typer.Option(help="Why it bears on the claim.", show_default=False)] = "",
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Link a run or a prediction to a claim, and show what the claim is worth then."""
    from microtome.lab import claiming

    record = _record(folder)
    claiming.link(record.database, claim, _link(run, prediction, weight, against, note), _person(record))
    _show(record, claim, json)


@app.command("add")
def add(
    claim: Number,
    alternative: Alternatives = None,
    falsifier: Falsifiers = None,
    limitation: Limitations = None,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Add alternatives, falsifiers and limitations. A falsifier tests only what begins after it is written."""
    from microtome.lab import claiming

    record = _record(folder)
    claiming.add_texts(record.database, claim, alternatives=alternative or (), falsifiers=falsifier or (), limitations=limitation or ())  # fmt: skip
    _show(record, claim, json)


@app.command("withdraw")
def withdraw(
    claim: Number,
    why: Annotated[str, typer.Option(help="Why. It is kept.", show_default=False)],
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Withdraw a claim. It stays in the record, with the reason."""
    from microtome.lab import claiming

    record = _record(folder)
    claiming.withdraw(record.database, claim, why)
    _show(record, claim, json)


@app.command("list")
def list_(study: StudyName = None, folder: Folder = None, json: Json = False) -> None:
    """List claims with their rungs, the oldest first."""
    from microtome.lab.claim_rows import list_claims
    from microtome.lab.claim_telling import as_dict

    record = _record(folder)
    found = list_claims(record, study=None if study is None else study_of(record, study))
    record.close()
    if json:
        output.print_json([as_dict(claim) for claim in found])
        return
    if not found:
        output.say(f"no claim in {record.place.shown}; make one: microtome lab claim new STATEMENT")
        return
    output.table(("claim", "rung", "statement", "first reason"), [_line(claim) for claim in found])


def _line(claim: ClaimRow) -> tuple[str, ...]:
    first = claim.rung.caps[0] if claim.rung.caps else None
    why = "" if first is None else (f"{first.piece}: " if first.piece else "") + first.why
    gone = claim.withdrawn_at is not None
    return (str(claim.number), "withdrawn" if gone else claim.rung.name, claim.statement, claim.why_withdrawn if gone else why)  # fmt: skip


def _show(record: Record, number: int, json: bool) -> None:
    from microtome.lab.claim_rows import read
    from microtome.lab.claim_telling import as_dict, lines

    claim = read(record, number)
    record.close()
    if json:
        output.print_json(as_dict(claim))
        return
    for line in lines(claim):
        output.say(line)


def _record(folder: Path | None) -> Record:
    from microtome.lab.reading import open_record

    return open_record(folder)


def _person(record: Record) -> str:
    from microtome.lab.place import person

    return person(record.place)


def _link(run: int | None, prediction: int | None, weight: str, against: bool, note: str) -> Link:
    from microtome.errors import LabError
    from microtome.lab.claiming import Link

    if (run is None) == (prediction is None):
        raise LabError(
            "a link names one thing",
            why="it is a run or a prediction",
            instead="microtome lab claim link CLAIM RUN, or --prediction NUMBER",
        )
    return Link(run, weight, not against, note, prediction)


def study_of(record: Record, given: str | None, *, new: bool = False) -> int:
    """The number of a study: of that number or title, else the only one. new: a title that is not there is made."""
    from microtome.errors import LabError

    every: Any = record.studies() if record.database.exists() else ()
    if given is None and len(every) == 1:
        return int(every[0].number)
    same = [s for s in every if given is not None and given in (s.title, str(s.number))]
    if len(same) == 1:
        return int(same[0].number)
    if new and given is not None and not given.isdigit() and not same:
        from microtome.lab.study import study

        made = study(given, folder=record.place.folder)
        made._known()
        made.database.close()
        return made.number
    titles = ", ".join(f"{s.number} {s.title!r}" for s in every) or "none yet"
    raise LabError(
        f"{'which' if same or given is None else 'no'} study{'' if given is None else f' {given!r}'}",
        why=f"the record has {titles}",
        instead="--study NUMBER, or a title",
    )
