"""No SQLite connection is open across a fork: locks are kept per process, and a child that inherits a connection thinks
that it holds its parent's (sqlite.org/howtocorrupt.html, 2.6). A fork therefore waits for transactions under way in other
threads, and connections are closed before it; parent and child open their own again.
"""  # fmt: skip

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

__all__ = ["passing", "watch"]

PATIENCE = 10.0
"""Seconds for which a fork waits for other threads' transactions."""


class Closes(Protocol):
    """What has connections."""

    def close(self) -> None:
        """Close them."""


_watched: weakref.WeakSet[Closes] = weakref.WeakSet()
_changed = threading.Condition(threading.RLock())
_inside: dict[int, int] = {}  # thread -> how many transactions deep
_shut_by: int | None = None


def watch(one: Closes) -> None:
    """Close what this has open before every fork."""
    with _changed:
        _watched.add(one)


@contextmanager
def passing() -> Iterator[None]:
    """A transaction: it waits while a fork is under way."""
    me = threading.get_ident()
    with _changed:
        _changed.wait_for(lambda: _shut_by in (None, me) or me in _inside)
        _inside[me] = _inside.get(me, 0) + 1
    try:
        yield
    finally:
        with _changed:
            _inside[me] = _inside.get(me, 1) - 1
            if _inside[me] <= 0:
                del _inside[me]
            _changed.notify_all()


def _before() -> None:
    global _shut_by
    me = threading.get_ident()
    until = time.monotonic() + PATIENCE
    _changed.acquire()  # held over the fork: no thread of the parent begins a transaction in it
    _shut_by = me
    _changed.wait_for(lambda: not set(_inside) - {me}, max(0.0, until - time.monotonic()))
    if not _inside:
        for one in list(_watched):
            one.close()


def _in_parent() -> None:
    global _shut_by
    _shut_by = None
    _changed.notify_all()
    _changed.release()


def _in_child() -> None:
    global _shut_by, _changed
    _shut_by = None
    _inside.clear()  # the other threads are not here
    _changed = threading.Condition(threading.RLock())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
