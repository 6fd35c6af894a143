"""Pictures of steering: what each dose does beside its nulls and what it costs, what else does as much, and the texts."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .colours import BAND, INK, MUTED, SERIES
from .panels import Picture
from .rows import NAN, Row, draw_points
from .sheet import Panel, Sheet, axis
from .snippet import call
from .tables import need, table_of
from .text import inert, number, visible, wrap

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from ..results.result import Result

WIDTH, LINES, MOST = 40, 5, 9


def draw(result: Result) -> go.Figure:
    """The measure over the coefficient with its interval on the band of null directions; below, perplexity under the unsteered
    model and repetition (tables["dose"]).

    Raises ResultError for a result without that table.
    """
    dose = need(result, "dose").sort_values("coefficient")
    sheet = Sheet(result, "What each dose does, and what it costs")
    xs = dose["coefficient"].to_numpy(float)
    room = 0.04 * max(float(np.ptp(xs)), 1.0)
    span = (float(min(xs.min(), 0.0)) - room, float(max(xs.max(), 0.0)) + room)
    banded = _curve(sheet, dose, span, _measure(result))
    for column, title in (("perplexity", "perplexity"), ("repetition", "repeated 3-grams")):
        last = column == "repetition"
        _cost(sheet, dose, column, title, span, last)
    sheet.key("●", SERIES[0], "mean over prompts, steered minus unsteered, with its interval")
    if banded:
        sheet.key("■", BAND, "range of null directions at the same coefficient")
    else:
        sheet.key("!", INK, "no null was drawn for these numbers")
    if bool(dose["collapsed"].astype(bool).any()):
        sheet.key("✕", SERIES[1], "text has fallen apart: not a dose to report")
    return sheet.figure()


def _measure(result: Result) -> str:
    return str(result.effects.coords["metric"][0]) if result.effects is not None else "measure"


def _curve(sheet: Sheet, dose: pd.DataFrame, span: tuple[float, float], name: str) -> bool:
    import plotly.graph_objects as go

    xs, value, low, high, nl, nh = (
        dose[c].to_numpy(float) for c in ("coefficient", "value", "low", "high", "null_low", "null_high")
    )
    known = np.concatenate([v[np.isfinite(v)] for v in (value, low, high, nl, nh)] + [np.zeros(1)])
    room = 0.08 * (float(np.ptp(known)) or 1.0)
    panel = sheet.panel(190, axis("", span=span), axis("change", span=(float(known.min()) - room, float(known.max()) + room)),
                        heading=f"{visible(name, most=60, prose=True)}")  # fmt: skip
    band = np.isfinite(nl) & np.isfinite(nh)
    if band.any():
        # nothing added changes nothing: the band passes through 0
        edge = sorted({(0.0, 0.0, 0.0), *zip(xs[band], nl[band], nh[band], strict=True)})
        bx, lower, upper = (list(v) for v in zip(*edge, strict=True))
        sheet.add(panel, go.Scatter(x=[*bx, *bx[::-1]], y=[*lower, *upper[::-1]], mode="lines", fill="toself", fillcolor=BAND,
                                    line={"width": 1, "color": BAND}, hoverinfo="skip"))  # fmt: skip
    sheet.line(panel, y=0, colour=MUTED)
    bars = {"type": "data", "symmetric": False, "array": np.nan_to_num(high - value).tolist(), "arrayminus": np.nan_to_num(value - low).tolist(),
            "color": INK, "thickness": 1.2, "width": 3}  # fmt: skip
    text = [
        inert(f"coefficient {number(float(c))}: {number(float(v))}") for c, v in zip(xs, value, strict=True)
    ]
    sheet.add(panel, go.Scatter(x=xs, y=value, mode="lines+markers", error_y=bars, hoverinfo="text", hovertext=text,
                                line={"color": SERIES[0], "width": 2}, marker={"size": 7, "color": SERIES[0]}))  # fmt: skip
    _crosses(sheet, panel, dose, "value")
    return bool(band.any())


def _cost(
    sheet: Sheet, dose: pd.DataFrame, column: str, title: str, span: tuple[float, float], last: bool
) -> None:
    import plotly.graph_objects as go

    xs, ys = dose["coefficient"].to_numpy(float), dose[column].to_numpy(float)
    known = ys[np.isfinite(ys)]
    log = column == "perplexity" and bool(known.size and known.min() > 0 and known.max() > 30 * known.min())
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    if log:
        limits = (float(np.log10(low)) - 0.2, float(np.log10(high)) + 0.2)
    else:
        room = 0.1 * ((high - min(low, 0.0)) or 1.0)
        limits = (min(low, 0.0) - room / 2, high + room)
    panel = sheet.panel(
        80,
        axis("coefficient" if last else "", span=span),
        axis("", span=limits, log=log),
        heading=f"{title} of the text, under the unsteered model" if not last else title,
    )
    text = [
        inert(f"coefficient {number(float(c))}: {title} {number(float(v))}")
        for c, v in zip(xs, ys, strict=True)
    ]
    sheet.add(panel, go.Scatter(x=xs, y=ys, mode="lines+markers", hoverinfo="text", hovertext=text, line={"color": MUTED, "width": 2},
                                marker={"size": 6, "color": MUTED}))  # fmt: skip
    _crosses(sheet, panel, dose, column)


def _crosses(sheet: Sheet, panel: Panel, dose: pd.DataFrame, column: str) -> None:
    import plotly.graph_objects as go

    bad = dose[dose["collapsed"].astype(bool)]
    if len(bad):
        sheet.add(panel, go.Scatter(x=bad["coefficient"].to_numpy(float), y=bad[column].to_numpy(float), mode="markers", hoverinfo="skip",
                                    marker={"size": 9, "color": SERIES[1], "symbol": "x"}))  # fmt: skip


def compared(result: Result) -> go.Figure:
    """The effect at the chosen dose beside null directions of either family, prompting and a sibling (tables["nulls"], ["baselines"]).

    Raises ResultError for a result without null directions.
    """
    nulls = need(result, "nulls")
    rows: list[tuple[str, list[Row]]] = []
    frame = result.frame()
    if len(frame):
        first: Any = frame.iloc[0]
        rows.append(
            (
                "this direction",
                [Row("value", float(first["value"]), float(first["low"]), float(first["high"]))],
            )
        )
    base = table_of(result, "baselines")
    for row in [] if base is None else base.to_dict("records"):
        if row["kind"] != "neutral text":
            rows.append(
                (
                    visible(row["name"], most=24, prose=True),
                    [Row("value", float(row["value"]), _or(row["low"]), _or(row["high"]))],
                )
            )
    for family, part in nulls.groupby("family", sort=False):
        v = part["value"].to_numpy(float)
        name = f"{str(family).replace('_', ' ')}, {len(v)}"
        rows.append(
            (name, [Row("value", float(v.mean()), null_low=float(v.min()), null_high=float(v.max()))])
        )
    sheet = Sheet(result, "Steering beside what else could do it", call("steering", "compared"))
    draw_points(sheet, rows, visible(_measure(result), most=60, prose=True))
    sheet.key("●", SERIES[0], "mean over the reported prompts, with its interval")
    sheet.key("■", BAND, "range of null directions at the same coefficient")
    return sheet.figure()


def _or(value: Any) -> float:
    return NAN if value is None else float(value)


def samples(result: Result, prompt: int | None = None, *, module: str = "steering") -> go.Figure:
    """Texts of one prompt, one dose a line (tables["samples"]); the first prompt kept unless one is named.

    Raises ResultError for a result without texts, or a prompt of which none was kept.
    """
    import plotly.graph_objects as go

    from ..errors import ResultError

    table = need(result, "samples")
    first = int(table["prompt"].iloc[0]) if prompt is None else prompt
    part = table[table["prompt"] == first]
    if part.empty:
        raise ResultError(f"no text of prompt {first} was kept", why=f"kept are {sorted(set(map(int, table['prompt'])))}", instead="one of these")  # fmt: skip
    shown = part.drop_duplicates("coefficient").to_dict("records")[:MOST]
    sheet = Sheet(result, "The same prompt, each way", call(module, "samples", prompt=prompt))
    ticks = (list(range(len(shown))), [inert(_dose(r["coefficient"])) for r in shown])
    panel = sheet.panel(20 + 16 * LINES * len(shown), axis("text, as generated", span=(0.0, 1.0), grid=False, labels=False),
                        axis(span=(len(shown) - 0.5, -0.5), grid=False, ticks=ticks), heading=f"prompt {first}")  # fmt: skip
    for i, row in enumerate(shown):
        text = visible(str(row["text"]).strip() or "(nothing)", most=WIDTH * LINES, prose=True)
        sheet.notes.append({
            "xref": panel.x, "yref": panel.y, "x": 0, "xshift": 8, "y": i, "xanchor": "left", "yanchor": "middle", "align": "left", "showarrow": False,
            "text": "<br>".join(inert(line) for line in wrap(text, WIDTH)[:LINES]), "font": {"size": 11, "color": INK},
        })  # fmt: skip
    whole = [
        "<br>".join(inert(line) for line in wrap(visible(r["text"], most=2000, prose=True), 80))
        for r in shown
    ]
    sheet.add(panel, go.Scatter(x=[0.0] * len(shown), y=list(range(len(shown))), mode="markers", hoverinfo="text", hovertext=whole,
                                marker={"size": 6, "color": BAND}))  # fmt: skip
    for i in range(1, len(shown)):
        sheet.line(panel, y=i - 0.5, colour=BAND)
    sheet.key("", MUTED, "prompts were drawn at random; all texts stand under Numbers, samples")
    if result.effects is None or "cells" not in result.tables:
        sheet.key("!", INK, "no null was drawn for these numbers")
    return sheet.figure()


def _dose(value: Any) -> str:
    try:
        return number(float(value), sign=float(value) != 0)
    except (TypeError, ValueError):
        return visible(value, most=16, prose=True)


def pictures(result: Result) -> tuple[Picture, ...]:
    """All pictures of a steering result."""
    made = [
        Picture("dose-response", "A real direction does more the more is added, and more than null directions, before the text falls apart.", partial(draw, result)),
    ]  # fmt: skip
    if len(result.tables.get("nulls", ())):
        made.append(Picture("compared", "Asking in words often does as much: a direction is of interest where it does what nothing else here does.",
                            partial(compared, result), call("steering", "compared")))  # fmt: skip
    if len(result.tables.get("samples", ())):
        made.append(Picture("samples", "Read them: a score can rise while the text says nothing.", partial(samples, result), call("steering", "samples")))  # fmt: skip
    return tuple(made)
