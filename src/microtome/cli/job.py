"""What every command that measures something does around the measurement: a folder of its own, progress, what is kept when it
breaks off, the result before the report, and the line that asks for the same again."""  # fmt: skip

from __future__ import annotations

import errno
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from microtome.cli import output, recorded, summary
from microtome.cli.watch import Watch, watching
from microtome.errors import MicrotomeError, ResultError

if TYPE_CHECKING:
    from rich.console import Console

    from microtome.results import Result

__all__ = ["Out", "command", "finish", "folder", "minutes", "run", "say_origin", "stream"]

Tables = Mapping[str, tuple[Sequence[str], Sequence[output.Row]]]
Out = Annotated[
    Path | None,
    typer.Option(help="Folder for report and result; default: runs/NAME-MODEL-DATE.", show_default=False),
]


def folder(out: Path | None, *names: str) -> Path:
    """Where everything goes; refused now if something is there, not after minutes of work.

    names: of what is asked, for the default.

    Raises
    ------
    ResultError: the place is taken or cannot be written to.
    """
    if out is None:
        stamp = datetime.now().strftime("%Y-%m-%d-%H%M%S")
        out = Path("runs") / "-".join(slug(part) for part in (*names, stamp))
    place = out.expanduser().absolute()
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ResultError(
            f"{place} is {'there already and is not empty' if place.is_dir() else 'a file'}",
            why="one run never overwrites another",
            instead="another --out: a folder that is new or empty",
        )
    _try(place)
    return place


def slug(text: str) -> str:
    """Text as part of a file's name."""
    return re.sub(r"[^\w.]+", "-", text).strip("-.")


def _try(place: Path) -> None:
    """Make a folder and take it away again, with every parent that was made for it: it appears with what belongs in it."""
    made = [path for path in (place, *place.parents) if not path.exists()]
    try:
        place.mkdir(parents=True, exist_ok=True)
        if not os.access(place, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ResultError(
            f"{place} cannot be written to", why=error.strerror or str(error), instead="another --out"
        ) from error
    finally:
        for path in made:
            if path.is_dir():
                path.rmdir()


def say_origin(model: Any, *, to_stderr: bool) -> None:
    """The model, where it comes from, and why it has its dtype and device."""
    lines = [f"model: {model!r}", f"  {model.card}", *(f"  {why}" for why in model.reasons.values())]
    for line in lines:
        stream(to_stderr).print(output.visible(line), soft_wrap=True)


def run(measure: Callable[[], Result], place: Path) -> Result:
    """Do it, with progress shown; in a project it is recorded. What breaks off keeps its finished stages in `place`, and says so."""
    with recorded.here(), watching() as watch:
        try:
            return measure()
        except (KeyboardInterrupt, Exception) as stop:
            watch.stop()
            if watch.finished or isinstance(stop, KeyboardInterrupt):
                stop.add_note(_keep(watch, place))
            raise


def _keep(watch: Watch, place: Path) -> str:
    """Save the finished stages of a run that broke off; a sentence that says so."""
    if not watch.finished:
        return "nothing was finished yet, so nothing was kept"
    try:
        for i, (name, result) in enumerate(watch.finished):
            result.save(place / "stages" / f"{i:02d}-{slug(name)}")
    except (MicrotomeError, OSError) as error:
        return f"the finished stages could not be kept: {error}"
    n = len(watch.finished)
    stages = f"{n} finished stage{'s are' if n > 1 else ' is'}"
    return f"{stages} kept in {place / 'stages'}; in Python: mt.open(FOLDER)"


def command(words: Sequence[str], options: Mapping[str, Any]) -> str:
    """The line that asks for the same again: `words`, then every option that has a value; a list repeats its option, a True
    stands alone."""  # fmt: skip
    out = ["microtome", *words]
    for name, value in options.items():
        if value is None or value is False:
            continue
        for one in value if isinstance(value, list | tuple) else [value]:
            out += [f"--{name}"] if one is True else [f"--{name}", str(one)]
    return shlex.join(out)


def finish(result: Result, place: Path, line: str, *, json: bool, tables: Tables | None = None) -> None:
    """Save, report and print a result; `tables` of its own after the summary: title -> (head, rows)."""
    report = _write(result, place, line)
    if json:
        output.print_json(
            {
                **summary.as_data(result),
                **{
                    title: [dict(zip(head, row, strict=True)) for row in rows]
                    for title, (head, rows) in (tables or {}).items()
                },
                "command": line,
                "report": report,
                "result": place / "result",
                "run": recorded.keep(report),
            }  # fmt: skip
        )
        return
    summary.show(result)
    for title, (head, rows) in (tables or {}).items():
        output.table(head, rows, title=title)
    output.say(f"report: {report}")
    if (number := recorded.keep(report)) is not None:
        output.say(f"record: run {number}   (microtome lab show {number})")
        recorded.remind()
    output.say(f"result: {place / 'result'}   (in Python: mt.open({str(place / 'result')!r}))")


def _write(result: Result, place: Path, line: str) -> Path:
    """Save the result before its report is made: what took minutes is safe first."""
    from microtome.report import write_report

    saved = result.save(place / "result")
    try:
        return write_report(result, place / "report.html", command=line, folder=saved)
    except Exception as error:
        error.add_note(
            f"the report was not written; the result is safe in {saved}; in Python: mt.open(FOLDER)"
        )
        raise


def minutes(seconds: float) -> str:
    """Seconds as people say them."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def stream(to_stderr: bool) -> Console:
    """stdout for people; stderr where stdout is for a program."""
    return output.stderr() if to_stderr else output.stdout()
