"""The picture of directions found without labels: what each of them tells, the label among all else."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from .cells import unique
from .colours import INK
from .grid import Grid, Scale, draw_bar, draw_grid
from .panels import Picture
from .sheet import Sheet
from .tables import need
from .text import number, visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ..results.result import Result

CHANCE = 0.5


def draw(result: Result) -> go.Figure:
    """AUROC above chance, of the better end, of every direction for every target (tables["predicts"]).

    Raises ResultError without that table.
    """
    table = need(result, "predicts")
    rows, columns = unique(table["target"].tolist()), unique(table["direction"].tolist())
    values = np.full((len(rows), len(columns)), np.nan)
    words, hover = ([[""] * len(columns) for _ in rows] for _ in range(2))
    for r in table.to_dict("records"):
        i, j = rows.index(r["target"]), columns.index(r["direction"])
        values[i, j] = float(r["value"]) - CHANCE
        words[i][j] = number(float(r["value"]))
        hover[i][j] = (
            f"{visible(r['target'])} by {visible(r['direction'])}\nAUROC {number(float(r['value']))}"
        )
    null = table["null_high"].to_numpy(float)
    known = null[np.isfinite(null)]
    scale = Scale(
        CHANCE,
        "AUROC of the better end - 0.5",
        signed=False,
        null=(0.0, float(known.max()) - CHANCE) if known.size else None,
    )
    sheet = Sheet(result, "What directions without labels tell")
    draw_bar(sheet, scale)
    none = np.zeros(values.shape, bool)
    draw_grid(sheet, Grid("", [visible(r, most=22, prose=True) for r in rows], [visible(c, most=14, prose=True) for c in columns], "what is told", "direction", values, none, none, hover, None, words), scale)  # fmt: skip
    if known.size:
        sheet.key("├┤", INK, "null for the label: shuffled labels, best direction and better end")
    else:
        sheet.key("!", INK, "no null was drawn for these numbers")
    return sheet.figure()


def pictures(result: Result) -> tuple[Picture, ...]:
    """All pictures of unsupervised directions."""
    return (
        Picture(
            "told",
            "A direction without labels is about whatever stands out most: read its whole column, not the label's row.",
            partial(draw, result),
        ),
    )
