"""Pictures of attribution patching: a first-order estimate of every patch from two forwards and one backward."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from .maps import draw_map, draw_strongest, other_metrics
from .panels import Picture
from .snippet import call

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ..results.result import Result


def draw(result: Result, metric: str | None = None) -> go.Figure:
    """The map of the estimates. Raises ResultError without effects or this metric."""
    return draw_map(result, "Attribution: the estimated effect of every patch", "estimated effect", metric=metric,
                    call="" if metric is None else call("attribution", "draw", metric=metric))  # fmt: skip


def strongest(result: Result, metric: str | None = None, most: int = 16) -> go.Figure:
    """The largest estimates as bars with intervals and null bands."""
    return draw_strongest(result, "The largest estimates", "estimated effect", metric=metric, most=most,
                          call=call("attribution", "strongest", metric=metric))  # fmt: skip


def pictures(result: Result) -> tuple[Picture, ...]:
    """All pictures of an attribution."""
    made = [Picture("map", "A first-order estimate: saturated attention and effects that cancel are missed. Believe a cell once "
                    "it was patched exactly.", partial(draw, result)),
            Picture("largest estimates", "The largest of them, with intervals where there are some.", partial(strongest, result),
                    call("attribution", "strongest"), secondary=True)]  # fmt: skip
    made += [Picture(f"map under {m}", "The same under another metric.", partial(draw, result, m), call("attribution", "draw", metric=m),
                     secondary=True) for m in other_metrics(result)]  # fmt: skip
    return tuple(made)
