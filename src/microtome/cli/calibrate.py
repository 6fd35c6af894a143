"""`microtome calibrate`: how often every technique is right on models whose mechanism is known."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from microtome.cli import output, recorded
from microtome.cli.inputs import Json
from microtome.errors import ResultError

__all__ = ["calibrate"]

SHOWN = 8
FOLDER = Path("runs/calibration")


class Say(Protocol):
    """What is told after every job."""

    def __call__(self, done: int, total: int, last: str) -> None:
        """done of total, and what was done last."""


def calibrate(
    only: Annotated[
        list[str] | None, typer.Option(help="A technique; repeat for more.", show_default=False)
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(help="A model of the zoo by its name; repeat for more.", show_default=False),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A part that takes a minute.")] = False,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes.")] = 1,
    out: Annotated[
        Path, typer.Option(help="Folder of finished jobs; a run goes on where one stopped.")
    ] = FOLDER,
    write: Annotated[
        bool, typer.Option("--write", help="Put the rates into the file that ships with Microtome.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="With --quick: end with 1 where the shipped file says something else."),
    ] = False,
    json: Json = False,
) -> None:
    """Measure every technique on models of known mechanism: recall, false discoveries, false alarms, AUROC, coverage.

    Each job (one setting on one model) is kept in OUT as soon as it is done. The same command gives the same numbers.
    """  # fmt: skip
    if write and (quick or models):
        raise typer.BadParameter("--write needs every model: leave --quick and --models out")
    if check and (not quick or only or models):
        raise typer.BadParameter("--check compares what --quick runs: give --quick alone")
    from microtome.zoo.calibrate import coverage, plan, runs, table

    jobs = plan.jobs(only or (), models or (), quick=quick)
    to = output.stderr()
    to.print(_estimate(jobs, workers), soft_wrap=True)
    asked = {"only": only or [], "models": models or [], "quick": quick, "workers": workers}
    with _bar() as say, recorded.activity("calibration", asked):
        lines = runs.calibrate(jobs, out, workers=workers, progress=say)
    rows = table.summarise(lines)
    covered = coverage.all_cases()
    _keep({"rows": rows, "coverage": covered})
    if json:
        output.print_json({"rows": rows, "coverage": covered})
    else:
        _show(rows, covered)
    if write:
        path = table.write(lines, covered, datetime.now(UTC).strftime("%Y-%m-%d"))
        to.print(output.visible(f"written: {path}; then `make docs`"), soft_wrap=True)
    if check:
        _check(lines, covered)


def _keep(found: Mapping[str, Any]) -> None:
    """The rates with the run, where the command was recorded."""
    import json
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calibration.json"
        path.write_text(json.dumps(output.plain(found), indent=1), encoding="utf-8")
        recorded.keep(path)


def _check(lines: Sequence[Any], covered: Sequence[Mapping[str, Any]]) -> None:
    """End with 1, saying why: stale entries, other counts, or intervals that do not keep their word."""
    from microtome.results.calibration import shipped
    from microtome.zoo.calibrate import coverage, table

    wrong = [f"coverage of {name} is not accepted" for name in coverage.failed(covered)]
    if not shipped()["date"] and not wrong:
        output.stderr().print("nothing is shipped yet, so no result claims anything", soft_wrap=True)
        return
    wrong += [f"{technique}: {why}" for technique, why in table.stale().items()]
    wrong += table.differences(lines)
    if not wrong:
        output.stderr().print("the shipped calibration is of this code", soft_wrap=True)
        return
    more = [f"and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
    raise ResultError(
        "the shipped calibration is not of this code",
        why="; ".join([*wrong[:SHOWN], *more]),
        instead="microtome calibrate --workers 2 --write, then make docs",
    )


def _estimate(jobs: Sequence[Any], workers: int) -> str:
    from microtome.zoo.calibrate.plan import expected

    seconds = expected(jobs) / workers
    shown = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
    cases = len({job.case for job in jobs})
    return f"{len(jobs)} jobs on {cases} models, about {shown} with {workers} {'process' if workers == 1 else 'processes'} (less what is done already)"


@contextmanager
def _bar() -> Iterator[Say]:
    """A bar on a terminal; elsewhere a line for each tenth."""
    console = output.stderr()
    if not console.is_terminal:
        shown = -1

        def line(done: int, total: int, last: str) -> None:
            nonlocal shown
            tenth = 10 * done // max(total, 1)
            if tenth > shown:
                shown = tenth
                console.print(output.visible(f"{done} of {total} jobs"), soft_wrap=True)

        yield line
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns: list[Any] = [BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
                          TextColumn("{task.fields[last]}", style="dim", markup=False)]  # fmt: skip
    with Progress(*columns, console=console, transient=True) as display:
        bar = display.add_task("", total=None, last="")
        yield lambda done, total, last: display.update(
            bar, completed=done, total=total, last=output.visible(last)
        )


def _show(rows: Sequence[Mapping[str, Any]], covered: Sequence[Mapping[str, Any]]) -> None:
    from microtome.zoo.calibrate.table import HEAD, cells

    for tier, title in (("A", "Tier A: true by construction"), ("B", "Tier B: trained, mechanism published")):
        mine = [cells(r["technique"], {**r, "name": r["setting"]}, r) for r in rows if r["tier"] == tier]
        if mine:
            output.table(HEAD, mine, title=title)
    lines = [(c["name"], c["n"], f"{c['coverage']:.3f}", f"{c['low']} to {c['high']}", "yes" if c["accepted"] else "NO") for c in covered]  # fmt: skip
    output.table(
        ("0.95 intervals of", "replicates", "coverage", "accepted hits", "accepted"), lines, title="Coverage"
    )
    for row in rows:
        for why, n in row["refused"].items():
            output.say(f"{row['technique']} ({row['setting']}) refused {n} model{'s' * (n > 1)}: {why}")
    sys.stdout.flush()
