"""The calibration curve of forecasts: what was said against what came true, beside the diagonal and the base rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from .colours import BAND, INK, MUTED, SERIES
from .sheet import Panel, Sheet, axis
from .text import inert, number, visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

SPAN = (-0.03, 1.03)
TICKS = ([0.0, 0.25, 0.5, 0.75, 1.0], ["0", ".25", ".5", ".75", "1"])


class Binned(Protocol):
    """n forecasts of about the same probability: their mean, the share that came true, and its interval."""

    @property
    def n(self) -> int: ...  # noqa: D102
    @property
    def forecast(self) -> float: ...  # noqa: D102
    @property
    def rate(self) -> float: ...  # noqa: D102
    @property
    def low(self) -> float: ...  # noqa: D102
    @property
    def high(self) -> float: ...  # noqa: D102


class Scored(Protocol):
    """What is drawn of a score of forecasts (`microtome.lab.scoring.Score`)."""

    @property
    def n(self) -> int: ...  # noqa: D102
    @property
    def base_rate(self) -> float: ...  # noqa: D102
    @property
    def level(self) -> float: ...  # noqa: D102
    @property
    def curve(self) -> Sequence[Binned]: ...  # noqa: D102
    @property
    def said(self) -> str: ...  # noqa: D102


def draw(score: Scored, who: str = "") -> go.Figure:
    """The calibration curve, and below it how many forecasts lie in each bin.

    score: as `microtome.lab.scoring.score` gives it. who: whose forecasts, for the title.
    """
    sheet = Sheet(None, "Calibration of forecasts" + (f": {visible(who, prose=True)}" if who else ""))
    _curve(sheet, score)
    _counts(sheet, score.curve)
    sheet.key("●", SERIES[0], f"share that came true, with its {100 * score.level:g} % interval (Wilson)")
    sheet.key("╌", INK, "what a perfectly calibrated forecaster has")
    sheet.key(
        "┈", MUTED, f"base rate {number(score.base_rate)} of {score.n}: who knows nothing else says this"
    )
    sheet.key("", INK, score.said)
    return sheet.figure()


def _curve(sheet: Sheet, score: Scored) -> Panel:
    import plotly.graph_objects as go

    panel = sheet.panel(290, axis("probability that was said", span=SPAN, ticks=TICKS), axis("share that came true", span=SPAN, ticks=TICKS))  # fmt: skip
    sheet.add(panel, go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line={"color": INK, "width": 1, "dash": "dash"}, hoverinfo="skip"))  # fmt: skip
    sheet.line(panel, y=score.base_rate, colour=MUTED, dash="dot")
    x, y = [b.forecast for b in score.curve], [b.rate for b in score.curve]
    bars = {
        "type": "data", "symmetric": False, "color": SERIES[0], "thickness": 1.5, "width": 3,
        "array": [b.high - b.rate for b in score.curve], "arrayminus": [b.rate - b.low for b in score.curve],
    }  # fmt: skip
    sheet.add(panel, go.Scatter(
        x=x, y=y, mode="lines+markers", error_y=bars, line={"color": SERIES[0], "width": 1.5}, marker={"size": 8, "color": SERIES[0]},
        hoverinfo="text", hovertext=[inert(_words(b)) for b in score.curve],
    ))  # fmt: skip
    return panel


def _counts(sheet: Sheet, curve: Sequence[Binned]) -> None:
    import plotly.graph_objects as go

    most = max(b.n for b in curve)
    ticks = sorted({0, most})
    panel = sheet.panel(54, axis("probability that was said", span=SPAN, ticks=TICKS), axis("forecasts", span=(0, most * 1.1), ticks=(ticks, [str(t) for t in ticks])))  # fmt: skip
    sheet.add(panel, go.Bar(
        x=[b.forecast for b in curve], y=[b.n for b in curve], width=0.05, marker={"color": BAND, "line": {"width": 0}}, hoverinfo="text",
        hovertext=[inert(_words(b)) for b in curve], textposition="none",
    ))  # fmt: skip


def _words(one: Binned) -> str:
    return f"{one.n} forecasts of {number(one.forecast)} on average: {number(one.rate)} came true [{number(one.low)}, {number(one.high)}]"
