"""Work that a client can follow and stop.

A technique runs in a thread. Whoever wants it stopped sets a flag; the next event of the run (progress, a look, a stage that
begins) and the next call of any part of a model raise `Stopped` in that thread, which ends the run as Ctrl-C would: it is
recorded as interrupted. Work between those (a fit, drawing nulls) goes on until its next progress.
"""  # fmt: skip

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from microtome.results import Event

__all__ = ["Job", "Stopped", "listen", "stoppable", "working"]

_job: contextvars.ContextVar[Job | None] = contextvars.ContextVar("microtome_agents_job", default=None)
_WAIT = 0.1  # seconds between two looks at the flag while waiting


class Stopped(KeyboardInterrupt):
    """The client cancelled the call, or went away. What keeps finished parts at Ctrl-C keeps them now too."""


class Job:
    """One call of a client while it lasts.

    said: how far it is, in words; steps: how often it said so; both are read by another thread.
    """

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.said, self.steps = "", 0
        self._stop = threading.Event()
        self._over = threading.Event()

    def stop(self) -> None:
        """Ask it to stop at its next step."""
        self._stop.set()

    def over(self) -> None:
        """Say that its thread does nothing any more."""
        self._over.set()

    def wait(self, seconds: float) -> bool:
        """Wait until its thread is done; whether it is."""
        return self._over.wait(seconds)

    def check(self) -> None:
        """Raises Stopped when it was asked to stop."""
        if self._stop.is_set():
            raise Stopped("cancelled by the client")

    def say(self, text: str) -> None:
        """Say how far it is."""
        self.said, self.steps = text, self.steps + 1

    def take(self, lock: threading.Lock) -> None:
        """Take a lock, waiting as long as it takes. Raises Stopped when asked to stop meanwhile."""
        waited = False
        while not lock.acquire(timeout=_WAIT):
            if not waited:
                self.say("waiting: another call is using the models")
            waited = True
            self.check()


@contextmanager
def working(job: Job) -> Iterator[Job]:
    """Be in a job: events of this thread are its progress, and stop when it is to stop."""
    token = _job.set(job)
    try:
        job.check()
        yield job
    finally:
        _job.reset(token)


@contextmanager
def stoppable() -> Iterator[None]:
    """Have every call of a part of a model, of any model, look at the flag of this thread's job first.

    A sweep may do minutes of forwards between two events. The hook sees nothing and changes nothing; it is PyTorch's for all
    modules at once, so that no model carries it, and it is there only while an agent's technique runs.
    """
    from torch.nn.modules.module import register_module_forward_pre_hook

    def look(module: object, inputs: object) -> None:
        job = _job.get()
        if job is not None:
            job.check()

    handle = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


def listen(event: Event) -> None:
    """The observer that makes it so. It must be added before the record's: an event that stops a run is no event of it."""
    job = _job.get()
    if job is None:
        return
    if event.kind == "progress" and event.progress is not None:
        p = event.progress
        of = "" if p.total is None else f" of {p.total:g}"
        job.say(f"{event.method}: {p.done:g}{of} {p.unit}" + (f", {p.note}" if p.note else ""))
    # "end" comes when the result is there; "failed" and "interrupted" when it is over anyway
    if event.kind in ("progress", "look") or (event.kind == "begin" and event.parent is not None):
        job.check()
