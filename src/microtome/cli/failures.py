"""How a command ends when it does not end well."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from microtome.errors import MicrotomeError

if TYPE_CHECKING:
    from rich.text import Text

ERROR, DEFECT, INTERRUPTED, PIPE = 1, 70, 130, 141
TRACEBACK = "MICROTOME_TRACEBACK"


@contextmanager
def guard() -> Iterator[None]:
    """Print what, why and instead of a user's error and end with its exit code; see `main` for the codes."""
    try:
        yield
    except KeyboardInterrupt as stop:
        show_interrupt(*getattr(stop, "__notes__", ()))
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # what is still buffered would raise again when Python closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(PIPE) from None
    except MicrotomeError as error:
        if os.environ.get(TRACEBACK):
            raise
        show(error)
        raise typer.Exit(ERROR) from None
    except (OSError, MemoryError) as error:
        if os.environ.get(TRACEBACK):
            raise
        show(_of_system(error))
        raise typer.Exit(ERROR) from None


def _of_system(error: OSError | MemoryError) -> MicrotomeError:
    if isinstance(error, MemoryError):
        return MicrotomeError(
            "Memory ran out.",
            why=str(error) or "an allocation failed",
            instead="fewer --pairs, or a smaller --model",
        )
    where = f" ({error.filename})" if getattr(error, "filename", None) else ""
    return MicrotomeError(
        f"The operating system refused: {error.strerror or error}{where}.",
        why="Microtome could not read or write what it needs",
        instead=f"check the path, permissions and free space; {TRACEBACK}=1 shows where it happened",
    )


def show(error: MicrotomeError) -> None:
    """What, why and instead, on stderr."""
    from rich.text import Text

    lines = Text.assemble(("error: ", "bold red"), _clean(error.what))
    for label, said in (("why", error.why), ("instead", error.instead)):
        if said:
            lines.append(f"\n{label + ':':<9}", style="bold").append(_clean(said))
    for note in getattr(error, "__notes__", ()):
        lines.append("\n" + _clean(note))
    _print(lines)


def show_interrupt(*kept: str) -> None:
    """Say that Ctrl-C was heard, and what it left behind."""
    from rich.text import Text

    _print(Text.assemble(("interrupted", "bold"), "; " + (" ".join(kept) if kept else "nothing was kept")))


def show_defect(error: Exception) -> None:
    """An error that no one foresaw: two lines instead of a traceback."""
    from rich.text import Text

    text = _clean(str(error).strip().partition("\n")[0]) or "no message"
    lines = Text.assemble(("error: ", "bold red"), f"unexpected {type(error).__name__}: {text}")
    lines.append("\nwhy:     ", style="bold").append(
        "this is a defect of Microtome or of a plug-in, not of your input"
    )
    lines.append("\ninstead: ", style="bold").append(f"run again with {TRACEBACK}=1 and report the traceback")
    _print(lines)


def _clean(text: str) -> str:
    from microtome.cli.output import visible

    return visible(text, keep="\n")


def _print(lines: Text) -> None:
    from microtome.cli.output import stderr

    stderr().print(lines, soft_wrap=True)
