"""A figure laid out in pixels from top to bottom (title, rows of panels, key), as wide as its reader's screen.

All heights and margins are known before anything is drawn, so that Plotly and the static renderer give the same
picture, and nothing overlaps at 360 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..results.verdicts import SUPPORTED
from .colours import GRID, INK, MUTED
from .snippet import python
from .text import inert, visible, wrap

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ..results.result import Result

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
CHAR = 6.3  # pixels that a character of a tick label takes, on average
PHONE = 335  # pixels between a phone's left edge of a figure and the right end of its panels
TITLE, LINE = 46, 54  # characters that fit 360 pixels in a title and in a key


def words(text: str) -> str:
    """Text of titles, headings and keys, which may hold names from outside: visible and inert."""
    return inert(visible(text, most=200, prose=True))


def axis(
    title: str = "",
    *,
    span: tuple[float, float],
    ticks: tuple[Sequence[float], Sequence[str]] | None = None,
    upright: bool = False,
    grid: bool = True,
    log: bool = False,
    labels: bool = True,
) -> dict[str, Any]:
    """A Plotly axis with an explicit range (log axes: in powers of ten). Tick texts must be inert already."""
    made: dict[str, Any] = {
        "range": list(span),
        "showgrid": grid,
        "gridcolor": GRID,
        "zeroline": False,
        "fixedrange": False,
        "ticks": "",
        "tickfont": {"size": 11, "color": INK},
        "title": {"text": words(title), "font": {"size": 12, "color": INK}, "standoff": 6},
        "type": "log" if log else "linear",
        "showticklabels": labels,
        "automargin": False,
        "tickangle": -90 if upright else 0,
    }
    if ticks is not None:
        made |= {"tickmode": "array", "tickvals": list(ticks[0]), "ticktext": list(ticks[1])}
    elif log:
        made |= {"dtick": 1, "exponentformat": "none"}
    else:
        made |= {"nticks": 7}
    return made


@dataclass
class Panel:
    """Axes with a place in the figure; `x` and `y` name them for traces."""

    x: str
    y: str
    xaxis: dict[str, Any]
    yaxis: dict[str, Any]
    height: int
    above: int
    below: int
    domain: tuple[float, float]
    heading: str


@dataclass
class Sheet:
    """Collects panels, traces and key entries; `figure()` lays them out.

    result: what is drawn; None for a picture of something else, which then has no verdict and no calibration.
    """

    result: Result | None
    title: str
    call: str = ""
    rows: list[list[Panel]] = field(default_factory=list)
    traces: list[Any] = field(default_factory=list)
    keys: list[tuple[str, str, str]] = field(default_factory=list)
    shapes: list[dict[str, Any]] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    right: int = 24

    def panel(
        self,
        height: int,
        x: dict[str, Any],
        y: dict[str, Any],
        *,
        heading: str = "",
        domain: tuple[float, float] = (0.0, 1.0),
        same_row: bool = False,
    ) -> Panel:
        """Add a panel below the last row, or beside it."""
        count = sum(map(len, self.rows)) + 1
        suffix = "" if count == 1 else str(count)
        lines = wrap(heading, LINE) if heading else []
        made = Panel(
            f"x{suffix}",
            f"y{suffix}",
            x,
            y,
            height,
            17 * len(lines) + (5 if lines else 6),
            _below(x),
            domain,
            "<br>".join(map(words, lines)),
        )
        if same_row and self.rows:
            self.rows[-1].append(made)
        else:
            self.rows.append([made])
        return made

    def add(self, panel: Panel, *traces: Any) -> None:
        """Put traces into a panel."""
        for trace in traces:
            trace.update(xaxis=panel.x, yaxis=panel.y)
            self.traces.append(trace)

    def line(
        self,
        panel: Panel,
        *,
        x: float | None = None,
        y: float | None = None,
        colour: str = INK,
        dash: str = "solid",
    ) -> None:
        """A line across a panel at one x or one y."""
        x0, x1 = panel.xaxis["range"] if x is None else (x, x)
        y0, y1 = panel.yaxis["range"] if y is None else (y, y)
        self.shapes.append({
            "type": "line", "layer": "between", "line": {"color": colour, "width": 1, "dash": dash},
            "xref": panel.x, "yref": panel.y, "x0": x0, "x1": x1, "y0": y0, "y1": y1,
        })  # fmt: skip

    def box(
        self, panel: Panel, x: tuple[float, float] | None, y: tuple[float, float] | None, colour: str
    ) -> None:
        """A filled rectangle behind the traces; None spans the panel."""
        (x0, x1), (y0, y1) = x or panel.xaxis["range"], y or panel.yaxis["range"]
        self.shapes.append({
            "type": "rect", "layer": "between", "fillcolor": colour, "line": {"width": 0},
            "xref": panel.x, "yref": panel.y, "x0": x0, "x1": x1, "y0": y0, "y1": y1,
        })  # fmt: skip

    def key(self, glyph: str, colour: str, text: str) -> None:
        """One line of the key below the picture."""
        self.keys.append((glyph, colour, text))

    def figure(self) -> go.Figure:
        """The figure; its meta carries the Python that draws it again, its title the verdict unless supported, its
        last line how often the technique is right."""
        import plotly.graph_objects as go

        title = ["<b>" + words(line) + "</b>" for line in wrap(self.title, TITLE)]
        if self.result is not None and self.result.verdict != SUPPORTED:
            title.append("Verdict: " + inert(self.result.verdict.word))
        top, left = 16 + 19 * len(title), self._left()
        places, area = self._places()
        said = [] if self.result is None else [("", MUTED, f"Calibration: {self.result.calibration}")]
        keys, depth = self._keys(self.rows[-1], left, [*self.keys, *said])
        bottom = max(p.below for p in self.rows[-1]) + depth
        layout: dict[str, Any] = {
            "template": {},
            "height": top + area + bottom,
            "margin": {"l": left, "r": self.right, "t": top, "b": bottom},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "showlegend": False,
            "dragmode": False,
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": MUTED, "activecolor": INK},
            "font": {"family": FONT, "size": 12, "color": INK},
            "hoverlabel": {"align": "left", "font": {"family": FONT, "size": 12}},
            "title": {
                "text": "<br>".join(title),
                "x": 0,
                "xref": "container",
                "xanchor": "left",
                "y": 1,
                "yref": "container",
                "yanchor": "top",
                "pad": {"l": 8, "t": 12 if len(title) == 1 else 22},
                "font": {"size": 14, "color": INK},
                "automargin": False,
            },
            "shapes": self.shapes,
            "annotations": [*self.notes, *keys],
            "meta": {} if self.result is None else {"python": python(self.call)},
        }
        for row, (low, high) in zip(self.rows, places, strict=True):
            for p in row:
                layout["xaxis" + p.x[1:]] = {**p.xaxis, "domain": list(p.domain), "anchor": p.y}
                layout["yaxis" + p.y[1:]] = {**p.yaxis, "domain": [low, high], "anchor": p.x}
                if p.heading:
                    layout["annotations"].append(_heading(p, left))
        return go.Figure(data=self.traces, layout=layout)

    def _left(self) -> int:
        return max(_beside(p.yaxis) for row in self.rows for p in row if p.domain[0] == 0)

    def _places(self) -> tuple[list[tuple[float, float]], int]:
        """Domains of the rows from bottom (0) to top (1), and the height of all in pixels."""
        heights = [max(p.height for p in row) for row in self.rows]
        above = [max(p.above for p in row) for row in self.rows]
        below = [max(p.below for p in row) for row in self.rows[:-1]] + [0]
        area = sum(heights) + sum(above) + sum(below)
        places, at = [], 0
        for height, over, under in zip(heights, above, below, strict=True):
            at += over
            places.append((1 - (at + height) / area, 1 - at / area))
            at += height + under
        return [(max(0.0, round(low, 6)), round(high, 6)) for low, high in places], area

    def _keys(
        self, last: list[Panel], left: int, entries: list[tuple[str, str, str]]
    ) -> tuple[list[dict[str, Any]], int]:
        made: list[dict[str, Any]] = []
        at = max(p.below for p in last) + 8
        for glyph, colour, text in entries:
            lines = [words(line) for line in wrap(text, LINE)]
            common = {
                "xref": "paper",
                "yref": "paper",
                "x": 0,
                "y": 0,
                "yshift": -at,
                "xanchor": "left",
                "yanchor": "top",
                "showarrow": False,
            }
            made.append({**common, "text": glyph, "xshift": 8 - left, "font": {"size": 13, "color": colour}})
            made.append(
                {
                    **common,
                    "text": "<br>".join(lines),
                    "xshift": 28 - left,
                    "align": "left",
                    "font": {"size": 11, "color": INK},
                }
            )
            at += 3 + 15 * len(lines)
        return made, at - max(p.below for p in last) + 6


def _heading(p: Panel, left: int) -> dict[str, Any]:
    shift = 8 - left if p.domain[0] == 0 else 0
    return {
        "xref": f"{p.x} domain",
        "yref": f"{p.y} domain",
        "x": 0,
        "y": 1,
        "xshift": shift,
        "yshift": 2,
        "xanchor": "left",
        "yanchor": "bottom",
        "align": "left",
        "showarrow": False,
        "text": p.heading,
        "font": {"size": 12, "color": MUTED},
    }


def _longest(made: dict[str, Any], default: int) -> int:
    import html

    lines = (line for t in made.get("ticktext", ()) for line in t.split("<br>"))
    return max((len(html.unescape(line)) for line in lines), default=default)


def _below(x: dict[str, Any]) -> int:
    """Pixels under a panel for its tick labels and its axis title."""
    lines = 1 + max((t.count("<br>") for t in x.get("ticktext", ())), default=0)
    flat = 4 + 14 * lines
    tick = 0 if not x["showticklabels"] else flat if x["tickangle"] == 0 else int(10 + CHAR * _longest(x, 5))
    return tick + (22 if x["title"]["text"] else 2)


def _beside(y: dict[str, Any]) -> int:
    """Pixels to the left of a panel."""
    tick = int(10 + CHAR * _longest(y, 5)) if y["showticklabels"] else 4
    return tick + (22 if y["title"]["text"] else 4)
