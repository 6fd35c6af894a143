"""What observers are told, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .query import Query
    from .result import Result


@dataclass(frozen=True)
class Progress:
    """`done` of `total` (None: not known) `unit`s, and a note."""

    done: float
    total: float | None
    unit: str
    note: str


@dataclass(frozen=True)
class Look:
    """A raw look at a model outside any technique's question: its hash, the prompts described, the sites."""

    model: str
    prompts: Any
    sites: tuple[str, ...]


@dataclass(frozen=True)
class Event:
    """One thing that happened in a run.

    Parameters
    ----------
    kind: "begin", "progress", "end", "failed", "interrupted" or "look".
    run, parent: ids (16 hex digits); parent is None for a run that no other started.
    method: the technique's name; "look" for a look.
    at: seconds since 1970; seconds: since the run began (0 at its begin).
    query: what is asked (None for a look); result: at the end; error: type and message when failed or
        interrupted; progress, look: at events of that kind.
    arguments: at the begin of a run the bound arguments, at a look "model" and "prompts": the live objects, from which
        a record learns how to ask again. An observer reads them while it is told and does not keep them.
    """

    kind: str
    run: str
    parent: str | None
    method: str
    at: float
    seconds: float
    query: Query | None = None
    result: Result | None = None
    error: str = ""
    progress: Progress | None = None
    look: Look | None = None
    arguments: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)
