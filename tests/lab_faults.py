"""A process that dies at a chosen moment: before or after its k-th fsync, rename, replace or commit."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy.engine.default import DefaultDialect

import microtome.lab.place as places
from lab_tools import Known, Model, leaf, opened, predict, tree
from microtome.lab.reading import Wanted  # noqa: F401 - imported before the fork
from microtome.results import emit_look, observe


class Moments:
    """Counts what reaches the disk, and kills its process at one of these moments. at=-1: only counts."""

    def __init__(self, at: int = -1, *, after: bool = False) -> None:
        self.at, self.after, self.count = at, after, 0

    def around(self, function: Callable) -> Callable:
        def counted(*given, **named):
            self._now(False)
            done = function(*given, **named)
            self._now(True)
            return done

        return counted

    def _now(self, after: bool) -> None:
        if self.count == self.at and after == self.after:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += after

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside it the moments are counted."""
        named = [(os, "fsync"), (os, "rename"), (os, "replace"), (DefaultDialect, "do_commit")]
        kept = [(owner, name, getattr(owner, name)) for owner, name in named]
        for owner, name, function in kept:
            setattr(owner, name, self.around(function))
        try:
            yield
        finally:
            for owner, name, function in kept:
                setattr(owner, name, function)


def whole_study(place: places.Place, say: Callable[[str], None]) -> None:
    """Everything that a study does, saying what is done once its record must keep it."""
    with opened(place) as one:

        def told(event):
            if event.kind in ("begin", "end"):
                say(f"{event.kind} {event.run}")

        with observe(told):  # after the study: it hears of an event when the record has it
            leaf(Model(), 1)
            tree(Known(), 2)
            emit_look(Model(), ["seen"], ["L0.z"])
        say("look")
        predict(one)
        say("prediction")
    say("closed")


def forked(work: Callable[[Callable[[str], None]], None], wait: Callable[[int], None] = lambda child: None) -> tuple[int, list[str]]:  # fmt: skip
    """Run `work` in a fork that ends without a word; (its exit code or minus the signal, what it said)."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.close(ours)
            work(lambda line: os.write(theirs, f"{line}\n".encode()) and None)
            code = 0
        except BaseException:  # noqa: BLE001 - shown, and the fork must not go on as the test
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(code)
    os.close(theirs)
    wait(child)
    with os.fdopen(ours) as pipe:
        said = pipe.read().splitlines()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said
