"""Pictures of a dissection as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ResultError
from .attribution import agreement_picture
from .panels import Picture, pictures_of

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ..results.result import Result


def draw(result: Result) -> go.Figure:
    """The picture that stands for a dissection: its first patching map, else its first stage that has one.

    Raises ResultError for a dissection without a stage that can be drawn.
    """
    first = [c for c in result.children if c.kind == "activation_patching"]
    for child in (*first, *result.children):
        found = pictures_of(child)
        if found:
            return found[0].draw()
    raise ResultError("this dissection has no picture", why="no stage of it has one", instead="use tables")


def pictures(result: Result) -> tuple[Picture, ...]:
    """What belongs to no single stage: the agreement of estimate and exact effect, unless a stage shows it."""
    if any("agreement" in child.tables for child in result.children):
        return ()
    return agreement_picture(result)
