"""Two numbers per site against each other, on equal axes with the line where they agree."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .colours import INK, MUTED, SERIES
from .sheet import Panel, Sheet, axis
from .text import inert


def draw_scatter(
    sheet: Sheet,
    across: tuple[str, np.ndarray],
    up: tuple[str, np.ndarray],
    names: Sequence[str],
    hover: Sequence[str],
    *,
    named: int = 3,
    log: bool = False,
) -> Panel:
    """A point per site; the `named` largest upwards carry their names.

    across, up: axis title and values. log: both axes logarithmic, for values that are all positive.
    """
    import plotly.graph_objects as go

    (x_title, x), (y_title, y) = across, up
    span = extent(np.concatenate([x, y]), log)
    panel = sheet.panel(300, axis(x_title, span=span, log=log), axis(y_title, span=span, log=log))
    ends = [10**v for v in span] if log else list(span)
    if not log and span[0] < 0 < span[1]:
        sheet.line(panel, x=0, colour=MUTED, dash="dot")
        sheet.line(panel, y=0, colour=MUTED, dash="dot")
    sheet.add(
        panel,
        go.Scatter(
            x=ends, y=ends, mode="lines", line={"color": MUTED, "width": 1, "dash": "dash"}, hoverinfo="skip"
        ),
    )
    top = set(np.argsort(np.where(np.isfinite(y), -np.abs(y), np.inf), kind="stable")[:named].tolist())
    middle = (10 ** ((span[0] + span[1]) / 2)) if log else (span[0] + span[1]) / 2
    # names point inwards, so that none is cut off at the edge
    sides = ["middle left" if v > middle else "middle right" for v in x]
    sheet.add(panel, go.Scatter(
        x=x, y=y, mode="markers+text", hoverinfo="text", hovertext=[inert(h) for h in hover], textposition=sides,
        text=[inert(name) if i in top else "" for i, name in enumerate(names)], textfont={"size": 11, "color": INK},
        marker={"size": 7, "color": SERIES[0], "opacity": 0.7},
    ))  # fmt: skip
    return panel


def extent(values: np.ndarray, log: bool) -> tuple[float, float]:
    """A range for both axes, in powers of ten for logarithmic ones; it holds 0 otherwise."""
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0, 1.0
    if log:
        return math.log10(float(known.min())) - 0.15, math.log10(float(known.max())) + 0.2
    low, high = min(0.0, float(known.min())), max(0.0, float(known.max()))
    room = 0.08 * ((high - low) or 1.0)
    return (low - room if low < 0 else low - room / 3), high + room
