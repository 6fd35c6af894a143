"""`microtome dissect`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from microtome.cli import inputs, job, output, recorded
from microtome.cli.inputs import DEFAULT, Device, Dtype, Json, ModelName, Seed
from microtome.cli.job import Out
from microtome.cli.watch import steps

if TYPE_CHECKING:
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
    out: Out = None,
    dtype: Dtype = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Find which internals cause a behaviour, and how far to believe it.

    Every stage runs with its controls. Writes OUT/report.html, which needs no network, and OUT/result, which `mt.open` reads.
    """  # fmt: skip
    own = dict(zip(OWN, (clean, corrupt, answer, wrong), strict=True))
    _check_usage(task, own, metric)
    folder = job.folder(out, Path(task).stem if task is not None else "pairs", Path(model).name)
    if task is not None:
        inputs.check(task)
    loaded = inputs.load(model, dtype, device)
    job.say_origin(loaded, to_stderr=json)
    subject = _subject(loaded, task, own, metric)
    settings: dict[str, Any] = {"seed": seed} if pairs is None else {"pairs": pairs, "seed": seed}
    _announce(loaded, subject, settings, to_stderr=json)
    result = job.run(lambda: _dissect(loaded, subject, settings), folder)
    options = {
        "model": model,
        "pairs": pairs,
        "metric": metric,
        "seed": seed,
        "dtype": dtype,
        "device": device,
    }
    words = ["dissect", *([task] if task is not None else [])]
    job.finish(result, folder, job.command(words, {**own, **options}), json=json)


def _dissect(model: Any, subject: str | PairTask, settings: dict[str, Any]) -> Result:
    from microtome.dissect import dissect as run

    return run(model, subject, **settings)


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
        job.stream(to_stderr).print(output.visible(line), soft_wrap=True)
    with steps() as say:
        say("drawing pairs, and measuring what this machine does in a second")
        stages = plan(model, subject, **settings)
    rows = [(name, n, f"{seconds:.0f} s") for name, n, seconds in stages]
    whole = sum(seconds for _, _, seconds in stages)
    title = f"Plan: about {job.minutes(whole)}"
    output.table(("stage", "n", "estimate"), rows, title=title, to=job.stream(to_stderr))
    recorded.long(whole, recorded.title())
