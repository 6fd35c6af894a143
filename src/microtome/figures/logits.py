"""Pictures of direct logit attribution: the pieces that add up to the metric."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from .cells import cells_of, unique
from .colours import MUTED
from .grid import Scale, by_part, draw_bar, draw_grid, draw_key
from .maps import other_metrics
from .panels import Picture
from .rows import Row, draw_bars, draw_row_key, strongest
from .sheet import Sheet
from .snippet import call
from .text import number, unit

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ..results.result import Result


def draw(result: Result, metric: str | None = None, most: int = 20) -> go.Figure:
    """The largest pieces as bars, then all others as one, then the sum of all. Raises ResultError as the map."""
    cells = cells_of(result, metric)
    rows, hidden = strongest(cells, most)
    value = cells.frame["value"].to_numpy(float)
    total, shown = float(np.nansum(value)), float(sum(r.value for r in rows))
    if hidden:
        rows.append(
            Row(
                f"{hidden} others",
                total - shown,
                hover=f"the sum of the {hidden} pieces not shown: {number(total - shown)}",
            )
        )
    rows.append(Row("sum of all", total, hover=f"all {len(value)} pieces: {number(total)}"))
    sheet = Sheet(
        result,
        "What each part writes towards the answer",
        "" if metric is None else call("logits", "draw", metric=metric),
    )
    panel = draw_bars(sheet, rows, f"direct contribution, {unit(cells.metric)}")
    sheet.line(panel, y=len(rows) - (2.5 if hidden else 1.5), colour=MUTED)
    draw_row_key(sheet, rows, cells.rule)
    return sheet.figure()


def by_layer(result: Result, metric: str | None = None) -> go.Figure:
    """Layer x head, with one more column for every other part of a layer. Raises ResultError as the map."""
    cells = cells_of(result, metric)
    scale = Scale(cells.limit, f"direct contribution, {unit(cells.metric)}", null=cells.null)
    sheet = Sheet(result, "Direct contributions by layer and part", call("logits", "by_layer", metric=metric))
    grid = by_part(cells, unique(cells.frame["point"].tolist()))
    draw_bar(sheet, scale)
    draw_grid(sheet, grid, scale)
    draw_key(sheet, [grid], scale, cells.rule)
    left = int(cells.frame["layer"].isna().sum())
    if left:
        sheet.key("…", MUTED, f"{left} pieces outside the layers (embeddings, biases) are in the bars")
    return sheet.figure()


def pictures(result: Result) -> tuple[Picture, ...]:
    """All pictures of a direct logit attribution."""
    made = [
        Picture(
            "pieces",
            "The pieces add up to the metric. What a part does through later parts is not in its piece.",
            partial(draw, result),
        )
    ]
    if cells_of(result).frame["layer"].notna().any():
        made.append(
            Picture(
                "by layer",
                "The same pieces at their places.",
                partial(by_layer, result),
                call("logits", "by_layer"),
            )
        )
    made += [
        Picture(
            f"pieces of {m}",
            "The same under another metric.",
            partial(draw, result, m),
            call("logits", "draw", metric=m),
            secondary=True,
        )
        for m in other_metrics(result)
    ]
    return tuple(made)
