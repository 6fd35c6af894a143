"""The three kinds of trace, as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..colours import INK, diverging, on, sequential, series
from .axes import Axis
from .pen import Pen, rgb


@dataclass(frozen=True)
class Place:
    """One panel: its two axes."""

    x: Axis
    y: Axis


def values_of(trace: Any, name: str) -> list[Any]:
    """A trace's x or y as a list; indices where it has none."""
    given = trace[name]
    if given is not None:
        return list(given)
    if trace.type == "heatmap":
        return list(range(np.shape(trace.z)[0 if name == "y" else 1]))
    other = trace["y" if name == "x" else "x"]
    return list(range(len(other))) if other is not None else []


def _edges(axis: Axis, values: list[Any]) -> list[float]:
    """The borders of a heatmap's cells along an axis, in pixels."""
    at = [axis.number(v) for v in values]
    if len(at) == 1:
        half = 0.5 * abs(axis.high - axis.low) if abs(axis.high - axis.low) <= 1 else 0.5
        return [axis.place(at[0] - half), axis.place(at[0] + half)]
    inner = [(a + b) / 2 for a, b in zip(at, at[1:], strict=False)]
    ends = [at[0] - (inner[0] - at[0]), *inner, at[-1] + (at[-1] - inner[-1])]
    return [axis.place(v) for v in ends]


def _heatmap(pen: Pen, place: Place, trace: Any, _number: int) -> None:
    z = np.array([[np.nan if v is None else v for v in row] for row in trace.z], float)
    finite = z[np.isfinite(z)]
    low = float(trace.zmin if trace.zmin is not None else finite.min() if finite.size else 0.0)
    high = float(trace.zmax if trace.zmax is not None else finite.max() if finite.size else 1.0)
    scale = trace.colorscale or (diverging() if low < 0 < high else sequential())
    xs, ys = _edges(place.x, values_of(trace, "x")), _edges(place.y, values_of(trace, "y"))
    gap_x, gap_y = float(trace.xgap or 0) / 2, float(trace.ygap or 0) / 2
    for r in range(z.shape[0]):
        for c in range(z.shape[1]):
            if not math.isfinite(z[r, c]):
                continue
            x0, x1 = sorted((xs[c], xs[c + 1]))
            y0, y1 = sorted((ys[r], ys[r + 1]))
            spill = 0.0 if gap_x else 0.3  # neighbours without a gap would show a seam
            box = (x0 + gap_x - spill, y0 + gap_y - spill, x1 - gap_x + spill, y1 - gap_y + spill)
            pen.rect(box, colour_at(scale, (z[r, c] - low) / ((high - low) or 1.0)))
            if trace.texttemplate and trace.text is not None and trace.text[r][c]:
                pen.label(
                    ((x0 + x1) / 2, (y0 + y1) / 2 - 6),
                    trace.text[r][c],
                    size=float(trace.textfont.size or 11),
                    colour=on(z[r, c], max(abs(low), abs(high))),
                    anchor="middle",
                )


def colour_at(scale: Any, share: float) -> str:
    """The colour of a Plotly scale at a share of its length, interpolated linearly as Plotly does."""
    share = min(1.0, max(0.0, share))
    for (a, first), (b, second) in zip(scale, scale[1:], strict=False):
        if share <= b:
            t = (share - a) / ((b - a) or 1.0)
            mixed = (round(p + t * (q - p)) for p, q in zip(rgb(first), rgb(second), strict=True))
            return "#" + "".join(f"{v:02x}" for v in mixed)
    return str(scale[-1][1])


def _bar(pen: Pen, place: Place, trace: Any, number: int) -> None:
    across = trace.orientation == "h"
    along, other = (place.x, place.y) if across else (place.y, place.x)
    lengths, at = values_of(trace, "x" if across else "y"), values_of(trace, "y" if across else "x")
    half = float(trace.width if isinstance(trace.width, (int, float)) else 0.8) / 2
    fill = trace.marker.color if isinstance(trace.marker.color, str) else series(number)[0]
    opacity = float(trace.opacity if trace.opacity is not None else 1.0)
    for value, where in zip(lengths, at, strict=True):
        end, middle = along.pixel(value), other.number(where)
        if not math.isfinite(end) or not math.isfinite(middle):
            continue
        zero, a, b = along.place(0.0), other.place(middle - half), other.place(middle + half)
        pen.rect((zero, a, end, b) if across else (a, zero, b, end), fill, opacity)


def _scatter(pen: Pen, place: Place, trace: Any, number: int) -> None:
    points = list(
        zip(place.x.pixels(values_of(trace, "x")), place.y.pixels(values_of(trace, "y")), strict=True)
    )
    mode = trace.mode or "lines+markers"
    own = series(number)[0]
    line, opacity = (
        trace.line.color or (trace.marker.color if isinstance(trace.marker.color, str) else None) or own,
        float(trace.opacity or 1.0),
    )
    width = float(trace.line.width if trace.line.width is not None else 2)
    _into(pen, place)
    if trace.fill == "toself":
        pen.area([(x - place.x.start, y - place.y.stop) for x, y in points], trace.fillcolor or line, opacity)
    if "lines" in mode and width > 0:
        pen.path(
            [(x - place.x.start, y - place.y.stop) for x, y in points], line, width, trace.line.dash, opacity
        )
    pen.close("svg")
    _errors(pen, place, trace, points)
    if "markers" in mode:
        for i, (x, y) in enumerate(points):
            if math.isfinite(x) and math.isfinite(y):
                _mark(pen, trace.marker, i, (x, y), own, opacity)
    if "text" in mode and trace.text is not None:
        size = float(trace.textfont.size or 11)
        for i, ((x, y), text) in enumerate(zip(points, trace.text, strict=False)):
            if text and math.isfinite(x) and math.isfinite(y):
                _name(pen, trace, i, (x, y), text, size)


def _name(pen: Pen, trace: Any, i: int, at: tuple[float, float], text: str, size: float) -> None:
    up, _, side = str(_each(trace.textposition, i) or "top center").partition(" ")
    x = at[0] + {"left": -6, "right": 6}.get(side, 0)
    y = at[1] + {"top": -1.9, "bottom": 0.4}.get(up, -0.65) * size
    anchor = {"left": "end", "right": "start"}.get(side, "middle")
    pen.label((x, y), text, size=size, colour=trace.textfont.color or INK, anchor=anchor)


def _into(pen: Pen, place: Place) -> None:
    """A nested svg cuts off what lies outside the panel, without an id that could clash in a page."""
    pen.open(
        "svg",
        x=place.x.start,
        y=place.y.stop,
        width=place.x.stop - place.x.start,
        height=place.y.start - place.y.stop,
    )


def _errors(pen: Pen, place: Place, trace: Any, points: list[tuple[float, float]]) -> None:
    for name, axis in (("error_x", place.x), ("error_y", place.y)):
        bars = trace[name]
        if bars is None or bars.array is None:
            continue
        values = values_of(trace, "x" if name == "error_x" else "y")
        minus = bars.arrayminus if bars.arrayminus is not None else bars.array
        colour, width, cap = bars.color or INK, float(bars.thickness or 1), float(bars.width or 3)
        for value, up, down, (x, y) in zip(values, bars.array, minus, points, strict=True):
            if not (math.isfinite(x) and math.isfinite(y)) or (up == 0 and down == 0):
                continue
            low, high = axis.pixel(value - down), axis.pixel(value + up)
            if name == "error_x":
                steps = [
                    (low, y - cap),
                    (low, y + cap),
                    (math.nan, 0),
                    (low, y),
                    (high, y),
                    (math.nan, 0),
                    (high, y - cap),
                    (high, y + cap),
                ]
            else:
                steps = [
                    (x - cap, low),
                    (x + cap, low),
                    (math.nan, 0),
                    (x, low),
                    (x, high),
                    (math.nan, 0),
                    (x - cap, high),
                    (x + cap, high),
                ]
            pen.path(steps, colour, width)


def _mark(pen: Pen, marker: Any, i: int, at: tuple[float, float], own: str, opacity: float) -> None:
    colour = _each(marker.color, i) or own
    radius = float(_each(marker.size, i) or 6) / 2
    symbol = str(_each(marker.symbol, i) or "circle")
    opacity *= float(_each(marker.opacity, i) if marker.opacity is not None else 1.0)
    edge, width = _each(marker.line.color, i), float(_each(marker.line.width, i) or 0)
    (x, y), r = at, radius
    stroke: dict[str, Any] = {**pen.paint("stroke", edge), "stroke_width": width} if edge and width else {}
    if symbol in _OUTLINES:
        shape = " ".join(f"{x + r * dx:.1f},{y + r * dy:.1f}" for dx, dy in _OUTLINES[symbol])
        pen.element("polygon", points=shape, **pen.paint("fill", colour, opacity), **stroke)
    elif symbol.startswith(("x", "cross")):
        d = 0.9 * r
        lines = [(x - d, y - d), (x + d, y + d), (math.nan, 0), (x - d, y + d), (x + d, y - d)]
        if symbol.startswith("cross"):
            lines = [(x - r, y), (x + r, y), (math.nan, 0), (x, y - r), (x, y + r)]
        pen.path(lines, colour, max(width, 1.0) if "thin" in symbol else 2.2, None, opacity)
    elif symbol.endswith("-open"):
        pen.element(
            "circle", cx=x, cy=y, r=r, fill="none", stroke_width=1.5, **pen.paint("stroke", colour, opacity)
        )
    else:
        pen.element("circle", cx=x, cy=y, r=r, **pen.paint("fill", colour, opacity), **stroke)


_OUTLINES = {
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "diamond": ((0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)),
    "triangle-up": ((0, -1.1), (1.1, 0.8), (-1.1, 0.8)),
    "triangle-down": ((0, 1.1), (1.1, -0.8), (-1.1, -0.8)),
}


def _each(value: Any, i: int) -> Any:
    if value is None or isinstance(value, (str, int, float)):
        return value
    return value[i]


DRAW: dict[str, Callable[[Pen, Place, Any, int], None]] = {
    "heatmap": _heatmap,
    "bar": _bar,
    "scatter": _scatter,
}
