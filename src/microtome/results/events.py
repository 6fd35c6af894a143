"""Runs and what is told of them: begin, progress, end, failed, interrupted, look.

A technique's call is a run. Runs nest: the parent is whichever run is current where the call is made. The
current run is a context variable: threads do not see each other's, and it is restored after an exception.
A new thread starts without a run; `in_this_run` carries the current one over.

Observers are plain functions of one Event. They are called in the thread of the run, in the order in which
they were added; one that serves several threads locks its own data.
"""

from __future__ import annotations

import contextvars
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from .arguments import ArgumentError

if TYPE_CHECKING:
    from .event import Event, Look, Progress
    from .query import Query
    from .result import Result

BEGIN, PROGRESS, END, FAILED, INTERRUPTED, LOOK = "begin", "progress", "end", "failed", "interrupted", "look"

P = ParamSpec("P")
R = TypeVar("R")


class ObserverWarning(UserWarning):
    """An observer raised. The run went on without it."""


Observer = Callable[["Event"], object]


class Run:
    """One call of a technique (or one look) while it lasts."""

    def __init__(self, method: str, parent: str | None, query: Query | None) -> None:
        self.method, self.parent, self.query = method, parent, query
        self.id = os.urandom(8).hex()  # touches no generator that a seed governs
        self.started = time.perf_counter()

    def tell(
        self,
        kind: str,
        *,
        result: Result | None = None,
        error: str = "",
        progress: Progress | None = None,
        look: Look | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Send an event of this run to every observer."""
        if not _observers:
            return
        from .event import Event

        seconds = 0.0 if kind == BEGIN else time.perf_counter() - self.started
        send(
            Event(
                kind, self.id, self.parent, self.method, time.time(), seconds, query=self.query, result=result,
                error=error, progress=progress, look=look, arguments=arguments,
            )
        )  # fmt: skip


_observers: tuple[Observer, ...] = ()  # replaced, never changed: a delivery under way keeps its own list
_lock = threading.Lock()
_current: contextvars.ContextVar[Run | None] = contextvars.ContextVar("microtome_run", default=None)


def add_observer(observer: Observer) -> None:
    """Tell `observer` of every event from now on, in all threads.

    Raises ArgumentError for one that is no function, or is there already (it would hear everything twice).
    """
    global _observers
    if not callable(observer):
        raise ArgumentError(
            f"{observer!r} is no observer", why="it cannot be called", instead="give a function of an Event"
        )
    with _lock:
        if observer in _observers:
            raise ArgumentError(
                f"{_name(observer)} observes already",
                why="it would hear every event twice",
                instead="remove it first",
            )
        _observers = (*_observers, observer)


def remove_observer(observer: Observer) -> None:
    """Stop telling `observer`. Raises ArgumentError when it does not observe."""
    if not _drop(observer):
        raise ArgumentError(
            f"{_name(observer)} does not observe", why="it was never added", instead="add_observer"
        )


def _drop(observer: Observer) -> bool:
    global _observers
    with _lock:
        rest = tuple(o for o in _observers if o != observer)
        found = len(rest) < len(_observers)
        _observers = rest
    return found


@contextmanager
def observe(observer: Observer) -> Iterator[Observer]:
    """Tell `observer` of every event inside the block."""
    add_observer(observer)
    try:
        yield observer
    finally:
        _drop(observer)


def send(event: Event) -> None:
    """Give an event to every observer; one that raises gets a warning that names it.

    Any Exception is caught here. An observer is foreign code that keeps books about
    a run; a full disk or a locked database there must not end a measurement of hours, nor keep other
    observers from hearing of it. Nothing is hidden: each fault is an ObserverWarning, given after all were
    told, with the observer's name and the error; KeyboardInterrupt and the like pass through.
    """
    faults: list[tuple[Observer, Exception]] = []
    for observer in _observers:
        try:
            observer(event)
        except Exception as error:  # noqa: BLE001 - see above
            faults.append((observer, error))
    for observer, fault in faults:
        text = f"observer {_name(observer)} failed at {event.kind!r} of {event.method}: {type(fault).__name__}: {fault}"
        warnings.warn(text, ObserverWarning, stacklevel=3)


def _name(observer: Observer) -> str:
    name = getattr(observer, "__qualname__", None) or type(observer).__qualname__
    return f"{getattr(observer, '__module__', None) or type(observer).__module__}.{name}"


def current_run() -> str | None:
    """The id of the run in which this is called, None outside any."""
    run = _current.get()
    return run.id if run else None


@contextmanager
def running(method: str, query: Query, arguments: Mapping[str, Any] | None = None) -> Iterator[Run]:
    """A run as a child of the current one: begin first; failed or interrupted if the block raises.

    The end is told by the caller, who has the result, after the block.
    """
    parent = _current.get()
    run = Run(method, parent.id if parent else None, query)
    token = _current.set(run)
    try:
        run.tell(BEGIN, arguments=arguments)
        yield run
    except BaseException as error:
        kind = FAILED if isinstance(error, Exception) else INTERRUPTED
        try:
            run.tell(kind, error=f"{type(error).__name__}: {error}")
        except ObserverWarning as fault:  # raised only under `-W error`; it must not replace what went wrong
            error.add_note(str(fault))
        raise
    finally:
        _current.reset(token)


def progress(done: float, total: float | None = None, unit: str = "", note: str = "") -> None:
    """Say how far the current run is; without a run or an observer nobody hears it.

    Raises ArgumentError unless 0 <= done <= total.
    """
    if not done >= 0 or (total is not None and not done <= total):
        raise ArgumentError(
            f"progress: {done} of {total}", why="done runs from 0 to total", instead="count finished work"
        )
    run = _current.get()
    if run is not None and _observers:
        from .event import Progress

        run.tell(PROGRESS, progress=Progress(done, total, unit, note))


def emit_look(model: Any, prompts: Any, sites: Iterable[Any]) -> None:
    """Tell observers that somebody looked at `sites` of `model` on `prompts`: raw looking counts as having seen.

    Inside a technique the look's parent is that run. Costs nothing without observers. `model` needs `.hash`;
    `prompts` are described as a query's parameters are.
    """
    if not _observers:
        return
    from .event import Look
    from .stamp import content_hash, describe

    parent = _current.get()
    look = Look(content_hash(model), describe(prompts, "prompts"), tuple(str(site) for site in sites))
    run = Run("look", parent.id if parent else None, None)
    run.tell(LOOK, look=look, arguments={"model": model, "prompts": prompts})


def in_this_run(function: Callable[P, R]) -> Callable[P, R]:
    """The function with the current run carried along, for use in another thread.

    `pool.submit(in_this_run(work), item)`: techniques called in `work` are children of the run here.
    """
    context = contextvars.copy_context()

    def carried(*args: P.args, **kwargs: P.kwargs) -> R:
        return context.copy().run(function, *args, **kwargs)  # a context can be entered once at a time

    return carried
