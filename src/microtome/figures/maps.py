"""The map of an effect: for every point of the model the picture that its cells allow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ResultError
from .cells import Cells, cells_of, unique
from .colours import MUTED
from .grid import Grid, Scale, by_head, by_part, by_position, draw_bar, draw_grid, draw_key, point_label
from .rows import draw_bars, draw_row_key, strongest, to_row
from .sheet import Sheet
from .text import unit, visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ..results.result import Result

MOST = 24


def draw_map(
    result: Result, title: str, what: str, *, metric: str | None = None, call: str = ""
) -> go.Figure:
    """Layer x position, layer x head, or bars, one panel per point, all on one scale.

    title: the figure's; what: the quantity, put before the metric's unit on the scale.
    Raises ResultError for a result without effects or without this metric.
    """
    cells = cells_of(result, metric)
    if cells.frame.empty:
        raise ResultError(
            f"this {result.kind} has no cells", why="its effects name no sites", instead="use tables"
        )
    sheet = Sheet(result, title, call)
    panels = _panels(cells)
    grids = [_grid(cells, points, shape) for shape, points in panels if shape != "rows"]
    scale = Scale(cells.limit, f"{what}, {unit(cells.metric)}", null=cells.null)
    if grids:
        draw_bar(sheet, scale)
        for grid in grids:
            draw_grid(sheet, grid, scale)
        draw_key(sheet, grids, scale, cells.rule)
        if any(shape == "positions" for shape, _ in panels):
            _places(sheet, cells)
    for shape, points in panels:
        if shape == "rows":
            _bars(sheet, cells, points, what, with_key=not grids)
    return sheet.figure()


def _places(sheet: Sheet, cells: Cells) -> None:
    """What stands at the named positions, in one prompt."""
    said = [
        f"{cells.position(p)} {visible(cells.names[str(p)], most=18, prose=True).strip()}"
        for p in cells.positions
        if str(p) in cells.names and not str(p).lstrip("-").isdigit()
    ]
    if said:
        sheet.key("@", MUTED, f"in one prompt: {' · '.join(said)}")


def draw_strongest(
    result: Result, title: str, what: str, *, metric: str | None = None, most: int = 16, call: str = ""
) -> go.Figure:
    """The cells with the largest |effect| as bars with their intervals and null bands.

    Raises ResultError as `draw_map`.
    """
    cells = cells_of(result, metric)
    rows, hidden = strongest(cells, most)
    sheet = Sheet(result, title, call)
    note = f"{len(rows)} of {len(rows) + hidden} cells that can differ" if hidden else ""
    draw_bars(sheet, rows, f"{what}, {unit(cells.metric)}", heading=note)
    draw_row_key(sheet, rows, cells.rule)
    return sheet.figure()


def other_metrics(result: Result) -> tuple[str, ...]:
    """The metrics beside the first."""
    return () if result.effects is None else tuple(map(str, result.effects.coords["metric"][1:]))


def _panels(cells: Cells) -> list[tuple[str, list[str]]]:
    """The panels of a map: their shape, and the points that each shows.

    Heads and whole-layer parts without positions share one grid; a point outside the layers joins the first grid
    over positions.
    """
    frame = cells.frame
    points = unique(frame["point"].tolist())
    heads = [p for p in points if frame.loc[frame["point"] == p, "unit"].isin(["H", "KV"]).all()]
    rest = [p for p in points if p not in heads]
    layered = [p for p in rest if frame.loc[frame["point"] == p, "layer"].notna().all()]
    if not cells.positions:
        whole = [p for p in layered if (frame.loc[frame["point"] == p, "unit"] == "").all()]
        if len(heads) == 1 and whole:
            others = [p for p in rest if p not in whole]
            return [("parts", heads + whole)] + ([("rows", others)] if others else [])
        return [("heads", [p]) for p in heads] + ([("rows", rest)] if rest else [])
    outside = [p for p in rest if p not in layered]
    grids = [("positions", [p]) for p in layered] or [("positions", outside)] * bool(outside)
    if layered:
        grids[0][1].extend(outside)
    return [("heads", [p]) for p in heads] + grids


def _grid(cells: Cells, points: list[str], shape: str) -> Grid:
    if shape == "heads":
        return by_head(cells, points[0])
    return by_part(cells, points) if shape == "parts" else by_position(cells, points)


def _bars(sheet: Sheet, cells: Cells, points: list[str], what: str, *, with_key: bool) -> None:
    """Sites without position: in the order of the layers where there are few, else the strongest."""
    frame = cells.frame[cells.frame["point"].isin(points)]
    if len(frame) <= 40:
        rows, hidden = [to_row(cells, i) for i in frame.index], 0
    else:
        rows, hidden = strongest(
            Cells(frame, cells.metric, cells.positions, cells.names, cells.significant, cells.rule), MOST
        )
    heading = ", ".join(map(point_label, points[:4])) + (
        f" and {len(points) - 4} more" if len(points) > 4 else ""
    )
    heading += f": {len(rows)} of {len(rows) + hidden}, largest first" if hidden else ""
    draw_bars(
        sheet, rows, f"{what}, {unit(cells.metric)}", heading=heading, height=15 if len(rows) > 20 else 20
    )
    if with_key:
        draw_row_key(sheet, rows, cells.rule)
