"""Edits that stay in force in every run inside a block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from torch import nn

from microtome.errors import EditError
from microtome.results.events import current_run
from microtome.trace.edits import BaseEdit

# (id of the module, the technique's run in which the block was opened, the edit)
_scoped: ContextVar[tuple[tuple[int, str | None, BaseEdit], ...]] = ContextVar(
    "microtome_scoped_edits", default=()
)


@contextmanager
def editing(hf: nn.Module, edits: Sequence[BaseEdit]) -> Iterator[None]:
    """Keep edits in force on this module inside the block, in this thread; always taken back."""
    token = _scoped.set(_scoped.get() + tuple((id(hf), current_run(), e) for e in edits))
    try:
        yield
    finally:
        _scoped.reset(token)


def in_force(hf: nn.Module) -> list[BaseEdit]:
    """The edits of the blocks around, outermost first.

    Raises
    ------
    EditError: a technique runs inside a block that it did not open: its result would not say that the model was edited.
    """
    mine = [(run, edit) for owner, run, edit in _scoped.get() if owner == id(hf)]
    if any(run != current_run() for run, _ in mine):
        raise _refused([edit for _, edit in mine], "its result would not say that the model was edited")
    return [edit for _, edit in mine]


def refuse_in_force(hf: nn.Module) -> None:
    """For what cannot run with them.

    Raises
    ------
    EditError: edits are in force.
    """
    if edits := in_force(hf):
        raise _refused(edits, "a sweep replays recorded layers, which know nothing of edits around it")


def _refused(edits: Sequence[BaseEdit], why: str) -> EditError:
    return EditError(
        f"a technique runs while edits are in force: {', '.join(map(str, edits[:3]))}",
        why=why,
        instead="call it outside model.editing(...), or run the edits one forward at a time: model.run(..., edits=...)",
    )
