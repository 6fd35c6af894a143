"""Picture of a behaviour: how often the model is right on either side, and the metric prompt by prompt."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ResultError
from .colours import BAND, INK, MUTED, SERIES, series
from .panels import Picture
from .rows import NAN, Row, whiskers
from .sheet import Sheet, axis
from .tables import table_of
from .text import inert, interval, number, unit, visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ..results.result import Result


def draw(result: Result) -> go.Figure:
    """Accuracy per side with its interval and chance; below, the metric of every clean prompt.

    Raises ResultError for a result with neither a table "sides" nor effects.
    """
    sides = table_of(result, "sides")
    if sides is None and result.effects is None:
        raise ResultError(
            "this behaviour has nothing to draw", why="no sides and no effects", instead="measure it again"
        )
    sheet = Sheet(result, "Does the model do this at all?")
    if sides is not None:
        _accuracy(sheet, sides.to_dict("records"))
    if result.effects is not None and result.effects.dims == ("prompt", "metric"):
        _prompts(sheet, result, None if sides is None else sides.to_dict("records")[0])
    return sheet.figure()


def _accuracy(sheet: Sheet, sides: list[dict[Any, Any]]) -> None:
    import plotly.graph_objects as go

    rows = [Row(visible(s["side"]), float(s["accuracy"]), _bound(s, "low"), _bound(s, "high")) for s in sides]
    x = axis("prefers the answer (share of prompts)", span=(-0.02, 1.04))
    ticks = (
        list(range(len(rows))),
        [inert(f"{r.name}, n {int(s['n'])}") for r, s in zip(rows, sides, strict=True)],
    )
    panel = sheet.panel(30 * len(rows) + 10, x, axis(span=(len(rows) - 0.5, -0.5), grid=False, ticks=ticks))
    whiskers(sheet, panel, rows)
    colours = [series(i)[0] for i in range(len(rows))]
    text = [
        inert(f"{r.name}: {number(r.value)} {interval(r.low, r.high)}, chance {number(_bound(s, 'chance'))}")
        for r, s in zip(rows, sides, strict=True)
    ]
    sheet.add(
        panel,
        go.Scatter(
            x=[r.value for r in rows],
            y=list(range(len(rows))),
            mode="markers",
            hoverinfo="text",
            hovertext=text,
            marker={"size": 11, "color": colours, "symbol": "circle"},
        ),
    )
    chance = [_bound(s, "chance") for s in sides]
    xs = [v for c in chance for v in (c, c, None)]
    ys = [v for i in range(len(rows)) for v in (i - 0.35, i + 0.35, None)]
    sheet.add(
        panel,
        go.Scatter(
            x=xs, y=ys, mode="lines", line={"color": MUTED, "width": 2, "dash": "dot"}, hoverinfo="skip"
        ),
    )
    sheet.key("┊", MUTED, "chance")
    sheet.key("├┤", INK, "interval")


def _prompts(sheet: Sheet, result: Result, side: dict[Any, Any] | None) -> None:
    import plotly.graph_objects as go

    assert result.effects is not None
    name = str(result.effects.coords["metric"][0])
    values = result.effects.sel(metric=name).values.astype(float)
    known = values[np.isfinite(values)]
    if not known.size:
        return
    low, high = min(0.0, float(known.min())), max(0.0, float(known.max()))
    room = 0.05 * ((high - low) or 1.0)
    x = axis(f"clean prompts, {unit(name)}", span=(low - room, high + room))
    panel = sheet.panel(64, x, axis(span=(-1.0, 1.0), ticks=([], []), grid=False, labels=False))
    sheet.line(panel, x=0, colour=MUTED, dash="dot")
    labels = [
        inert(f"prompt {label}: {number(v)}")
        for label, v in zip(result.effects.coords["prompt"], values, strict=True)
    ]
    sheet.add(
        panel,
        go.Scatter(
            x=values,
            y=spread(len(values)),
            mode="markers",
            hoverinfo="text",
            hovertext=labels,
            marker={"size": 6, "color": SERIES[0], "opacity": 0.55},
        ),
    )
    mean = float(known.mean())
    row = Row(
        "mean",
        mean,
        NAN if side is None else _bound(side, "mean_low"),
        NAN if side is None else _bound(side, "mean_high"),
    )
    sheet.add(
        panel,
        go.Scatter(
            x=[mean, mean],
            y=[-0.9, 0.9],
            mode="lines",
            line={"color": INK, "width": 2},
            hoverinfo="text",
            hovertext=inert(f"mean {number(mean)}"),
        ),
    )
    if np.isfinite(row.low) and np.isfinite(row.high):
        sheet.box(panel, (row.low, row.high), None, BAND)
    sheet.key(
        "┃",
        INK,
        f"mean {number(mean)} {interval(row.low, row.high)}".rstrip()
        + "; below 0 the wrong answer is preferred",
    )


def spread(n: int) -> np.ndarray:
    """Heights in (-0.7, 0.7) that keep neighbours apart, the same every time."""
    return ((np.arange(n) * 0.6180339887) % 1.0 - 0.5) * 1.4


def _bound(row: dict[Any, Any], name: str) -> float:
    value = row.get(name)
    return NAN if value is None else float(value)


def pictures(result: Result) -> tuple[Picture, ...]:
    """The one picture of a behaviour."""
    return (
        Picture(
            "behaviour",
            "Every later number is about this: a model that does not do the task has nothing to take apart.",
            partial(draw, result),
        ),
    )
