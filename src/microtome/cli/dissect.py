"""`microtome dissect`: the main job."""

from __future__ import annotations

import errno
import os
import re
import shlex
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from microtome.cli import inputs, output, summary
from microtome.cli.inputs import DEFAULT, Device, Dtype, Json, ModelName, Seed
from microtome.cli.watch import Watch, steps, watching
from microtome.errors import MicrotomeError, ResultError

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
    metric: Annotated[
        str | None,
        typer.Option(
            help="For pairs of your own: logit_diff, or logprob_diff for answers of several tokens.",
            show_default=False,
        ),
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
    _check_usage(task, own, metric)
    folder = _folder(out, task, model)
    if task is not None:
        inputs.check(task)
    loaded = inputs.load(model, dtype, device)
    _say_origin(loaded, to_stderr=json)
    subject = _subject(loaded, task, own, metric)
    settings: dict[str, Any] = {"seed": seed} if pairs is None else {"pairs": pairs, "seed": seed}
    _announce(loaded, subject, settings, to_stderr=json)
    result = _run(loaded, subject, settings, folder)
    options = {
        "model": model,
        "pairs": pairs,
        "metric": metric,
        "seed": seed,
        "dtype": dtype,
        "device": device,
    }
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


def _check_usage(task: str | None, own: dict[str, list[str] | None], metric: str | None) -> None:
    given = [name for name, values in own.items() if values]
    if task is None and not given:
        raise typer.BadParameter("give a TASK, a FILE of pairs, or --clean --corrupt --answer --wrong")
    if task is not None and given:
        raise typer.BadParameter(f"pairs come from one place: {task!r}, or --{given[0]} and its like")
    if given and len(given) < len(OWN):
        raise typer.BadParameter("a pair also needs " + ", ".join(f"--{n}" for n in OWN if n not in given))
    if metric is None:
        return
    if task is not None and not inputs.is_file(task):
        raise typer.BadParameter(f"the task {task!r} has its own metric: --metric is for pairs of your own")
    from microtome.metrics import metric as named

    named(metric)  # a mistyped one is found before a model is loaded


def _folder(out: Path | None, task: str | None, model: str) -> Path:
    """Where everything goes; refused now if something is there, not after minutes of work."""
    if out is None:
        name = Path(task).stem if task is not None else "pairs"
        stamp = datetime.now().strftime("%Y-%m-%d-%H%M%S")
        made = "-".join(_slug(part) for part in (name, Path(model).name, stamp))
        out = Path("runs") / made
    folder = out.expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ResultError(
            f"{folder} is {'there already and is not empty' if folder.is_dir() else 'a file'}",
            why="one run never overwrites another",
            instead="another --out: a folder that is new or empty",
        )
    _try(folder)
    return folder


def _slug(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text).strip("-.")


def _try(folder: Path) -> None:
    """Make a folder and take it away again, with every parent that was made for it: it appears with what belongs in it."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ResultError(
            f"{folder} cannot be written to", why=error.strerror or str(error), instead="another --out"
        ) from error
    finally:
        for path in made:
            if path.is_dir():
                path.rmdir()


def _say_origin(model: Any, *, to_stderr: bool) -> None:
    lines = [f"model: {model!r}", f"  {model.card}", *(f"  {why}" for why in model.reasons.values())]
    for line in lines:
        _stream(to_stderr).print(output.visible(line), soft_wrap=True)


def _subject(
    model: Any, task: str | None, own: dict[str, list[str] | None], metric: str | None
) -> str | PairTask:
    """What is dissected: a task by its name, so that it can draw what every stage needs, or the pairs themselves."""
    if task is not None and not inputs.is_file(task):
        return task
    from microtome.tasks import pairs

    lists: dict[str, Any] = own
    return pairs(model, task, metric=metric) if task is not None else pairs(model, **lists, metric=metric)


def _announce(model: Any, subject: str | PairTask, settings: dict[str, Any], *, to_stderr: bool) -> None:
    from microtome.dissect import plan

    for line in inputs.notes(subject):
        _stream(to_stderr).print(output.visible(line), soft_wrap=True)
    with steps() as say:
        say("drawing pairs, and measuring what this machine does in a second")
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
        except (KeyboardInterrupt, Exception) as stop:
            watch.stop()
            if watch.finished or isinstance(stop, KeyboardInterrupt):
                stop.add_note(_keep(watch, folder))
            raise


def _keep(watch: Watch, folder: Path) -> str:
    """Save the finished stages of a run that broke off; a sentence that says so."""
    if not watch.finished:
        return "nothing was finished yet, so nothing was kept"
    try:
        for i, (name, result) in enumerate(watch.finished):
            result.save(folder / "stages" / f"{i:02d}-{_slug(name)}")
    except (MicrotomeError, OSError) as error:
        return f"the finished stages could not be kept: {error}"
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
    try:
        return write_report(result, folder / "report.html", command=command, folder=saved)
    except Exception as error:
        error.add_note(
            f"the report was not written; the result is safe in {saved}; in Python: mt.open(FOLDER)"
        )
        raise


def _stream(to_stderr: bool) -> Console:
    return output.stderr() if to_stderr else output.stdout()
