"""Heatmaps: layer by position and layer by head, 0 in the middle of the scale, the null drawn on it.

A cell that cannot differ is hatched, one that was not measured is crossed out; neither looks like a measured 0.
A dot marks the cells that stand out from their null: the others are colour without a claim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .cells import Cells, describe, unique
from .colours import BLACK, EMPTY, HATCH, INK, MUTED, WHITE, diverging, sequential
from .sheet import CHAR, PHONE, Panel, Sheet, axis
from .text import inert, number, visible

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

HATCHED = "cannot differ, so never run: exactly 0"
CROSSED = "not measured"
MOST_ROWS = 40


@dataclass(frozen=True)
class Grid:
    """One heatmap: values, zero, measured and dots are [row, column]; hover and words (what is
    written in the cells) [row][column] plain text; absent: places that are no cell."""

    heading: str
    rows: Sequence[str]
    columns: Sequence[str]
    row_title: str
    column_title: str
    values: np.ndarray
    zero: np.ndarray
    dots: np.ndarray
    hover: Sequence[Sequence[str]]
    absent: np.ndarray | None = None
    words: Sequence[Sequence[str]] | None = None


@dataclass(frozen=True)
class Scale:
    """The colours of one or several grids: from -limit (or 0) to limit."""

    limit: float
    title: str
    signed: bool = True
    null: tuple[float, float] | None = None

    @property
    def low(self) -> float:
        """The lower end."""
        return -self.limit if self.signed else 0.0

    @property
    def colours(self) -> list[list[float | str]]:
        """Plotly's form of the scale."""
        return diverging() if self.signed else sequential()


def draw_bar(sheet: Sheet, scale: Scale) -> None:
    """The colour bar, with the null band as a bracket on it."""
    import plotly.graph_objects as go

    steps = np.linspace(scale.low, scale.limit, 121)
    ends = [scale.low, scale.limit] if not scale.signed else [scale.low, 0.0, scale.limit]
    inner = (
        [scale.low + (scale.limit - scale.low) * f for f in (0.25, 0.75)]
        if scale.signed
        else [scale.limit / 2]
    )
    ticks = sorted({*ends, *inner})
    x = axis(span=(scale.low, scale.limit), grid=False,
             ticks=(ticks, [inert(number(t, sign=scale.signed and t != 0)) for t in ticks]))  # fmt: skip
    y = axis(span=(0, 1), ticks=([], []), grid=False, labels=False)
    for made in (x, y):
        made["fixedrange"] = True
    panel = sheet.panel(12, x, y, heading=scale.title)
    sheet.add(
        panel,
        go.Heatmap(
            z=[steps],
            x=steps,
            y=[0.5],
            zmin=scale.low,
            zmax=scale.limit,
            colorscale=scale.colours,
            showscale=False,
            hoverinfo="skip",
        ),
    )
    if scale.null is None:
        return
    low, high = (float(np.clip(v, scale.low, scale.limit)) for v in scale.null)
    # a white line under the black one keeps the bracket visible on the dark ends
    xs, ys = [low, low, None, low, high, None, high, high], [0, 1, None, 0.5, 0.5, None, 0, 1]
    for colour, width in ((WHITE, 5), (BLACK, 2)):
        sheet.add(
            panel,
            go.Scatter(x=xs, y=ys, mode="lines", line={"color": colour, "width": width}, hoverinfo="skip"),
        )


def draw_grid(sheet: Sheet, grid: Grid, scale: Scale, *, cell: int | None = None) -> Panel:
    """One heatmap with its hatching, crosses and dots. cell: a row's height in pixels."""
    n_rows, n_columns = grid.values.shape
    size = cell or (14 if n_rows > 20 else 18 if n_rows > 8 else 26)
    columns = _flat(grid)
    shown = _thin(n_rows, size, 13)
    x = axis(grid.column_title, span=(-0.5, n_columns - 0.5), grid=False, upright=columns is None,
             ticks=(list(range(n_columns)), columns or [inert(c) for c in grid.columns]))  # fmt: skip
    y = axis(
        grid.row_title,
        span=(n_rows - 0.5, -0.5),
        grid=False,
        ticks=(shown, [inert(grid.rows[i]) for i in shown]),
    )
    panel = sheet.panel(max(size * n_rows, 60), x, y, heading=grid.heading)
    values = np.where(grid.zero, np.nan, grid.values)
    gap = 1 if n_rows * n_columns <= 900 else 0
    sheet.add(panel, _heatmap(grid, scale, values, gap))
    absent = np.zeros_like(grid.zero) if grid.absent is None else grid.absent
    _hatch(sheet, panel, grid.zero, gap)
    _marks(sheet, panel, ~np.isfinite(grid.values) & ~grid.zero & ~absent, "x-thin-open", MUTED, 6)
    _marks(
        sheet,
        panel,
        grid.dots & np.isfinite(values),
        "circle",
        BLACK,
        6,
        shift=0.0 if grid.words is None else -0.4,
    )
    return panel


def _flat(grid: Grid) -> list[str] | None:
    """Inert column labels that need not stand upright on a phone: as they are, or broken where a name has a "_"."""
    beside = 32 + CHAR * max(map(len, grid.rows), default=0)  # labels and title of the rows
    room = (PHONE - beside) / max(len(grid.columns), 1)
    broken = [column.split("_") if "_" in column.strip("_") else [column] for column in grid.columns]
    for lines in ([[column] for column in grid.columns], broken):
        if max((len(line) for column in lines for line in column), default=0) * CHAR <= room:
            return ["<br>".join(map(inert, column)) for column in lines]
    return None


def draw_key(sheet: Sheet, grids: Sequence[Grid], scale: Scale, rule: str) -> None:
    """The key of one or several grids: only what occurs in them, and a warning where no null was drawn."""
    if rule:
        found = sum(int(g.dots.sum()) for g in grids)
        sheet.key(
            "●",
            INK,
            f"{rule}: {found} of {sum(int((~g.zero & np.isfinite(g.values)).sum()) for g in grids)} cells",
        )
    if scale.null is not None:
        sheet.key("┣┫", INK, f"widest null band, {number(scale.null[0])} to {number(scale.null[1])}")
    else:
        sheet.key("!", INK, "no null was drawn for these cells")
    if any(g.zero.any() for g in grids):
        sheet.key("▨", HATCH, HATCHED)
    missing = [~np.isfinite(g.values) & ~g.zero & (True if g.absent is None else ~g.absent) for g in grids]
    if any(m.any() for m in missing):
        sheet.key("×", MUTED, CROSSED)


def by_position(cells: Cells, points: Sequence[str]) -> Grid:
    """Layer x position for a point without heads, with whatever stands outside the layers (final_resid) below.

    Rows are sites where a layer has several.
    """
    frame = cells.frame[cells.frame["point"].isin(points)]
    heading, sites = ", ".join(map(point_label, points)), unique(frame["site"].tolist())
    if len(sites) > MOST_ROWS:
        strength = frame["value"].abs().groupby(frame["site"].astype(str)).max().sort_values(ascending=False)
        kept = set(strength.index[:MOST_ROWS])
        heading += f", the {MOST_ROWS} strongest of {len(sites)} sites"
        sites = [s for s in sites if s in kept]
        frame = frame[frame["site"].isin(kept)]
    layer = dict(zip(frame["site"], frame["layer"], strict=True))
    sites_at = {s: i for i, s in enumerate(sites)}
    inside = [layer[s] for s in sites if np.isfinite(layer[s])]
    plain = not (frame["unit"] != "").any() and len(set(inside)) == len(inside) > 0
    if plain:
        first = next(
            i for i, s in enumerate(sites) if np.isfinite(layer[s])
        )  # what stands before the layers stays there
        sites.sort(
            key=lambda s: layer[s] if np.isfinite(layer[s]) else -1.0 if sites_at[s] < first else np.inf
        )
    names = [
        visible(s, most=20)
        if not plain
        else str(int(layer[s]))
        if np.isfinite(layer[s])
        else visible(s.split("_")[0], most=6)
        for s in sites
    ]
    columns = list(cells.positions)
    return fill(
        cells,
        frame,
        heading,
        (sites, names, "layer" if plain else "site"),
        (columns, [cells.position(c) for c in columns], "position"),
        ("site", "position"),
    )


def by_head(cells: Cells, point: str) -> Grid:
    """Layer x head. With several positions a cell shows its largest effect over them, and its hover says where."""
    frame = cells.frame[(cells.frame["point"] == point) & (cells.frame["unit"].isin(["H", "KV"]))]
    heading = point_label(point)
    if len(cells.positions) > 1:
        size = frame["value"].abs().where(~frame["zero"], 0.0).fillna(-1.0)
        frame = frame.loc[size.groupby([frame["layer"], frame["index"]]).idxmax()]
        heading += f", each head at the position of its largest effect (of {len(cells.positions)})"
    rows, columns = sorted(unique(frame["layer"].tolist())), sorted(unique(frame["index"].tolist()))
    word = "key/value head" if (frame["unit"] == "KV").any() else "head"
    return fill(
        cells,
        frame,
        heading,
        (rows, [str(int(r)) for r in rows], "layer"),
        (columns, [str(int(c)) for c in columns], word),
        ("layer", "index"),
    )


def by_part(cells: Cells, points: Sequence[str]) -> Grid:
    """Layer x head, with one more column for every other point of a layer. Sites without a layer are left out."""
    frame = cells.frame[cells.frame["layer"].notna() & cells.frame["point"].isin(points)].copy()
    head = frame["unit"].isin(["H", "KV"])
    frame["part"] = [
        str(int(i)) if h else visible(p, most=10)
        for i, h, p in zip(frame["index"], head, frame["point"], strict=True)
    ]
    names = [str(i) for i in sorted({int(i) for i in frame.loc[head, "index"]})]
    names += unique(frame.loc[~head, "part"].tolist())
    rows = sorted(unique(frame["layer"].tolist()))
    heading = ", ".join(point_label(p) for p in unique(frame["point"].tolist())[:4])
    labels = [str(int(r)) for r in rows]
    return fill(
        cells,
        frame,
        heading,
        (rows, labels, "layer"),
        (names, names, "head, and other parts"),
        ("layer", "part"),
    )


def fill(
    cells: Cells,
    frame: pd.DataFrame,
    heading: str,
    rows: tuple[Sequence[Any], Sequence[str], str],
    columns: tuple[Sequence[Any], Sequence[str], str],
    keys: tuple[str, str],
) -> Grid:
    """The grid of some cells: rows and columns are (keys in order, labels, axis title), `keys` the frame's columns."""
    shape = (len(rows[0]), len(columns[0]))
    values, zero, dots = np.full(shape, np.nan), np.zeros(shape, bool), np.zeros(shape, bool)
    hover = [["not in this result"] * shape[1] for _ in range(shape[0])]
    absent = np.ones(shape, bool)
    at = {0: {v: i for i, v in enumerate(rows[0])}, 1: {v: i for i, v in enumerate(columns[0])}}
    for i, row in zip(frame.index, frame.to_dict("records"), strict=True):
        r, c = at[0][row[keys[0]]], at[1][row[keys[1]]]
        values[r, c], zero[r, c], absent[r, c] = row["value"], row["zero"], False
        dots[r, c] = cells.significant is not None and cells.significant[i]
        hover[r][c] = describe(row, cells)
    return Grid(heading, rows[1], columns[1], rows[2], columns[2], values, zero, dots, hover, absent)


def _heatmap(grid: Grid, scale: Scale, values: np.ndarray, gap: int) -> go.Heatmap:
    import plotly.graph_objects as go

    return go.Heatmap(
        z=values,
        x=np.arange(values.shape[1]),
        y=np.arange(values.shape[0]),
        zmin=scale.low,
        zmax=scale.limit,
        colorscale=scale.colours,
        showscale=False,
        hoverinfo="text",
        hovertext=[["<br>".join(map(inert, cell.split("\n"))) for cell in row] for row in grid.hover],
        hoverongaps=True,
        xgap=gap,
        ygap=gap,
        **_words(grid),
    )


def _words(grid: Grid) -> dict[str, Any]:
    if grid.words is None:
        return {}
    return {
        "text": [[inert(w) for w in row] for row in grid.words],
        "texttemplate": "%{text}",
        "textfont": {"size": 11},
    }


def _thin(n: int, size: int, need: int) -> list[int]:
    """Every k-th index, so that labels `need` pixels high do not touch."""
    return list(range(0, n, max(1, -(-need // size))))


def _hatch(sheet: Sheet, panel: Panel, zero: np.ndarray, gap: int) -> None:
    """Grey cells with a diagonal each."""
    import plotly.graph_objects as go

    if not zero.any():
        return
    flat = [[0.0, EMPTY], [1.0, EMPTY]]
    sheet.add(
        panel,
        go.Heatmap(
            z=np.where(zero, 1.0, np.nan),
            x=np.arange(zero.shape[1]),
            y=np.arange(zero.shape[0]),
            zmin=0,
            zmax=2,
            colorscale=flat,
            showscale=False,
            hoverinfo="skip",
            xgap=gap,
            ygap=gap,
        ),
    )
    xs: list[float | None] = []
    ys: list[float | None] = []
    for r, c in np.argwhere(zero):
        xs += [c - 0.42, c + 0.42, None]
        ys += [r + 0.42, r - 0.42, None]
    sheet.add(
        panel, go.Scatter(x=xs, y=ys, mode="lines", line={"color": HATCH, "width": 1}, hoverinfo="skip")
    )


def _marks(
    sheet: Sheet, panel: Panel, where: np.ndarray, symbol: str, colour: str, size: int, shift: float = 0.0
) -> None:
    import plotly.graph_objects as go

    if not where.any():
        return
    r, c = np.nonzero(where)
    line = {"color": WHITE, "width": 1} if symbol == "circle" else {"color": colour, "width": 1}
    sheet.add(
        panel,
        go.Scatter(
            x=c + shift,
            y=r,
            mode="markers",
            hoverinfo="skip",
            marker={"symbol": symbol, "color": colour, "size": size, "line": line},
        ),
    )


def point_label(point: str) -> str:
    """A point's name for a heading."""
    return visible(point, most=40)
