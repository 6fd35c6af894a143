"""`microtome dissect`: the main job."""

from __future__ import annotations

import re
import shlex
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from microtome.cli import inputs, output, summary
from microtome.cli.inputs import DEFAULT, Device, Dtype, Json, ModelName, Seed
from microtome.cli.watch import Watch, watching
from microtome.errors import ResultError

if TYPE_CHECKING:
    from rich.console import Console

    from microtome.results import Result
    from microtome.tasks import PairTask

__all__ = ["Dissect", "dissect"]

OWN = ("clean", "corrupt", "answer", "wrong")


class Dissect(TyperCommand):
    """Names the tasks, those of plug-ins too, when help is asked for and not before."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print help with the list of tasks."""
        from microtome.tasks import names

        self.epilog = f"Tasks: {', '.join(names())}."
        super().format_help(ctx, formatter)


def dissect(
    task: Annotated[
        str | None,
        typer.Argument(
            metavar="TASK|FILE", help="A task, or a CSV, JSONL or YAML file of pairs.", show_default=False
        ),
    ] = None,
    model: ModelName = DEFAULT,
    clean: Annotated[
        list[str] | None,
        typer.Option(help="A prompt that shows the behaviour; repeat for more pairs.", show_default=False),
    ] = None,
    corrupt: Annotated[
        list[str] | None,
        typer.Option(help="The same prompt, as long in tokens, with the answer changed.", show_default=False),
    ] = None,
    answer: Annotated[
        list[str] | None,
        typer.Option(help="What follows the clean prompt, leading space included.", show_default=False),
    ] = None,
    wrong: Annotated[
        list[str] | None, typer.Option(help="What does not follow it.", show_default=False)
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option(min=1, help="Pairs of the sweeps; every stage scales with it.", show_default=False),
    ] = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report and result; default: runs/TASK-MODEL-DATE.", show_default=False),
    ] = None,
    dtype: Dtype = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Find which internals cause a behaviour, and how far to believe it.

    Every stage runs with its controls. Writes OUT/report.html, which needs no network, and OUT/result, which `mt.open` reads.
    """  # fmt: skip
    own = dict(zip(OWN, (clean, corrupt, answer, wrong), strict=True))
    _check_usage(task, own)
    folder = _folder(out, task, model)
    if task is not None:
        inputs.check(task)
    loaded = inputs.load(model, dtype, device)
    _say_origin(loaded, to_stderr=json)
    subject = _subject(loaded, task, own)
    settings: dict[str, Any] = {"seed": seed} if pairs is None else {"pairs": pairs, "seed": seed}
    _announce(loaded, subject, settings, to_stderr=json)
    result = _run(loaded, subject, settings, folder)
    options = {"model": model, "pairs": pairs, "seed": seed, "dtype": dtype, "device": device}
    command = _command(task, own, options)
    report = _write(result, folder, command)
    if json:
        output.print_json(
            {**summary.as_data(result), "command": command, "report": report, "result": folder / "result"}
        )
        return
    summary.show(result)
    output.say(f"report: {report}")
    output.say(f"result: {folder / 'result'}   (in Python: mt.open({str(folder / 'result')!r}))")


def _check_usage(task: str | None, own: dict[str, list[str] | None]) -> None:
    given = [name for name, values in own.items() if values]
    if task is None and not given:
        raise typer.BadParameter("give a TASK, a FILE of pairs, or --clean --corrupt --answer --wrong")
    if task is not None and given:
        raise typer.BadParameter(f"pairs come from one place: {task!r}, or --{given[0]} and its like")
    if given and len(given) < len(OWN):
        raise typer.BadParameter("a pair also needs " + ", ".join(f"--{n}" for n in OWN if n not in given))


def _folder(out: Path | None, task: str | None, model: str) -> Path:
    """Where everything goes; refused now if something is there, not after minutes of work."""
    if out is None:
        name = Path(task).stem if task is not None else "pairs"
        stamp = datetime.now().strftime("%Y-%m-%d-%H%M%S")
        made = "-".join(re.sub(r"[^\w.]+", "-", part).strip("-.") for part in (name, Path(model).name, stamp))
        out = Path("runs") / made
    folder = out.expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ResultError(
            f"{folder} is there already and is not empty",
            why="one run never overwrites another",
            instead="another --out",
        )
    folder.mkdir(parents=True, exist_ok=True)
    folder.rmdir()  # it could be made; it appears again with what belongs in it
    return folder


def _say_origin(model: Any, *, to_stderr: bool) -> None:
    lines = [f"model: {model!r}", f"  {model.card}", *(f"  {why}" for why in model.reasons.values())]
    for line in lines:
        _stream(to_stderr).print(output.visible(line), soft_wrap=True)


def _subject(model: Any, task: str | None, own: dict[str, list[str] | None]) -> str | PairTask:
    """What is dissected: a task by its name, so that it can draw what every stage needs, or the pairs themselves."""
    if task is not None and not inputs.is_file(task):
        return task
    from microtome.tasks import pairs

    lists: dict[str, Any] = own
    return pairs(model, task) if task is not None else pairs(model, **lists)


def _announce(model: Any, subject: str | PairTask, settings: dict[str, Any], *, to_stderr: bool) -> None:
    from microtome.dissect import plan

    stages = plan(model, subject, **settings)
    rows = [(name, n, f"{seconds:.0f} s") for name, n, seconds in stages]
    title = f"Plan: about {_minutes(sum(seconds for _, _, seconds in stages))}"
    output.table(("stage", "n", "estimate"), rows, title=title, to=_stream(to_stderr))


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def _run(model: Any, subject: str | PairTask, settings: dict[str, Any], folder: Path) -> Result:
    from microtome.dissect import dissect as run

    with watching() as watch:
        try:
            return run(model, subject, **settings)
        except KeyboardInterrupt as stop:
            watch.stop()
            stop.add_note(_keep(watch, folder))
            raise


def _keep(watch: Watch, folder: Path) -> str:
    """Save the finished stages of an interrupted run; a sentence that says so."""
    if not watch.finished:
        return "nothing was finished yet, so nothing was kept"
    for i, result in enumerate(watch.finished):
        result.save(folder / "stages" / f"{i:02d}-{result.kind}")
    n = len(watch.finished)
    stages = f"{n} finished stage{'s are' if n > 1 else ' is'}"
    return f"{stages} kept in {folder / 'stages'}; in Python: mt.open(FOLDER)"


def _command(task: str | None, own: dict[str, list[str] | None], options: dict[str, Any]) -> str:
    """The line that asks for the same again; model and seed are written out though they have defaults."""
    words = ["microtome", "dissect", *([task] if task is not None else [])]
    for name, values in own.items():
        for value in values or ():
            words += [f"--{name}", value]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name}", str(value)]
    return shlex.join(words)


def _write(result: Result, folder: Path, command: str) -> Path:
    """Save the result before its report is made: what took minutes is safe first."""
    from microtome.report import write_report

    saved = result.save(folder / "result")
    return write_report(result, folder / "report.html", command=command, folder=saved)


def _stream(to_stderr: bool) -> Console:
    return output.stderr() if to_stderr else output.stdout()
