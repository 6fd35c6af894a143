"""Pictures of composition: which heads read what which heads write, against random rotations."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ResultError
from .colours import INK
from .grid import Grid, Scale, draw_bar, draw_grid
from .panels import Picture
from .rows import Row, draw_bars, draw_row_key
from .sheet import Sheet
from .snippet import call
from .tables import need
from .text import number, visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ..results.result import Result

KINDS = ("Q", "K", "V")
SIDES = {"Q": "queries", "K": "keys", "V": "values"}
TOP = 14
MOST = 16


def draw(result: Result) -> go.Figure:
    """The pairs that stand out most, by score, each on the band of its null.

    Raises ResultError without a table "pairs".
    """
    table = need(result, "pairs").head(TOP)
    alpha = result.verdict.alpha
    rows = [
        Row(f"{visible(r['kind'], most=3)}: {visible(r['sender'], most=8)} to {visible(r['reader'], most=8)}", float(r["score"]),
            null_low=float(r["null_low"]), null_high=float(r["null_high"]), clear=bool(r["p"] <= alpha),
            hover=f"{number(float(r['z']))} deviations from its null, p {number(float(r['p']))}")
        for r in table.to_dict("records")
    ]  # fmt: skip
    sheet = Sheet(result, "Which heads read what which heads write")
    draw_bars(sheet, rows, "composition score, 1 if all that is written is read")
    draw_row_key(sheet, rows, f"p at most {number(alpha)} over all pairs")
    sheet.key(
        "…",
        INK,
        "Q, K, V: read by the later head's queries, keys or values; null: a random rotation between the two",
    )
    return sheet.figure()


def maps(result: Result) -> go.Figure:
    """Sender by reader for queries, keys and values; of many heads the largest of each pair of layers.

    Raises ResultError without the arrays.
    """
    if any(k not in result.tensors for k in KINDS):
        raise ResultError(
            "this result has no maps of composition",
            why="its arrays Q, K and V are missing",
            instead="draw(result)",
        )
    arrays = [np.asarray(result.tensors[k], dtype=float) for k in KINDS]
    names = _names(result, len(arrays[0]))
    grids = [_grid(values, names, kind) for values, kind in zip(arrays, KINDS, strict=True)]
    scale = Scale(max(float(np.nanmax(g.values)) for g in grids), "composition score", signed=False)
    sheet = Sheet(result, "Composition, sender by reader", call("composition", "maps"))
    draw_bar(sheet, scale)
    for grid in grids:
        draw_grid(sheet, grid, scale, cell=9 if len(grid.rows) > MOST else None)
    return sheet.figure()


def _names(result: Result, n: int) -> list[str]:
    table = result.tables.get("heads")
    return (
        [str(s) for s in table["site"]]
        if table is not None and len(table) == n
        else [str(i) for i in range(n)]
    )


def _grid(values: np.ndarray, names: list[str], kind: str) -> Grid:
    """Heads, or layers where there are many heads."""
    labels, title = names, "head"
    if len(names) > MOST and all(n.startswith("L") for n in names):
        layer = [n[1:].split("H")[0] for n in names]
        labels, title = list(dict.fromkeys(layer)), "layer"
        known = np.where(np.isnan(values), -np.inf, values)
        place = {name: [i for i, x in enumerate(layer) if x == name] for name in labels}
        values = np.array([[known[np.ix_(place[a], place[b])].max() for b in labels] for a in labels])
        values = np.where(np.isfinite(values), values, np.nan)
    absent = np.isnan(values)
    hover = [
        [
            f"{visible(a)} to {visible(b)}: {number(values[i, j])}" if not absent[i, j] else ""
            for j, b in enumerate(labels)
        ]
        for i, a in enumerate(labels)
    ]
    none = np.zeros(values.shape, bool)
    heading = f"read by {SIDES[kind]}" + (" (the largest of each two layers)" if title == "layer" else "")
    return Grid(
        heading, labels, labels, f"sender's {title}", f"reader's {title}", values, none, none, hover, absent
    )


def pictures(result: Result) -> tuple[Picture, ...]:
    """All pictures of composition."""
    made = [
        Picture(
            "pairs",
            "The pairs that stand out most from random rotations of the same heads.",
            partial(draw, result),
        )
    ]
    if all(k in result.tensors for k in KINDS):
        made.append(
            Picture(
                "maps",
                "Every pair: rows write, columns read.",
                partial(maps, result),
                call("composition", "maps"),
                secondary=True,
            )
        )
    return tuple(made)
