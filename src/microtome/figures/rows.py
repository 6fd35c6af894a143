"""Rows of numbers: one bar or point a line, with its interval, on its null band."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .cells import Cells, describe
from .colours import BAND, INK, MUTED, NEGATIVE, POSITIVE, series
from .sheet import Panel, Sheet, axis
from .text import inert, number, stacked, visible

ROW = 20
NAN = float("nan")


@dataclass(frozen=True)
class Row:
    """One number: bounds are NaN where unknown; `clear` says that it stands out from its null (None: not known)."""

    name: str
    value: float
    low: float = NAN
    high: float = NAN
    null_low: float = NAN
    null_high: float = NAN
    clear: bool | None = None
    hover: str = ""


def strongest(cells: Cells, most: int, *, keep: Sequence[str] = ()) -> tuple[list[Row], int]:
    """The cells with the largest |value| as rows, and how many are not among them. Sites in `keep` always are."""
    frame = cells.frame[
        np.isfinite(cells.frame["value"].to_numpy(float)) & ~cells.frame["zero"].to_numpy(bool)
    ]
    size = frame["value"].abs() + np.where(frame["site"].isin(list(keep)), 1e30, 0.0)
    order = size.sort_values(ascending=False, kind="stable").index[:most]
    order = frame.loc[order, "value"].abs().sort_values(ascending=False, kind="stable").index
    return [to_row(cells, i) for i in order], len(frame) - len(order)


def to_row(cells: Cells, index: Any) -> Row:
    """One cell as a row."""
    row: Any = cells.frame.loc[index].to_dict()
    name = visible(row["site"], most=26 if "->" in str(row["site"]) else 20)
    if row["position"] is not None:
        name += f" @ {cells.position(row['position'])}"
    clear = None if cells.significant is None else bool(cells.significant[index])
    return Row(
        name,
        row["value"],
        row["low"],
        row["high"],
        row["null_low"],
        row["null_high"],
        clear,
        describe(row, cells),
    )


def draw_bars(
    sheet: Sheet, rows: Sequence[Row], title: str, *, heading: str = "", height: int = ROW
) -> Panel:
    """Bars from 0, one a line: pale where nothing sets them apart from their null."""
    import plotly.graph_objects as go

    x = axis(title, span=extent(rows))
    y = axis(
        span=(len(rows) - 0.5, -0.5),
        grid=False,
        ticks=(list(range(len(rows))), [stacked(r.name) for r in rows]),
    )
    lines = max((r.name.count("\n") for r in rows), default=0)
    panel = sheet.panel(max((height + 14 * lines) * len(rows), 40), x, y, heading=heading)
    for i, row in enumerate(rows):
        if np.isfinite(row.null_low) and np.isfinite(row.null_high):
            sheet.box(panel, (row.null_low, row.null_high), (i - 0.46, i + 0.46), BAND)
    sheet.line(panel, x=0, colour=MUTED)
    for sign, ramp in ((1, POSITIVE), (-1, NEGATIVE)):
        for clear, opacity in ((True, 1.0), (False, 0.4)):
            found = [
                i
                for i, r in enumerate(rows)
                if (r.value >= 0) == (sign > 0) and (r.clear is not False) == clear
            ]
            if found:
                sheet.add(
                    panel,
                    go.Bar(
                        orientation="h",
                        y=found,
                        x=[rows[i].value for i in found],
                        width=0.56,
                        marker={"color": ramp[2], "line": {"width": 0}},
                        opacity=opacity,
                        hoverinfo="text",
                        hovertext=[hover(rows[i]) for i in found],
                        textposition="none",
                    ),
                )
    whiskers(sheet, panel, rows)
    return panel


def whiskers(sheet: Sheet, panel: Panel, rows: Sequence[Row]) -> None:
    """The intervals, drawn over what is there."""
    import plotly.graph_objects as go

    known = [
        i for i, r in enumerate(rows) if np.isfinite(r.low) and np.isfinite(r.high) and np.isfinite(r.value)
    ]
    if not known:
        return
    bars = {
        "type": "data",
        "symmetric": False,
        "array": [rows[i].high - rows[i].value for i in known],
        "arrayminus": [rows[i].value - rows[i].low for i in known],
        "color": INK,
        "thickness": 1.2,
        "width": 3,
    }
    sheet.add(
        panel,
        go.Scatter(
            x=[rows[i].value for i in known],
            y=known,
            mode="markers",
            hoverinfo="skip",
            error_x=bars,
            marker={"size": 3, "color": INK, "symbol": "circle"},
        ),
    )


def draw_points(
    sheet: Sheet, groups: Sequence[tuple[str, Sequence[Row]]], title: str, *, heading: str = ""
) -> Panel:
    """Several points a line, one shape and colour per series.

    groups: (name of the line, its rows); a row's name is its series. Series keep their order of appearance.
    """
    import plotly.graph_objects as go

    names = list(dict.fromkeys(row.name for _, rows in groups for row in rows))
    flat = [row for _, rows in groups for row in rows]
    x = axis(title, span=extent(flat))
    y = axis(
        span=(len(groups) - 0.5, -0.5),
        grid=False,
        ticks=(list(range(len(groups))), [stacked(g) for g, _ in groups]),
    )
    panel = sheet.panel(max(len(groups) * (14 * len(names) + 12), 60), x, y, heading=heading)
    sheet.line(panel, x=0, colour=MUTED)
    for i in range(1, len(groups)):
        sheet.line(panel, y=i - 0.5, colour=BAND)
    for k, name in enumerate(names):
        colour, symbol = series(k)
        at = [
            (i - 0.4 + 0.8 * (k + 0.5) / len(names), row)
            for i, (_, rows) in enumerate(groups)
            for row in rows
            if row.name == name
        ]
        bars = {
            "type": "data",
            "symmetric": False,
            "color": colour,
            "thickness": 1.5,
            "width": 3,
            "array": [_gap(r.high, r.value) for _, r in at],
            "arrayminus": [_gap(r.value, r.low) for _, r in at],
        }
        for place, row in at:
            if np.isfinite(row.null_low) and np.isfinite(row.null_high):
                sheet.box(
                    panel,
                    (row.null_low, row.null_high),
                    (place - 0.4 / len(names), place + 0.4 / len(names)),
                    BAND,
                )
        sheet.add(
            panel,
            go.Scatter(
                x=[r.value for _, r in at],
                y=[p for p, _ in at],
                mode="markers",
                error_x=bars,
                hoverinfo="text",
                hovertext=[hover(r) for _, r in at],
                marker={"size": 8, "color": colour, "symbol": symbol},
            ),
        )
    return panel


def extent(rows: Sequence[Row]) -> tuple[float, float]:
    """A range that holds 0, all values, intervals and null bands, with room at both ends."""
    known = [v for r in rows for v in (r.value, r.low, r.high, r.null_low, r.null_high) if np.isfinite(v)]
    low, high = min([0.0, *known]), max([0.0, *known])
    room = 0.06 * ((high - low) or 1.0)
    return low - (room if low < 0 else 0.02 * (high - low or 1.0)), high + room


def hover(row: Row) -> str:
    """Hover text of a row, inert."""
    if row.hover:
        return "<br>".join(map(inert, row.hover.split("\n")))
    bounds = f" [{number(row.low)}, {number(row.high)}]" if np.isfinite(row.low) else ""
    return inert(f"{row.name.replace(chr(10), ' ')}: {number(row.value)}{bounds}")


def draw_row_key(sheet: Sheet, rows: Sequence[Row], rule: str) -> None:
    """The key of bars: what a whisker, a band and a pale bar are, and a warning where there is no null."""
    if any(np.isfinite(r.low) for r in rows):
        sheet.key("├┤", INK, "interval over clusters of prompts")
    if any(np.isfinite(r.null_low) for r in rows):
        sheet.key("■", BAND, "null band")
    else:
        sheet.key("!", INK, "no null was drawn for these numbers")
    if any(r.clear is False for r in rows):
        sheet.key(
            "■", POSITIVE[1], f"pale: not {rule}" if rule.startswith("outside") else f"pale: not {rule}"
        )


def _gap(high: float, low: float) -> float:
    gap = high - low
    return float(gap) if np.isfinite(gap) else 0.0
