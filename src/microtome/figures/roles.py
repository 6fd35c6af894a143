"""Pictures of head roles: predicted from weights against measured, and what is lost without the predicted heads."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .cells import unique
from .colours import BAND, INK, MUTED, series
from .panels import Picture
from .rows import Row, draw_bars, draw_row_key
from .sheet import Sheet, axis
from .snippet import call
from .tables import need, table_of
from .text import inert, number, visible

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from ..results.result import Result

NAMED = 3
PREDICTED = {
    "previous": "previous token: share of the QK circuit",
    "induction": "induction: matching through an earlier head",
    "copying": "copying: eigenvalues of the full OV circuit",
}
MEASURED = {"copying": "lift of the attended token"}


def draw(result: Result, text: str = "repeated") -> go.Figure:
    """Per role, each head's score from weights against what it does on one kind of text.

    Grey: below the head's own null of shuffled keys, at the largest of all heads. Raises ResultError without a table "roles".
    """
    table = need(result, "roles")
    kinds = [c for c in ("repeated", "natural") if c in table.columns]
    if text not in kinds:
        from ..errors import ResultError

        raise ResultError(f"nothing was measured on {text!r} text", why=f"texts are {kinds}", instead="one of them")  # fmt: skip
    sheet = Sheet(result, f"Heads by their weights, and what they do on {text} text", "" if text == "repeated" else call("roles", "draw", text=text))  # fmt: skip
    ranks = table_of(result, "ranks")
    for k, role in enumerate(unique(map(str, table["role"]))):
        _panel(sheet, table[table["role"] == role], role, text, ranks, k)
    sheet.key("●", series(0)[0], "stands out from its own null (1 % of heads would by chance)")
    sheet.key("○", MUTED, "does not")
    sheet.key("■", BAND, "measured where keys or tokens are shuffled")
    return sheet.figure()


def _panel(sheet: Sheet, part: pd.DataFrame, role: str, text: str, ranks: pd.DataFrame | None, k: int) -> None:  # fmt: skip
    import plotly.graph_objects as go

    x, y = part["predicted"].to_numpy(float), part[text].to_numpy(float)
    null = part[f"{text}_null"].to_numpy(float) if f"{text}_null" in part.columns else np.array([np.nan])
    panel = sheet.panel(
        190,
        axis(PREDICTED.get(role, visible(role)), span=_span(x)),
        axis(MEASURED.get(role, "mean attention"), span=_span(y)),
        heading=_said(role, text, ranks),
    )
    if np.isfinite(null).any():
        top = float(np.nanmax(null))
        sheet.box(panel, None, (-top if role == "copying" else 0.0, top), BAND)
    flagged = part["flagged"].to_numpy(bool)
    best = set(np.argsort(-y, kind="stable")[:NAMED].tolist())
    names = [visible(s, most=12) for s in part["site"]]
    middle = sum(_span(x)) / 2
    for clear in (False, True):
        at = np.flatnonzero(flagged == clear)
        if not len(at):
            continue
        marker = {"size": 7, "opacity": 0.75, "color": series(0)[0] if clear else MUTED, "symbol": "circle" if clear else "circle-open"}  # fmt: skip
        sheet.add(panel, go.Scatter(
            x=x[at], y=y[at], mode="markers+text", marker=marker, hoverinfo="text",
            hovertext=[inert(f"{names[i]}: predicted {number(x[i])}, measured {number(y[i])}") for i in at],
            text=[inert(names[i]) if i in best else "" for i in at], textfont={"size": 11, "color": INK},
            textposition=["middle left" if x[i] > middle else "middle right" for i in at],
        ))  # fmt: skip


def _span(values: np.ndarray) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    low, high = (min(0.0, float(known.min())), max(float(known.max()), 1e-9)) if known.size else (0.0, 1.0)
    room = 0.07 * (high - low)
    return low - room, high + room


def _said(role: str, text: str, ranks: pd.DataFrame | None) -> str:
    if ranks is None:
        return visible(role)
    found = ranks[(ranks["role"] == role) & (ranks["text"] == text)]
    if found.empty:
        return visible(role)
    row: Any = found.iloc[0]
    return f"{visible(role)}: rank correlation {number(row['spearman'])} (null up to {number(row['null_high'])}), p {number(row['p'])}"


def without(result: Result) -> go.Figure:
    """How much the loss rises without the predicted induction heads, and without random sets of heads.

    Raises ResultError without a table "ablations".
    """
    table = need(result, "ablations")
    sheet = Sheet(result, "Without the predicted induction heads", call("roles", "without"))
    shown: list[Row] = []
    for text in unique(map(str, table["text"])):
        rows = []
        part = table[(table["text"] == text) & ~table["heads"].astype(str).str.startswith("random")]
        for row in part.to_dict("records"):
            together = np.isfinite(row["null_high"])
            clear = bool(row["rise"] > row["null_high"]) if together else None
            name = f"{visible(row['heads'], most=10)}, {visible(row['where'], most=10)}"
            hover = f"{visible(row.get('sites', ''), most=60)}\n{number(float(row['rise']))} nats per token"
            rows.append(Row(name, float(row["rise"]), float(row["low"]), float(row["high"]), float(row["null_low"]), float(row["null_high"]), clear, hover))  # fmt: skip
        draw_bars(sheet, rows, "rise of the loss, nats per token", heading=f"{visible(text)} text")
        shown += rows
    draw_row_key(sheet, shown, "above every random set of as many heads")
    return sheet.figure()


def pictures(result: Result) -> tuple[Picture, ...]:
    """All pictures of head roles."""
    made = [Picture("weights and behaviour", "Across: the score from weights alone. Up: what the head does. Heads are points.", partial(draw, result))]  # fmt: skip
    table = result.tables.get("roles")
    if table is not None and "natural" in table.columns:
        made.append(Picture("on natural text", "The same on natural text.", partial(draw, result, "natural"),
                            call("roles", "draw", text="natural"), secondary=True))  # fmt: skip
    if len(result.tables.get("ablations", ())):
        made.append(Picture("without them", "\"repeats\": where an earlier copy tells the next token; \"elsewhere\": the other tokens. Grey: random sets of heads of the same thirds of the layers.",
                            partial(without, result), call("roles", "without")))  # fmt: skip
    return tuple(made)
