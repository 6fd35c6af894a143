"""Pictures of a description's score: each way of reading it beside random directions, shuffled descriptions, and by quantile."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from .cells import unique
from .colours import GLYPHS, INK, MUTED, series
from .examples import NO_NULL, draw_areas
from .panels import Picture
from .rows import Row, draw_points
from .sheet import Sheet, axis
from .snippet import call
from .tables import need
from .text import inert, number, visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ..results.result import Result


def draw(result: Result) -> go.Figure:
    """The area of every reader with its interval, on the band of random directions. Raises ResultError without cells."""
    return draw_areas(result, "Does the description say where the unit is active?", "a way of reading the description", "metric")  # fmt: skip


def arms(result: Result) -> go.Figure:
    """Each reader beside shuffled descriptions and beside what the top alone would say (tables["predictors"])."""
    table = need(result, "predictors")
    groups = []
    for row in table.to_dict("records"):
        own = Row("held-out tokens", float(row["value"]), float(row["low"]), float(row["high"]), hover=f"{row['reader']}: {number(float(row['value']))}")  # fmt: skip
        found = [own, Row("ten largest against the lower half", float(row["top_only"]), hover=f"top only: {number(float(row['top_only']))}")]  # fmt: skip
        if math.isfinite(row["shuffled_high"]):
            middle = (float(row["shuffled_low"]) + float(row["shuffled_high"])) / 2
            found.append(Row("shuffled descriptions", middle, float(row["shuffled_low"]), float(row["shuffled_high"]), hover="descriptions made of other words"))  # fmt: skip
        groups.append((visible(row["reader"], most=16), found))
    sheet = Sheet(result, "What a look at the top alone would have said", call("descriptions", "arms"))
    draw_points(sheet, groups, "area under the ROC (0.5 is chance)")
    names = list(dict.fromkeys(row.name for _, rows in groups for row in rows))
    for k, name in enumerate(names):
        sheet.key(GLYPHS[k], series(k)[0], name)
    if not any(math.isfinite(v) for v in table["shuffled_high"]):
        sheet.key("!", INK, NO_NULL)
    return sheet.figure()


def strata(result: Result) -> go.Figure:
    """The mean rank that each reader gives to the tokens of every quantile of the activation (tables["strata"])."""
    import plotly.graph_objects as go

    table = need(result, "strata")
    names = unique(table["stratum"].tolist())
    sheet = Sheet(result, "The description, quantile by quantile", call("descriptions", "strata"))
    panel = sheet.panel(220, axis("quantile of the activation", span=(-0.4, len(names) - 0.6), grid=False, ticks=(list(range(len(names))), [inert(str(n)) for n in names])),
                        axis("mean rank given (0 to 1)", span=(0.0, 1.0)))  # fmt: skip
    sheet.line(panel, y=0.5, colour=MUTED, dash="dot")
    for k, reader in enumerate(unique(table["unit"].tolist())):
        part = table[table["unit"] == reader]
        colour, symbol = series(k)
        hover = [inert(f"{reader}, {s}: {number(float(v))}") for s, v in zip(part["stratum"], part["predicted"], strict=True)]  # fmt: skip
        sheet.add(panel, go.Scatter(x=[names.index(s) for s in part["stratum"]], y=part["predicted"].to_numpy(float), mode="lines+markers", hoverinfo="text", hovertext=hover,
                                    line={"color": colour, "width": 2}, marker={"size": 7, "color": colour, "symbol": symbol}))  # fmt: skip
        sheet.key(GLYPHS[k % len(GLYPHS)], colour, str(reader))
    sheet.key("┅", MUTED, "a description that says nothing gives every quantile the same rank")
    if "cells" not in result.tables:
        sheet.key("!", INK, NO_NULL)
    return sheet.figure()


def pictures(result: Result) -> tuple[Picture, ...]:
    """All pictures of a score."""
    made = [Picture("score", "In the grey band the description fits random directions as well. The n-gram line reads no description at all.", partial(draw, result))]  # fmt: skip
    if "predictors" in result.tables:
        made.append(Picture("top only", "The ten largest against the lower half is the test that top examples invite, and almost any description passes it.", partial(arms, result),
                            call("descriptions", "arms")))  # fmt: skip
    if "strata" in result.tables:
        made.append(Picture("strata", "A description that is true below the top too rises from left to right.", partial(strata, result), call("descriptions", "strata"), secondary=True))  # fmt: skip
    return tuple(made)
