"""How a command ends when it does not end well."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from microtome.errors import MicrotomeError

if TYPE_CHECKING:
    from rich.text import Text

ERROR, DEFECT, INTERRUPTED, PIPE = 1, 70, 130, 141
TRACEBACK = "MICROTOME_TRACEBACK"


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end; whatever keeps things at Ctrl-C keeps them now too."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _stop(number: int, _: object) -> None:
    raise Stopped(number)


@contextmanager
def stoppable() -> Iterator[None]:
    """End as Ctrl-C does, and not in the middle of a file, when a scheduler or a closed terminal ends the process.

    A signal that is ignored (`nohup`) stays ignored.
    """
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        names = []  # only the main thread may say what signals do
    before = {getattr(signal, name): signal.getsignal(getattr(signal, name)) for name in names}
    taken = {number: handler for number, handler in before.items() if handler is signal.SIG_DFL}
    for number in taken:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)


@contextmanager
def guard() -> Iterator[None]:
    """Print what, why and instead of a user's error and end with its exit code; see `main` for the codes."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise typer.Exit(interrupted(stop)) from None
    except BrokenPipeError:
        # what is still buffered would raise again when Python closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(PIPE) from None
    except MicrotomeError as error:
        if os.environ.get(TRACEBACK):
            raise
        show(error)
        raise typer.Exit(ERROR) from None
    except (OSError, MemoryError, RuntimeError) as error:
        if os.environ.get(TRACEBACK) or (isinstance(error, RuntimeError) and not _memory_ran_out(error)):
            raise
        explained = _of_system(error)
        for note in getattr(error, "__notes__", ()):
            explained.add_note(note)
        show(explained)
        raise typer.Exit(ERROR) from None


def _memory_ran_out(error: BaseException) -> bool:
    """Whether an error says so; torch has a type of its own for it on CUDA only."""
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("out of memory", "can't allocate memory")
    )


def _of_system(error: OSError | MemoryError | RuntimeError) -> MicrotomeError:
    if not isinstance(error, OSError):
        return MicrotomeError(
            "Memory ran out.",
            why=str(error).strip().partition("\n")[0] or "an allocation failed",
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


def interrupted(stop: KeyboardInterrupt) -> int:
    """Say that Ctrl-C or a signal was heard, and what it left behind; the exit code."""
    from rich.text import Text

    kept = "; ".join(getattr(stop, "__notes__", ())) or "nothing was kept"
    by = f" by {signal.Signals(stop.number).name}" if isinstance(stop, Stopped) else ""
    _print(Text.assemble((f"interrupted{by}", "bold"), f"; {kept}"))
    return 128 + stop.number if isinstance(stop, Stopped) else INTERRUPTED


def show_defect(error: Exception) -> None:
    """An error that no one foresaw: two lines instead of a traceback."""
    from rich.text import Text

    text = _clean(str(error).strip().partition("\n")[0]) or "no message"
    lines = Text.assemble(("error: ", "bold red"), f"unexpected {type(error).__name__}: {text}")
    lines.append("\nwhy:     ", style="bold").append(
        "this is a defect of Microtome or of a plug-in, not of your input"
    )
    lines.append("\ninstead: ", style="bold").append(f"run again with {TRACEBACK}=1 and report the traceback")
    for note in getattr(error, "__notes__", ()):
        lines.append("\n" + _clean(note))
    _print(lines)


def _clean(text: str) -> str:
    from microtome.cli.output import visible

    return visible(text, keep="\n")


def _print(lines: Text) -> None:
    from microtome.cli.output import stderr

    stderr().print(lines, soft_wrap=True)
