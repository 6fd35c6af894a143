"""The picture of a training: every measure over the steps, above the range that scrambled weights give."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from .colours import BAND, INK, SERIES
from .panels import Picture
from .sheet import Sheet, axis
from .tables import need
from .text import inert, number, visible

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from ..results.result import Result

HEIGHT, MOST = 90, 12


def draw(result: Result) -> go.Figure:
    """A panel per measure over the steps (tables["progress"]); the null of each in grey, where one was drawn.

    Raises ResultError for a result without that table.
    """
    table = need(result, "progress")
    sheet = Sheet(result, "What the method says as training goes on")
    steps = table["step"].to_numpy(float)
    room = 0.02 * max(float(np.ptp(steps)), 1.0)
    span = (float(steps.min()) - room, float(steps.max()) + room)
    names = list(dict.fromkeys(map(str, table["measure"])))
    bands = 0
    for i, name in enumerate(names[:MOST]):
        part = table[table["measure"].astype(str) == name].sort_values("step")
        last = i == len(names[:MOST]) - 1
        bands += _measure(sheet, name, part, span, last)
    sheet.key("●", SERIES[0], "a checkpoint")
    if bands:
        sheet.key("■", BAND, "range of the same network with its weights in random order")
    if bands < len(names[:MOST]):
        sheet.key(
            "!", INK, "no null was drawn for " + ("these numbers" if not bands else "some of these numbers")
        )
    if len(names) > MOST:
        sheet.key("…", INK, f"{len(names) - MOST} other measures are in the data, not in this picture")
    return sheet.figure()


def _measure(sheet: Sheet, name: str, part: pd.DataFrame, span: tuple[float, float], last: bool) -> int:
    """One panel; 1 where it has a null."""
    import plotly.graph_objects as go

    low, high = (part[c].to_numpy(float) for c in ("null_low", "null_high"))
    value, step = part["value"].to_numpy(float), part["step"].to_numpy(float)
    known = np.concatenate([x[np.isfinite(x)] for x in (low, high, value)] + [np.zeros(1)])
    room = 0.08 * (float(np.ptp(known)) or 1.0)
    y = axis("value", span=(float(known.min()) - room, float(known.max()) + room))
    panel = sheet.panel(
        HEIGHT, axis("step" if last else "", span=span), y, heading=visible(name, most=40).replace("_", " ")
    )
    there = bool(np.isfinite(low).any() and np.isfinite(high).any())
    if there:
        a, b = float(np.nanmin(low)), float(np.nanmax(high))
        ring = {
            "mode": "lines",
            "fill": "toself",
            "fillcolor": BAND,
            "line": {"width": 1, "color": BAND},
            "hoverinfo": "skip",
        }
        sheet.add(panel, go.Scatter(x=[*span, *span[::-1]], y=[a, a, b, b], **ring))
    null = (
        f"\nscrambled weights: {number(float(np.nanmin(low)))} to {number(float(np.nanmax(high)))}"
        if there
        else ""
    )
    text = [
        inert(f"{visible(name)}, step {int(s)}: {number(float(v))}{null}").replace("\n", "<br>")
        for s, v in zip(step, value, strict=True)
    ]
    sheet.add(panel, go.Scatter(x=step, y=value, mode="lines+markers", hoverinfo="text", hovertext=text,
                                line={"color": SERIES[0], "width": 2}, marker={"size": 6, "color": SERIES[0]}))  # fmt: skip
    return int(there)


def pictures(result: Result) -> tuple[Picture, ...]:
    """All pictures of a training."""
    return (
        Picture(
            "measures",
            "A measure says something of the mechanism only where it leaves what scrambled weights give.",
            partial(draw, result),
        ),
    )
