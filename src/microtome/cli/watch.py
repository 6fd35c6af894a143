"""Progress of a run, from the events that every technique sends: bars on a terminal, one line per stage elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from microtome.cli.output import stderr, visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from microtome.results import Event, Result

AFTER = 2.0
"""Seconds before a bar appears: what is faster needs none."""


class Watch:
    """An observer of one command's runs.

    `finished` holds the stages that are done, as (name, result): the children of the first run, in order. They are what
    can be kept when the whole breaks off. A stage has the name that the first run gave it (the note of its progress),
    else that of its technique.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or stderr()
        self.finished: list[tuple[str, Result]] = []
        self._stage = ""
        self._root: str | None = None
        self._depth: dict[str, int] = {}
        self._bars: dict[str, TaskID] = {}
        self._lock = threading.Lock()
        self._display: Progress | None = _display(self.console) if self.console.is_terminal else None
        self._timer = threading.Timer(AFTER, self._show)
        self._timer.daemon = True

    def start(self) -> None:
        """Begin to count the seconds after which bars appear."""
        self._timer.start()

    def stop(self) -> None:
        """Take the bars away."""
        self._timer.cancel()
        with self._lock:
            if self._display is not None:
                self._display.stop()
                self._display = None

    def _show(self) -> None:
        with self._lock:
            if self._display is not None:
                self._display.start()

    def __call__(self, event: Event) -> None:
        """One event of a run."""
        with self._lock:
            if event.kind == "begin":
                self._begin(event)
            elif event.kind == "progress" and event.progress is not None:
                self._move(event)
            elif event.kind in ("end", "failed", "interrupted"):
                self._end(event)

    def _begin(self, event: Event) -> None:
        if self._root is None:
            self._root = event.run
        depth = self._depth.get(event.parent, -1) + 1 if event.parent is not None else 0
        self._depth[event.run] = depth
        if self._display is not None:
            name = "  " * depth + event.method.replace("_", " ")
            self._bars[event.run] = self._display.add_task(visible(name), total=None, note="")

    def _move(self, event: Event) -> None:
        bar, step = self._bars.get(event.run), event.progress
        if event.run == self._root and step is not None:
            self._stage = step.note
        if self._display is None or bar is None or step is None:
            return
        self._display.update(bar, completed=step.done, total=step.total, note=visible(step.note or step.unit))

    def _end(self, event: Event) -> None:
        depth = self._depth.pop(event.run, None)
        bar = self._bars.pop(event.run, None)
        if self._display is not None and bar is not None:
            self._display.remove_task(bar)
        if depth != 1 or event.parent != self._root:
            return
        name = self._stage or event.method.replace("_", " ")
        if event.kind == "end" and event.result is not None:
            self.finished.append((name, event.result))
        word = {"end": "done", "failed": "not done", "interrupted": "interrupted"}[event.kind]
        line = f"{word}: {name}, {event.seconds:.1f} s"
        if event.kind == "failed":
            line += f"; {event.error.splitlines()[0].partition(': ')[2]}"
        self.console.print(visible(line), soft_wrap=True)


def _display(console: Console) -> Progress:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns: list[Any] = [TextColumn("{task.description}", markup=False), BarColumn(bar_width=30), TaskProgressColumn(),
                          TimeElapsedColumn(), TextColumn("{task.fields[note]}", style="dim", markup=False)]  # fmt: skip
    return Progress(*columns, console=console, transient=True)


@contextmanager
def watching(console: Console | None = None) -> Iterator[Watch]:
    """Show the progress of every technique inside the block."""
    from microtome.results import observe

    watch = Watch(console)
    watch.start()
    try:
        with observe(watch):
            yield watch
    finally:
        watch.stop()


@contextmanager
def steps(console: Console | None = None) -> Iterator[Callable[[str], None]]:
    """A place for the sentences of something slow: a spinner's text on a terminal, a line each elsewhere."""
    to = console or stderr()
    if not to.is_terminal:
        yield lambda sentence: to.print(visible(sentence), soft_wrap=True)
        return
    from rich.markup import escape

    began = time.monotonic()
    with to.status("starting") as status:
        yield lambda sentence: status.update(
            f"{escape(visible(sentence))} ({time.monotonic() - began:.0f} s)"
        )
