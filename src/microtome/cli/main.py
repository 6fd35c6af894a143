"""`microtome`: the commands put together, and what happens when one of them ends badly."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from microtome.cli import (
    ask,
    calibrate,
    diff,
    dissect,
    examples,
    failures,
    heads,
    lab,
    lab_report,
    learning,
    mcp,
    models,
    probe,
    recorded,
    redteam,
    steer,
    tasks,
    vector,
)

__all__ = ["app", "main"]


class _Guarded(TyperGroup):
    """Turns what a user can cause into one screen on stderr; lists plug-ins under `--help`."""

    def invoke(self, ctx: Any) -> Any:
        with failures.guard():
            return super().invoke(ctx)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from microtome.cli.plugins import epilog

        self.epilog = epilog()
        super().format_help(ctx, formatter)


app = typer.Typer(
    cls=_Guarded,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # a pipe gets plain text
    rich_markup_mode="rich" if sys.stdout is not None and sys.stdout.isatty() else None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        import microtome

        typer.echo(f"microtome {microtome.__version__}")
        raise typer.Exit


@app.callback()
def _start(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Take a language model apart: find which internals cause a behaviour, and how far to believe it."""


app.command("dissect", cls=dissect.Dissect)(dissect.dissect)
app.command("ask")(ask.ask)
app.command("calibrate")(calibrate.calibrate)
app.command("diff")(diff.diff)
app.command("examples")(examples.examples)
app.command("heads")(heads.heads)
app.command("mcp")(mcp.mcp)
app.command("probe")(probe.probe)
app.command("quiz")(learning.quiz)
app.command("redteam")(redteam.command(claim_of=recorded.claim_text, chat_of=recorded.chat))
app.command("steer")(steer.steer)
app.command("tutor")(learning.tutor)
app.command("vector")(vector.vector)
app.add_typer(lab.app, name="lab")
app.add_typer(lab_report.app, name="report")
app.add_typer(models.app, name="models")
app.add_typer(tasks.app, name="tasks")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 an error with its reason, 2 wrong usage, 70 a defect, 130 Ctrl-C,
    129 and 143 a terminal that closed and a request to end, 141 the reader of a pipe went away.

    With `MICROTOME_TRACEBACK=1` in the environment errors keep their traceback.
    """  # fmt: skip
    if sys.stdout is not None and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # tokens hold what a terminal's encoding may not
    try:
        with failures.stoppable():
            app(args=list(arguments) if arguments is not None else None, prog_name="microtome")
    # The last line of defence: whatever no one foresaw is shown in two lines, and in full to who asks for it.
    except Exception as error:
        if os.environ.get(failures.TRACEBACK):
            raise
        failures.show_defect(error)
        sys.exit(failures.DEFECT)
    except KeyboardInterrupt as stop:
        sys.exit(failures.interrupted(stop))


if __name__ == "__main__":
    main()
