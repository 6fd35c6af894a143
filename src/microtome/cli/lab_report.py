"""`microtome report`: a write-up from claims and runs. `microtome lab reproduce`: an archive of one, run again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from microtome.cli import output
from microtome.cli.inputs import Folder, Json

if TYPE_CHECKING:
    from microtome.lab.reading import Record
    from microtome.lab.writing.drafting import Draft
    from microtome.lab.writing.values import WriteUp

__all__ = ["app", "reproduce"]

app = typer.Typer(
    no_args_is_help=True,
    help="A write-up of one to three claims: a draft for your words, then HTML, PDF, Markdown and an archive.",
)

NAME = "write-up.md"
Claims = Annotated[
    list[int] | None,
    typer.Option("--claim", min=1, help="A claim's number, in the order to be told. Repeatable; default: those that stand, if at most three.", show_default=False),
]  # fmt: skip
Title = Annotated[str | None, typer.Option(help="Default: the first claim.", show_default=False)]
Authors = Annotated[
    list[str] | None,
    typer.Option("--author", help="Repeatable; default: who made the claims.", show_default=False),
]
Summary = Annotated[
    Path | None,
    typer.Option(exists=False, help="A text file with the summary: at most 600 words.", show_default=False),
]
Seed = Annotated[
    int | None, typer.Option(min=0, help="Of the raw examples and the scores; default 0.", show_default=False)
]


@app.command("draft")
def draft(
    file: Annotated[Path, typer.Argument(help="The draft. One that is there keeps your words.")] = Path(NAME),
    claim: Claims = None,
    title: Title = None,
    author: Authors = None,
    summary: Summary = None,
    seed: Seed = None,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Make the file that you write in: what follows from the record is filled in, your words have places."""
    from microtome.lab.writing.drafting import write_draft

    record, write_up, _ = _collected(file if file.exists() else None, claim, title, author, summary, seed, folder)  # fmt: skip
    place = write_draft(write_up, file)
    record.close()
    if json:
        output.print_json({"draft": place, **_data(write_up)})
        return
    _tell(write_up)
    output.say(f"draft:   {place}")
    output.say(f"next:    write in it, then microtome report write {file} --html write-up.html")


@app.command("write")
def write(
    file: Annotated[
        Path | None,
        typer.Argument(help=f"The draft; default {NAME}, unless --claim is given.", show_default=False),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write one self-contained page.", show_default=False)
    ] = None,  # fmt: skip
    pdf: Annotated[
        Path | None, typer.Option(help="Write a PDF, by a browser that is here.", show_default=False)
    ] = None,  # fmt: skip
    markdown: Annotated[
        Path | None,
        typer.Option(help="Write Markdown, and a folder of figures beside it.", show_default=False),
    ] = None,  # fmt: skip
    archive: Annotated[
        Path | None, typer.Option(help="Write a .zip that runs again with one command.", show_default=False)
    ] = None,  # fmt: skip
    claim: Claims = None,
    title: Title = None,
    author: Authors = None,
    summary: Summary = None,
    seed: Seed = None,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Write the report. A claim whose mandatory controls are missing is refused, and it is said which."""
    from microtome.errors import LabError
    from microtome.lab import writing
    from microtome.lab.writing.drafting import check_words

    if not (html or pdf or markdown or archive):
        raise LabError("nothing to write", why="no kind of file was named", instead="--html write-up.html")
    source = file or (None if claim else Path(NAME))
    record, write_up, found = _collected(source, claim, title, author, summary, seed, folder)
    check_words(found, write_up)
    made = {}
    if html:
        made["html"] = writing.write_html(write_up, html)
    if markdown:
        _not_the_draft(markdown, source)
        made["markdown"] = writing.write_markdown(write_up, markdown)
    if archive:
        made["archive"] = writing.pack(write_up, record, archive)
    if pdf:
        made["pdf"] = writing.write_pdf(write_up, pdf)
    record.close()
    if json:
        output.print_json({**made, **_data(write_up)})
        return
    _tell(write_up)
    for kind, place in made.items():
        output.say(f"{kind + ':':<10} {place}")
    if archive:
        output.say(f"elsewhere: microtome lab reproduce {archive.name}")


def reproduce(
    archive: Annotated[Path, typer.Argument(help="An archive of microtome report write.")],
    only: Annotated[
        list[int] | None,
        typer.Option("--only", min=1, help="A run's number. Repeatable; default: all.", show_default=False),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Of a difference, relative to the largest number of its array; default 0.0001.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Run what an archive holds again and compare: 0 when all of it came out alike, 1 when something differs or fails."""  # fmt: skip
    from microtome.cli.watch import steps
    from microtome.lab.equality import TOLERANCE
    from microtome.lab.writing.reproducing import reproduce as run

    with steps() as say:
        found = run(archive, only=only or (), tolerance=TOLERANCE if tolerance is None else tolerance, progress=say)  # fmt: skip
    if json:
        output.print_json({**output.plain(found), "runs": [output.plain(r) for r in found.runs], "good": found.good})  # fmt: skip
    else:
        output.say(f"{found.title}")
        output.say(f"made with microtome {found.microtome}; archive {found.digest[:16]}")
        rows = [(str(r.run), r.method, r.outcome, output.number(r.largest), output.number(r.seconds), r.verdict, r.said) for r in found.runs]  # fmt: skip
        output.table(("run", "method", "outcome", "largest difference", "s", "verdict", "what was found"), rows)  # fmt: skip
        output.say("reproduced" if found.good else "not reproduced")
    if not found.good:
        raise typer.Exit(1)


def _collected(
    source: Path | None,
    claim: Sequence[int] | None,
    title: str | None,
    author: Sequence[str] | None,
    summary: Path | None,
    seed: int | None,
    folder: Path | None,
) -> tuple[Record, WriteUp, Any]:
    """(record, write-up, words): of a draft where there is one; what was typed goes before what it says."""
    from microtome.lab.reading import open_record
    from microtome.lab.writing.collecting import Words, collect
    from microtome.lab.writing.drafting import read_draft

    known: Draft | None = None if source is None else read_draft(source)
    words = Words() if known is None else known.words
    if title is not None:
        words = replace(words, title=title)
    if author:
        words = replace(words, authors=tuple(author))
    if summary is not None:
        words = replace(words, summary=_text(summary))
    numbers = tuple(claim or (() if known is None else known.claims))
    chosen = seed if seed is not None else 0 if known is None else known.seed
    record = open_record(folder)
    return record, collect(record, numbers, words, seed=chosen), words


def _text(path: Path) -> str:
    from microtome.tasks.table import read_text

    return read_text(path)


def _not_the_draft(path: Path, source: Path | None) -> None:
    from microtome.errors import LabError

    if source is not None and path.expanduser().absolute() == source.expanduser().absolute():
        raise LabError(
            f"{path} is the draft",
            why="the report would replace the file that you write in",
            instead="--markdown report.md",
        )


def _tell(write_up: WriteUp) -> None:
    from microtome.lab.writing.refusing import words_in

    for part in write_up.claims:
        output.say(f"claim {part.claim.number}: {part.rung}")
        output.say(f"  {part.claim.statement}")
        for cap in part.caps:
            output.say(f"  not higher: {cap}")
    left = sum(x.runs for x in write_up.left_out)
    many = len(write_up.runs)
    output.say(f"{many} run{'s' * (many != 1)} in it, {left} of the same studies not; {words_in(write_up.summary)} words of summary")  # fmt: skip


def _data(write_up: WriteUp) -> dict[str, Any]:
    return {
        "title": write_up.title,
        "claims": [
            {"number": p.claim.number, "statement": p.claim.statement, "rung": p.rung, "caps": list(p.caps), "runs": [e.row.number for e in p.experiments]}
            for p in write_up.claims
        ],
        "limitations": list(write_up.computed_limitations),
        "checked": list(write_up.checked),
        "left_out": [output.plain(x) for x in write_up.left_out],
        "looks": write_up.looks,
        "seed": write_up.seed,
    }  # fmt: skip
