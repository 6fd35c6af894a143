"""`microtome lab`: the record of a project."""

from __future__ import annotations

import json as _json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from microtome.cli import lab_care, lab_claims, lab_predict, lab_report, notebook, output, pace
from microtome.cli.inputs import Folder, Json
from microtome.errors import LabError

if TYPE_CHECKING:
    from microtome.lab.reading import Entry, Record, RunRow

__all__ = ["app", "when"]

app = typer.Typer(no_args_is_help=True, help="The record of a project: runs, predictions, claims, notebook.")

app.add_typer(lab_predict.app, name="predict")
app.add_typer(lab_claims.app, name="claim")
app.add_typer(lab_report.app, name="report")
app.command("reproduce")(lab_report.reproduce)
app.add_typer(notebook.app)
app.add_typer(pace.app)
app.command("sql")(lab_care.sql)
app.command("gc")(lab_care.gc)
app.command("doctor")(lab_care.doctor)

Which = Annotated[str, typer.Argument(metavar="RUN", help="A run's number, or the first digits of its id.")]

HIGHEST = 2**31 - 1  # number that a database's column holds
STATES = ("running", "finished", "failed", "interrupted")
PROMPTS = 5  # of a look, in its telling
SHORT = 60  # characters of a run's parameters in a list


@app.command("init")
def init(
    folder: Annotated[
        Path | None, typer.Argument(help="The project; default: the current folder.", show_default=False)
    ] = None,
    url: Annotated[
        str, typer.Option(help="Of a PostgreSQL database; default: a SQLite file.", show_default=False)
    ] = "",
    name: Annotated[
        str, typer.Option(help="Of the project; default: the folder's.", show_default=False)
    ] = "",
    json: Json = False,
) -> None:
    """Make a folder a project: what Microtome runs in it is recorded from then on."""
    from microtome.lab import place
    from microtome.lab.database import Database

    before = place.find(folder)
    made = place.init(folder, url=url, name=name)
    database = Database(made)
    with database.writing() as _:
        pass  # the tables are made, or the reason why not is told now
    database.close()
    if json:
        output.print_json(
            {"folder": made.folder, "record": made.shown, "files": made.files, "notebook": made.notebook}
        )
        return
    new = before is None or before.folder != made.folder
    output.say(f"{'project' if new else 'a project already'}: {made.folder}")
    output.say(f"record:  {made.shown}, files in {made.files}")
    output.say("next:    microtome dissect ioi, then microtome lab runs; or mt.study(...) in Python")


@app.command("runs")
def runs(
    study: Annotated[str | None, typer.Option(help="Title or number of a study.", show_default=False)] = None,
    method: Annotated[
        str | None, typer.Option(help="A technique; 'look' for raw looks.", show_default=False)
    ] = None,
    task: Annotated[str | None, typer.Option(help="Name of the task or data.", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="Name or hash of the model.", show_default=False)] = None,
    state: Annotated[
        str | None, typer.Option(help="running, finished, failed or interrupted.", show_default=False)
    ] = None,
    verdict: Annotated[str | None, typer.Option(help="As it is printed.", show_default=False)] = None,
    person: Annotated[str | None, typer.Option(help="Who ran it.", show_default=False)] = None,
    below: Annotated[str | None, typer.Option(help="Runs that this run called.", show_default=False)] = None,
    before: Annotated[
        int | None,
        typer.Option(min=1, max=HIGHEST, help="Only runs with a lower number.", show_default=False),
    ] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="At most so many.")] = 30,
    nested: Annotated[bool, typer.Option("--nested", help="Runs that other runs called, too.")] = False,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """List runs, the newest first."""
    from microtome.lab.reading import Wanted, open_record

    if state is not None and state not in STATES:
        raise typer.BadParameter(f"{state!r}: {', '.join(STATES)}", param_hint="--state")
    record = open_record(folder)
    wanted = Wanted(
        study=None if study is None else lab_claims.study_of(record, study), method=method, family=task, model=model, state=state, verdict=verdict,
        person=person, before=before, below=record.run(below).number if below else None, nested=nested,
    )  # fmt: skip
    found = record.runs(wanted, limit=n + 1)
    shown, more = found[:n], len(found) > n
    old = _stale(record, shown)
    if json:
        output.print_json([{**_data(row), "stale": list(old.get(row.number, ()))} for row in shown])
        return
    if not shown:
        any_at_all = wanted != Wanted() and record.runs(Wanted(nested=True), limit=1)
        output.say(f"no such run in {record.place.shown}" if any_at_all else "nothing ran yet")
        return
    output.table(
        ("run", "when", "method", "task", "model", "what", "s", "verdict"),
        [_line(row, old.get(row.number, ())) for row in shown],
    )
    if more:
        output.say(f"more: microtome lab runs --before {shown[-1].number}")


@app.command("show")
def show(
    run: Which,
    out: Annotated[
        Path | None,
        typer.Option(help="Write its result into this new folder, for mt.open.", show_default=False),
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Write its pictures into this folder, as SVG.", show_default=False)
    ] = None,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Show one run: what was asked, of what, with what code, what came out, and which controls ran."""
    from microtome.lab.reading import Wanted, open_record

    record = open_record(folder)
    row = record.run(run)
    old = _stale(record, [row]).get(row.number, ())
    below = record.runs(Wanted(below=row.number), limit=None)[::-1]
    controls = record.controls(row.number)
    if out is not None:
        record.export(row.number, out)
    drawn = _figures(record, row.number, figures) if figures is not None else []
    if json:
        files = [output.plain(f) for f in record.files_of(row.number)]
        output.print_json({**_data(row), "stale": list(old), "sites": record.sites(row.number), "files": files,
                           "controls": [output.plain(c) for c in controls], "children": [r.number for r in below],
                           "predictions": record.decided(row.number), "looked_at": _looked_at(record, row)})  # fmt: skip
        return
    _show(record, row, old)
    if controls:
        rows = [(c.name, {True: "passed", False: "FAILED", None: "not run"}[c.passed], "yes" if c.mandatory else "",
                 c.rules_out, output.number(c.n)) for c in controls]  # fmt: skip
        output.table(("control", "outcome", "mandatory", "rules out", "n"), rows, title="Controls")
    if below:
        calls = [(str(r.number), r.method, output.number(r.seconds), r.verdict or r.state) for r in below]
        output.table(("run", "method", "s", "verdict"), calls, title="Runs that it called")
    for path in drawn:
        output.say(f"figure: {path}")
    if out is not None:
        output.say(f"result: {out}   (in Python: mt.open({str(out)!r}))")


def _figures(record: Record, number: int, folder: Path) -> list[Path]:
    from microtome.lab.pictures import draw

    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for one in draw(record, number):
        path = folder / Path(one.name).name  # a record that came from elsewhere may say "../.."
        path.write_bytes(record.files.get(one.key))
        made.append(path)
    return made


def _show(record: Record, row: RunRow, old: Sequence[str]) -> None:
    certificate = record.certificate(row.model) if row.model else None
    word = "none asked for (microtome models check, in this project)"
    if certificate is not None:
        failed = certificate.get("failed") or [
            c["name"] for c in certificate.get("checks", ()) if c.get("passed") is False
        ]
        word = f"failed: {', '.join(map(str, failed))}" if failed else "passed"
    times = f", {row.times} times" if row.times > 1 else ""
    facts = [
        ("run", f"{row.number} ({row.id}){times}, {row.state}"),
        ("study", f"{row.title}, by {row.person}{' (an agent)' if row.by == 'agent' else ''}"),
        ("method", f"{row.method} {row.version}".rstrip()),
        ("began", f"{when(row.begun_at)}, took {output.number(row.seconds)} s on {row.host}"),
        ("called from", row.called_from),
        ("model", f"{row.model_name} {row.model[:12]}, certificate: {word}" if row.model else ""),
        ("task", f"{row.family} {(row.task or row.data)[:12]}".strip()),
        ("sites", ", ".join(record.sites(row.number)) if row.method == "look" else ""),
        ("prompts", _prompts(_looked_at(record, row))),
        (
            "parameters",
            ""
            if row.method == "look"
            else _json.dumps(row.question.get("parameters", {}), ensure_ascii=False),
        ),
        ("seed", output.number(row.seed)),
        ("numerics", "" if row.method == "look" else _json.dumps(row.question.get("numerics", {}))),
        ("verdict", (row.verdict or "") + (f", p {output.number(row.p)}" if row.p is not None else "")),
        ("decided", ", ".join(f"prediction {p}" for p in record.decided(row.number))),
        ("error", row.error),
        ("stale", "; ".join(old)),
        ("run again", row.not_again and f"not possible: {'; '.join(row.not_again.splitlines())}"),
    ]
    for name, text in facts:
        if text:
            output.say(f"{name:<12} {text}")


def _looked_at(record: Record, row: RunRow) -> dict[str, Any]:
    """The prompts of a look, as `lab.arguments.look_of` shortens them; {} for a technique."""
    if row.method != "look" or row.arguments is None:
        return {}
    try:
        return dict(_json.loads(record.files.get(row.arguments)))
    except LabError as error:  # the rest can be told
        return {"prompts": [], "of": None, "said": error.what}


def _prompts(look: Mapping[str, Any]) -> str:
    if not look:
        return ""
    shown = [p if isinstance(p, str) else f"tokens {p}" for p in look["prompts"][:PROMPTS]]
    said = [_json.dumps(p if len(p) <= SHORT else p[: SHORT - 3] + "...", ensure_ascii=False) for p in shown]
    more = (look["of"] or len(shown)) - len(shown)
    return ", ".join(said) + (f" and {more} more" if more > 0 else "") or look["said"]


def _stale(record: Record, rows: Sequence[RunRow]) -> dict[int, tuple[str, ...]]:
    from microtome.lab.staleness import stale

    return stale(record, rows)


def _line(row: RunRow, old: Sequence[str]) -> tuple[str, ...]:
    end = row.verdict or row.state
    what = row.about if row.method != "look" else ", ".join(row.question.get("sites", ())) or "logits"
    marks = [f"x{row.times}"] if row.times > 1 else []
    marks += [f"+{row.children}"] if row.children else []
    return (
        str(row.number), when(row.begun_at), " ".join([row.method, *marks]), row.family, row.model_name,
        what if len(what) <= SHORT else what[: SHORT - 3] + "...", output.number(row.seconds),
        end + (" (stale)" if old else ""),
    )  # fmt: skip


def _data(row: RunRow) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__dataclass_fields__}


def when(at: float | None) -> str:
    """A time as people here read it."""
    return "" if at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


@app.command("compare")
def compare(
    first: Which,
    second: Annotated[str, typer.Argument(metavar="RUN", help="The run to compare it with.")],
    n: Annotated[
        int, typer.Option("-n", min=1, help="Cells shown; sure differences, sign flips, the largest first.")
    ] = 15,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Compare two runs: only what differs in the question, and effects paired prompt by prompt."""
    from microtome.lab.comparing import compare as run
    from microtome.lab.reading import open_record

    found = run(open_record(folder), first, second)
    if json:
        output.print_json({**output.plain(found), "cells": [output.plain(c) for c in found.cells]})
        return
    rows = [(d.name, _cell(d.first), _cell(d.second)) for d in found.asked]
    if rows:
        output.table(("differs", f"run {found.first}", f"run {found.second}"), rows)
    else:
        output.say("both asked the same, with the same code")
    if found.why:
        output.say(f"note: {found.why}")
    if found.same and not found.paired:
        output.say("every number is the same, to the bit")
    if found.paired:
        _cells(found, n)


def _cells(found: Any, n: int) -> None:
    from microtome.lab.comparing import ALPHA

    if found.same:
        output.say(f"every number is the same, to the bit ({len(found.cells)} cells, {found.paired} prompts)")
        return
    if not found.cells:
        output.say("no cell is measured in both")
        return
    names = list(found.cells[0].cell)
    rows = [(*(_cell(c.cell[k]) for k in names), output.number(c.first), output.number(c.second), output.number(c.difference),
             output.interval(c.low, c.high), f"±{output.number(c.null)}" if c.null == c.null else "", output.number(c.p)) for c in found.cells[:n]]  # fmt: skip
    head = (*names, f"run {found.first}", f"run {found.second}", "difference", "interval", "null", "p")
    output.table(
        head, rows, title=f"Differences on {found.paired} prompts, those at {ALPHA} and sign flips first"
    )
    flips = sum(c.flipped for c in found.cells)
    sure = sum(c.p <= ALPHA for c in found.cells)
    output.say(
        f"{len(found.cells)} cells: {flips} changed sign; {sure} differ by a sign-flip of prompts over all cells at {ALPHA}"
        f" (this many prompts can reach p {output.number(found.smallest_p)}); {found.only_first} only in the first,"
        f" {found.only_second} only in the second"
    )


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else _json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHORT else text[: SHORT - 3] + "..."


def _pages(record: Record, since: float) -> list[Entry]:
    """What the notebook says was done, entry by entry."""
    from microtome.lab.notebook.indexing import index
    from microtome.lab.notebook.timeline import of_pages
    from microtome.lab.reading import Entry

    if not record.place.notebook.is_dir():
        return []
    done = of_pages(index(record.place.notebook))
    return [Entry(a.begin.timestamp(), a.kind, "", "", a.what) for a in done if a.begin.timestamp() >= since]


@app.command("log")
def log(
    days: Annotated[float, typer.Option(min=0, help="How many days back.")] = 7,
    n: Annotated[int, typer.Option("-n", min=1, help="At most so many, the newest.")] = 100,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """What happened in the project: runs, predictions and how they came out, claims, pages of the notebook."""
    from microtome.lab.reading import log as entries
    from microtome.lab.reading import open_record

    since = time.time() - 86400 * days
    record = open_record(folder)
    every = [
        *(entries(record, since=since, limit=n) if record.database.exists() else ()),
        *_pages(record, since),
    ]
    found = sorted(every, key=lambda e: e.at)[-n:]
    if json:
        output.print_json([output.plain(e) for e in found])
        return
    if not found:
        output.say(f"nothing in the last {days:g} days")
        return
    rows = [(when(e.at), e.kind, e.number, e.who, e.said.splitlines()[0] if e.said else "") for e in found]
    output.table(("when", "what", "no.", "who", ""), rows)


@app.command("rerun")
def rerun(
    run: Which,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Run a recorded run again, and compare. The new run is recorded in the same study.

    Ends with 1 where the numbers are not the same: bit for bit on the same machine and versions, within a stated tolerance else.
    """  # fmt: skip
    from microtome.cli.watch import watching
    from microtome.lab.equality import TOLERANCE, compared
    from microtome.lab.reading import open_record
    from microtome.lab.rerunning import again
    from microtome.lab.study import study

    record = open_record(folder)
    row = record.run(run)
    before = record.result(row.number) if row.result is not None else None
    if row.seconds is not None:
        output.stderr().print(f"it took {row.seconds:.1f} s then", soft_wrap=True)
    with study(row.title, folder=record.place.folder) as named, watching():
        after = again(record, row.number)
    number = named.last
    found = None if before is None else compared(before, after)
    if json:
        output.print_json(
            {"run": row.number, "again": number, "agreement": output.plain(found), "tolerance": TOLERANCE}
        )
    else:
        output.say(
            f"run {row.number} again: {'not recorded' if number is None else f'run {number}'}, {after.verdict}"
        )
        if found is None:
            output.say("there is no earlier result to compare it with")
        elif found.same:
            output.say("equal, bit for bit: effects, tensors, tables, controls and verdict")
        else:
            output.say(found.said)
            if number is not None:
                output.say(f"microtome lab compare {row.number} {number}")
    if found is not None and not found.within:
        raise typer.Exit(1)
