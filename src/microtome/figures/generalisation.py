"""Pictures of a generalisation matrix: trained on by tested on, beside bag of words and the random twin, and the cosines."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ResultError
from .cells import unique
from .colours import BLACK, INK
from .grid import Grid, Scale, draw_bar, draw_grid
from .panels import Picture
from .sheet import Sheet
from .snippet import call
from .tables import need
from .text import number, visible

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from ..results.result import Result

CHANCE, ALPHA = 0.5, 0.001
PANELS = {"value": "probe", "words": "bag of words", "twin": "random twin"}


def draw(result: Result) -> go.Figure:
    """AUROC above chance of every pair of datasets, the probe's and the baselines' (tables["matrix"]).

    Raises ResultError without that table.
    """
    table = need(result, "matrix")
    sheet = Sheet(result, "Trained on one dataset, tested on another")
    shown = [c for c in PANELS if np.isfinite(table[c].to_numpy(float)).any()]
    if not shown:
        raise ResultError("no pair was tested", why="all AUROC are missing", instead="see its controls")
    ends = table[["null_low", "null_high"]].to_numpy(float)
    null = (
        (float(np.nanmin(ends[:, 0])) - CHANCE, float(np.nanmax(ends[:, 1])) - CHANCE)
        if np.isfinite(ends).any()
        else None
    )
    scale = Scale(CHANCE, "AUROC - 0.5 (0: chance)", null=null)
    draw_bar(sheet, scale)
    for column in shown:
        grid = _grid(table, column, "trained", "tested", PANELS[column], CHANCE)
        draw_grid(sheet, grid, scale)
    if null is None:
        sheet.key("!", INK, "no null was drawn for these numbers")
    else:
        sheet.key("├┤", INK, "null of shuffled training labels, over all pairs")
        sheet.key("●", BLACK, "above that null (p at most .001)")
    return sheet.figure()


def cosines(result: Result) -> go.Figure:
    """Cosines between the datasets' directions (tables["cosines"]).

    Raises ResultError without that table.
    """
    table = need(result, "cosines")
    sheet = Sheet(result, "Are they one direction", call("generalisation", "cosines"))
    null = table["null_high"].to_numpy(float)
    ends = (-float(np.nanmax(null)), float(np.nanmax(null))) if np.isfinite(null).any() else None
    scale = Scale(1.0, "cosine of the directions", null=ends)
    draw_bar(sheet, scale)
    draw_grid(sheet, _grid(table, "value", "first", "second", "", 0.0), scale)
    if ends is None:
        sheet.key("!", INK, "no null was drawn for these numbers")
    else:
        sheet.key("├┤", INK, "null: directions from shuffled labels")
    return sheet.figure()


def _grid(table: pd.DataFrame, column: str, first: str, second: str, heading: str, middle: float) -> Grid:
    rows, columns = unique(table[first].tolist()), unique(table[second].tolist())
    values = np.full((len(rows), len(columns)), np.nan)
    dots = np.zeros(values.shape, bool)
    words = [[""] * len(columns) for _ in rows]
    hover = [[""] * len(columns) for _ in rows]
    for r in table.to_dict("records"):
        i, j = rows.index(r[first]), columns.index(r[second])
        value = float(r[column])
        values[i, j] = value - middle
        words[i][j] = number(value) if np.isfinite(value) else ""
        hover[i][j] = f"{visible(r[first])}, {visible(r[second])}\n{number(value)}"
        dots[i, j] = column == "value" and float(r.get("p", 1.0)) <= ALPHA
    none = np.zeros(values.shape, bool)
    names = [visible(r, most=14, prose=True) for r in rows]
    titles = ("trained on", "tested on") if first == "trained" else ("direction of", "direction of")
    return Grid(
        heading,
        names,
        [visible(c, most=14, prose=True) for c in columns],
        *titles,
        values,
        none,
        dots,
        hover,
        None,
        words,
    )


def pictures(result: Result) -> tuple[Picture, ...]:
    """All pictures of a generalisation matrix."""
    made = [
        Picture(
            "matrix",
            "Off the diagonal a probe must stand above what shared words and untrained weights give.",
            partial(draw, result),
        )
    ]
    if len(result.tables.get("cosines", ())):
        made.append(Picture("cosines", "Equal accuracy need not mean an equal direction.", partial(cosines, result),
                            call("generalisation", "cosines"), secondary=True))  # fmt: skip
    return tuple(made)
