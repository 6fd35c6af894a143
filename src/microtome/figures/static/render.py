"""The renderer: title, panels, traces, shapes and notes of a Plotly figure, in the same pixels.

It knows heatmaps, bars and scatter traces on linear, logarithmic and category axes: what Microtome draws.
Anything else is refused, and whoever asked shows numbers instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...errors import ResultError
from ..colours import GRID, INK
from .axes import Axis
from .node import Node
from .pen import Pen, lines_of, width_of
from .traces import DRAW, Place, values_of

if TYPE_CHECKING:
    import plotly.graph_objects as go

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
PAPER = "paper"


def static_svg(figure: go.Figure, *, width: int = 560, theme: Mapping[str, str] | None = None) -> str:
    """A Plotly figure as one self-contained SVG text: no script, no link, no id, no font to fetch.

    width: in pixels; the height is the figure's. theme: colours to exchange; the key "paper" is the background
    (white unless given, "none" for a transparent one).

    Raises ResultError for traces or axes that the renderer does not know.
    """
    if not hasattr(figure, "layout") or not hasattr(figure, "data"):
        raise ResultError(
            f"no static picture of a {type(figure).__name__}",
            why="it is no Plotly figure",
            instead="use frame()",
        )
    given = Node(figure.to_plotly_json())
    traces = given.data or []
    for trace in traces:
        if trace.type not in DRAW:
            raise ResultError(
                f"no static picture of a {trace.type} trace",
                why=f"the renderer knows {', '.join(DRAW)}",
                instead="figure().show()",
            )
    colours = dict(theme or {})
    paper = colours.pop(PAPER, "#ffffff")
    pen = Pen(colours)
    page = _Page(given, traces, float(width))
    title = " ".join(line for line, _ in lines_of(given.layout.title.text or "")) or "figure"
    pen.open(
        "svg",
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {page.height:g}",
        width=width,
        height=page.height,
        role="img",
        aria_label=title,
        font_family=FONT,
    )
    if paper != "none":
        pen.rect((0, 0, width, page.height), paper)
    places = page.places()
    for place in places.values():
        _grid(pen, place)
    for shape in given.layout.shapes or []:
        _shape(pen, page, places, shape)
    for number, trace in enumerate(traces):
        DRAW[trace.type](pen, places[trace.name_of("xaxis"), trace.name_of("yaxis")], trace, number)
    for place in places.values():
        _labels(pen, place)
    for note in given.layout.annotations or []:
        _note(pen, page, places, note)
    if given.layout.title.text:
        _title(pen, given.layout.title)
    pen.close("svg")
    return pen.svg()


def _title(pen: Pen, title: Any) -> None:
    """Where Plotly puts it: a single line hangs below `pad.t`, the first of several stands on it."""
    size, top = float(title.font.size or 14), float(_or(title.pad.t, 12))
    single = len(lines_of(title.text)) == 1
    pen.label((_or(title.pad.l, 8), top - (0.3 if single else 1.0) * size), title.text, size=size, colour=INK)


class _Page:
    """The figure's size, margins and panels."""

    def __init__(self, figure: Any, traces: list[Any], width: float) -> None:
        margin = figure.layout.margin
        self.figure, self.traces, self.width = figure, traces, width
        self.height = float(figure.layout.height or 450)
        self.left, self.right = float(_or(margin.l, 60)), width - float(_or(margin.r, 20))
        self.top, self.bottom = float(_or(margin.t, 60)), self.height - float(_or(margin.b, 50))

    def places(self) -> dict[tuple[str, str], Place]:
        """The panels by the names of their axes, in order of first use."""
        pairs = dict.fromkeys((t.name_of("xaxis"), t.name_of("yaxis")) for t in self.traces)
        made = {}
        for x, y in pairs:
            own = [t for t in self.traces if (t.name_of("xaxis"), t.name_of("yaxis")) == (x, y)]
            xa, ya = self.figure.layout["xaxis" + x[1:]], self.figure.layout["yaxis" + y[1:]]
            across, up = xa.domain or (0, 1), ya.domain or (0, 1)
            xs = Axis(
                xa, x, (v for t in own for v in values_of(t, "x")), self._x(across[0]), self._x(across[1])
            )
            ys = Axis(ya, y, (v for t in own for v in values_of(t, "y")), self._y(up[0]), self._y(up[1]))
            made[x, y] = Place(xs, ys)
        return made

    def _x(self, share: float) -> float:
        return self.left + share * (self.right - self.left)

    def _y(self, share: float) -> float:
        return self.bottom - share * (self.bottom - self.top)

    def at(self, ref: str, value: Any, places: Mapping[tuple[str, str], Place], *, across: bool) -> float:
        """A shape's or note's coordinate in pixels: data, "x2 domain" or "paper"."""
        share = self._x if across else self._y
        if ref == "paper":
            return share(float(value))
        name, _, domain = ref.partition(" ")
        axis = next(
            (p.x if across else p.y for pair, p in places.items() if pair[0 if across else 1] == name), None
        )
        if axis is None:
            return share(float(value))
        return axis.start + float(value) * (axis.stop - axis.start) if domain else axis.pixel(value)


def _grid(pen: Pen, place: Place) -> None:
    for axis, other in ((place.x, place.y), (place.y, place.x)):
        if axis.made.showgrid is False:
            continue
        for at, _ in axis.ticks():
            ends = (
                [(at, other.start), (at, other.stop)]
                if axis is place.x
                else [(other.start, at), (other.stop, at)]
            )
            pen.path(ends, axis.made.gridcolor or GRID, 1)


def _labels(pen: Pen, place: Place) -> None:
    _label_x(pen, place)
    _label_y(pen, place)


def _label_x(pen: Pen, place: Place) -> None:
    made, size = place.x.made, float(place.x.made.tickfont.size or 11)
    ticks = place.x.ticks() if made.showticklabels is not False else []
    floor, deepest = place.y.start, 0.0
    for at, text in ticks:
        if made.tickangle:
            pen.label(
                (at + 0.35 * size, floor + 5), text, size=size, colour=INK, anchor="end", turn=-90, down=False
            )
            deepest = max(deepest, width_of(lines_of(text)[0][0], size) + 8)
        else:
            pen.label((at, floor + 4), text, size=size, colour=INK, anchor="middle")
            deepest = max(deepest, 6 + 1.3 * size * len(lines_of(text)))
    if made.title.text:
        pen.label(
            ((place.x.start + place.x.stop) / 2, floor + deepest + 4),
            made.title.text,
            size=12,
            colour=INK,
            anchor="middle",
        )


def _label_y(pen: Pen, place: Place) -> None:
    made, size = place.y.made, float(place.y.made.tickfont.size or 11)
    ticks = place.y.ticks() if made.showticklabels is not False else []
    widest = 0.0
    for at, text in ticks:
        pen.label((place.x.start - 5, at - 0.62 * size), text, size=size, colour=INK, anchor="end")
        widest = max(widest, width_of(lines_of(text)[0][0], size))
    if made.title.text:
        at = max(12.0, place.x.start - widest - 14)
        pen.label(
            (at, (place.y.start + place.y.stop) / 2),
            made.title.text,
            size=12,
            colour=INK,
            anchor="middle",
            turn=-90,
            down=False,
        )


def _shape(pen: Pen, page: _Page, places: Mapping[tuple[str, str], Place], shape: Any) -> None:
    if shape.type not in ("line", "rect") or None in (shape.x0, shape.x1, shape.y0, shape.y1):
        raise ResultError(
            f"no static picture of a {shape.type} shape",
            why="the renderer knows lines and rectangles between given corners",
            instead="figure().show()",
        )
    x0, x1 = (page.at(shape.xref or "paper", v, places, across=True) for v in (shape.x0, shape.x1))
    y0, y1 = (page.at(shape.yref or "paper", v, places, across=False) for v in (shape.y0, shape.y1))
    opacity = float(_or(shape.opacity, 1.0))
    if shape.type == "rect":
        pen.rect((x0, y0, x1, y1), shape.fillcolor or "none", opacity)
        return
    width = float(_or(shape.line.width, 1))
    pen.path([(x0, y0), (x1, y1)], shape.line.color or INK, width, shape.line.dash, opacity)


def _note(pen: Pen, page: _Page, places: Mapping[tuple[str, str], Place], note: Any) -> None:
    x = page.at(note.xref or "paper", note.x, places, across=True) + float(note.xshift or 0)
    y = page.at(note.yref or "paper", note.y, places, across=False) - float(note.yshift or 0)
    size = float(note.font.size or 12)
    anchor = {"right": "end", "left": "start"}.get(note.xanchor or "center", "middle")
    lines = lines_of(note.text or "")
    down = note.yanchor == "top"
    if note.yanchor not in ("top", "bottom"):
        y, down = y - 0.65 * size * len(lines), True
    pen.label((x, y), note.text or "", size=size, colour=note.font.color or INK, anchor=anchor, down=down)


def _or(value: Any, default: float) -> Any:
    return default if value is None else value
