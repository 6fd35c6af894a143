"""`microtome lab sql`, `gc` and `doctor`: a record asked in SQL, its garbage, its health. Registered by `microtome.cli.lab`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from microtome.cli import output
from microtome.cli.inputs import Json

if TYPE_CHECKING:
    from microtome.lab.doctor import Report
    from microtome.lab.place import Place
    from microtome.lab.salvage import Recovered

__all__ = ["doctor", "gc", "sql"]


def sql(
    statement: Annotated[
        str,
        typer.Argument(
            metavar="SQL", help="One SELECT; docs/reference/record.md has the tables.", show_default=False
        ),
    ],
    limit: Annotated[int, typer.Option(min=1, help="Rows that are shown.")] = 100,
    seconds: Annotated[float, typer.Option(min=0.01, help="How long it may take.")] = 10.0,
    json: Json = False,
) -> None:
    """Ask the record in SQL. It only reads."""
    from microtome.lab.place import here
    from microtome.lab.sql import query

    answer = query(here(), statement, limit, seconds=seconds)
    rows = [[_cell(value) for value in row] for row in answer.rows]
    if json:
        # rows as lists: two columns may have one name
        output.print_json({"columns": answer.columns, "rows": rows, "more": answer.more})
        return
    output.table(answer.columns, [["" if v is None else v for v in row] for row in rows])
    if answer.more:
        output.stderr().print(f"more than {limit} rows; these are the first: --limit {limit * 10}")


def gc(
    now: Annotated[
        bool,
        typer.Option("--now", help="Files younger than an hour too; refused while another process records."),
    ] = False,
    dry: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    json: Json = False,
) -> None:
    """Remove files that no run uses, and what killed writers left."""
    from microtome.lab.doctor import collect
    from microtome.lab.place import here

    swept = collect(here(), now=now, remove=not dry)
    if json:
        output.print_json({**asdict(swept), "removed": not dry})
        return
    done = "would be removed" if dry else "removed"
    output.say(f"{swept.files} files ({swept.bytes / 1e6:.1f} MB) and {swept.leftovers} leftovers {done}")


def doctor(
    deep: Annotated[
        bool, typer.Option("--deep", help="Compare every file with its digest, and decide predictions again.")
    ] = False,
    upgrade: Annotated[
        bool,
        typer.Option(
            "--upgrade", help="Bring an older record to this version's tables; a copy is made first."
        ),
    ] = False,
    recover: Annotated[
        bool, typer.Option("--recover", help="Save what is left of a damaged SQLite record into a new file.")
    ] = False,
    json: Json = False,
) -> None:
    """Examine the record: its version, its database, its files, dead runs, sealed predictions. Ends with 1 where something is wrong."""
    from microtome.lab.doctor import examine
    from microtome.lab.place import here

    if upgrade and recover:
        raise typer.BadParameter("one at a time: --recover a damaged record, --upgrade an older one")
    place = here()
    done = _upgraded(place) if upgrade else _recovered(place) if recover else {}
    report = examine(place, deep)
    if json:
        output.print_json({**done, **asdict(report), "ok": report.ok})
    else:
        _tell(done)
        _show(report, deep)
    if not report.ok:
        raise typer.Exit(1)


def _upgraded(place: Place) -> dict[str, Any]:
    from microtome.lab.migrations import upgrade

    if place.url and not place.url.startswith("sqlite"):
        output.stderr().print("PostgreSQL: the steps are one transaction; a dump (pg_dump) is yours to make")
    done = upgrade(place)
    return {"upgraded": {"from": done.before, "to": done.after, "copy": done.copy}}


def _recovered(place: Place) -> dict[str, Any]:
    from microtome.lab.salvage import recover

    done: Recovered = recover(place)
    tables = {
        name: asdict(left) for name, left in done.tables.items() if left.kept or left.lost != 0 or left.loose
    }
    return {"recovered": {
        "damaged file, kept": done.damaged, "tables": tables, "runs made from files": done.rebuilt, "results that are not whole": done.unreadable,
        "names without a row": done.placeholders, "files linked again": done.relinked,
    }}  # fmt: skip


def _tell(done: dict[str, Any]) -> None:
    """What an upgrade or a recovery did."""
    for name, value in done.get("upgraded", {}).items():
        output.say(f"upgraded {name}: {'none' if value is None else value}")
    if (left := done.get("recovered")) is None:
        return
    rows = [(name, str(t["kept"]), "unknown" if t["lost"] is None else str(t["lost"]), str(t["loose"])) for name, t in left["tables"].items()
            if t["kept"] or t["loose"] or t["lost"]]  # fmt: skip
    if rows:
        output.table(("table", "rows kept", "lost, at most", "naming what is gone"), rows)
    else:
        output.say("no row of the damaged file could be read")
    for name, value in left.items():
        if name != "tables":
            told = ", ".join(map(str, value)) if isinstance(value, tuple | list) else value
            output.say(f"{name}: {'none' if told in (None, '') else told}")


def _show(report: Report, deep: bool) -> None:
    said = f"schema {report.schema}, " if report.schema else ""
    output.say(f"{report.database}: {said}{report.studies} studies, {report.runs} runs, {report.predictions} predictions, "
               f"{report.claims} claims, {report.files} files ({report.bytes / 1e6:.1f} MB)")  # fmt: skip
    if report.findings:
        rows = [("wrong" if f.grave else "note", f.about, f.what, f.instead) for f in report.findings]
        output.table(("", "about", "what", "instead"), rows)
    else:
        output.say(
            "nothing is wrong"
            + ("" if deep else "; --deep compares every file and decides predictions again")
        )


def _cell(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
