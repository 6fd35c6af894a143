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
from .tables import need, table_of
from .text import layer_of, number, visible

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


def layers(result: Result) -> go.Figure:
    """AUROC on each dataset's own test texts, layer by layer (tables["probes"] of the children).

    Raises ResultError without children that have that table.
    """
    probes = _probes(result)
    if not probes:
        raise ResultError("no dataset has a probe of its own here", why="`each` was not asked for", instead="generalisation(..., each=True)")  # fmt: skip
    sheet = Sheet(result, "Each dataset by its own probes", call("generalisation", "layers"))
    ends = np.concatenate([t[["null_low", "null_high"]].to_numpy(float) for t in probes.values()])
    known = ends[np.isfinite(ends).all(1)]
    null = (float(known[:, 0].min()) - CHANCE, float(known[:, 1].max()) - CHANCE) if len(known) else None
    scale = Scale(CHANCE, "AUROC on held-out texts - 0.5 (0: chance)", null=null)
    draw_bar(sheet, scale)
    draw_grid(sheet, _by_layer(probes), scale)
    if null is None:
        sheet.key("!", INK, "no null was drawn for these numbers")
    else:
        sheet.key(
            "├┤",
            INK,
            "null: best closed-form probe of all layers under shuffled labels, widest of the datasets",
        )
        sheet.key("●", BLACK, "above that of its own dataset")
    return sheet.figure()


def _probes(result: Result) -> dict[str, pd.DataFrame]:
    """Per dataset its rows of probes along the layers."""
    matrix = table_of(result, "matrix")
    names = [] if matrix is None else unique(matrix["trained"].tolist())  # one child for each, in this order
    named = [visible(n, most=14, prose=True) for n in names]
    out = {}
    for k, child in enumerate(result.children):
        table = table_of(child, "probes")
        if child.kind == "probe" and table is not None:
            rows = table[(table["what"] == "probe") & (table["site"].astype(str) != "")]
            out[named[k] if k < len(named) else f"{k + 1}"] = rows.drop_duplicates("site").set_index("site")
    return out


def _by_layer(probes: dict[str, pd.DataFrame]) -> Grid:
    sites = unique([s for rows in probes.values() for s in rows.index])
    shape = (len(sites), len(probes))
    values, dots = np.full(shape, np.nan), np.zeros(shape, bool)
    hover = [["not measured"] * len(probes) for _ in sites]
    for j, (name, rows) in enumerate(probes.items()):
        for site, row in rows.iterrows():
            i = sites.index(site)
            values[i, j] = float(row["value"]) - CHANCE
            dots[i, j] = float(row["value"]) > float(row["null_high"])
            hover[i][j] = f"{name}, {visible(site)}\n{visible(row['kind'])}: AUROC {number(row['value'])}"
    return Grid(
        "",
        [layer_of(s) for s in sites],
        list(probes),
        "layer",
        "trained and tested on",
        values,
        np.zeros(shape, bool),
        dots,
        hover,
    )


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
    if any("probes" in child.tables for child in result.children):
        made.append(Picture("layers and datasets", "Where each dataset's own label can be read, before any transfer.", partial(layers, result),
                            call("generalisation", "layers")))  # fmt: skip
    if len(result.tables.get("cosines", ())):
        made.append(Picture("cosines", "Equal accuracy need not mean an equal direction.", partial(cosines, result),
                            call("generalisation", "cosines"), secondary=True))  # fmt: skip
    return tuple(made)
