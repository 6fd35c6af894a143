"""Pictures of a set of components: how much of the effect it carries, beside sets that should not."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .behaviour import spread
from .colours import GLYPHS, INK, MUTED, SERIES, pale, series
from .panels import Picture
from .rows import NAN, Row, draw_bars
from .sheet import Panel, Sheet, axis
from .snippet import call
from .tables import need, table_of
from .text import inert, interval, number, unit, visible

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from ..results.result import Result

FAMILIES = {
    "matched": "random sets with as many parts of each kind, as deep",
    "top_pool": "random sets from the strongest parts",
}
HEIGHT = 230


def draw(result: Result) -> go.Figure:
    """Faithfulness by size of the set; to its right the found set on held-out prompts beside its null sets.

    Raises ResultError for a result without a table "curve".
    """
    curve = need(result, "curve")
    nulls, held = table_of(result, "nulls"), _held(result)
    low, high = _extent(curve, nulls, held)
    sheet = Sheet(result, "How few parts carry the effect")
    beside = (nulls is not None and len(nulls) > 0) or held is not None
    y = axis("faithfulness (share of the effect)", span=(low, high))
    k = curve["k"].to_numpy(float)
    room = 0.05 * max(float(np.ptp(k)), 1.0)
    x = axis("parts kept", span=(float(k.min()) - room, float(k.max()) + room))
    panel = sheet.panel(HEIGHT, x, y, domain=(0.0, 0.56) if beside else (0.0, 1.0))
    _curve(sheet, panel, curve)
    if beside:
        _strips(sheet, nulls, held, (low, high))
    return sheet.figure()


def _curve(sheet: Sheet, panel: Panel, curve: pd.DataFrame) -> None:
    import plotly.graph_objects as go

    for level in (0, 1):
        sheet.line(panel, y=level, colour=MUTED, dash="dot")
    k, value = curve["k"].to_numpy(float), curve["value"].to_numpy(float)
    if {"low", "high"} <= set(curve.columns):
        known = curve[np.isfinite(curve["low"].to_numpy(float)) & np.isfinite(curve["high"].to_numpy(float))]
        xs = [*known["k"], *reversed(list(known["k"]))]
        ys = [*known["high"], *reversed(list(known["low"]))]
        sheet.add(
            panel,
            go.Scatter(
                x=xs,
                y=ys,
                mode="lines",
                fill="toself",
                fillcolor=pale(SERIES[0]),
                line={"width": 0, "color": SERIES[0]},
                hoverinfo="skip",
            ),
        )
    n = curve["n"].tolist() if "n" in curve.columns else [""] * len(curve)
    hover = [inert(f"{int(a)} parts: {number(b)}, n {c}") for a, b, c in zip(k, value, n, strict=True)]
    sheet.add(
        panel,
        go.Scatter(
            x=k,
            y=value,
            mode="lines+markers",
            line={"color": SERIES[0], "width": 2},
            hoverinfo="text",
            hovertext=hover,
            marker={"size": 6, "color": SERIES[0]},
        ),
    )
    sheet.key("━", SERIES[0], "the parts in order of rank, with interval; 1: the whole model, 0: none of it")


def _strips(sheet: Sheet, nulls: pd.DataFrame | None, held: Row | None, span: tuple[float, float]) -> None:
    import plotly.graph_objects as go

    groups: list[tuple[str, np.ndarray]] = []
    if nulls is not None:
        for family in dict.fromkeys(map(str, nulls["family"])):
            groups.append((family, nulls.loc[nulls["family"].astype(str) == family, "value"].to_numpy(float)))
    columns = len(groups) + (held is not None)
    x = axis("null sets beside it", span=(-0.6, columns - 0.4), grid=False, ticks=([], []), labels=False)
    panel = sheet.panel(HEIGHT, x, axis(span=span, labels=False), domain=(0.62, 1.0), same_row=True)
    for level in (0, 1):
        sheet.line(panel, y=level, colour=MUTED, dash="dot")
    at = 0
    if held:
        bars = {
            "type": "data",
            "symmetric": False,
            "array": [_gap(held.high, held.value)],
            "arrayminus": [_gap(held.value, held.low)],
            "color": SERIES[0],
            "thickness": 2,
            "width": 5,
        }
        sheet.line(panel, y=held.value, colour=SERIES[0], dash="dash")
        sheet.add(
            panel,
            go.Scatter(
                x=[0],
                y=[held.value],
                mode="markers",
                error_y=bars,
                hoverinfo="text",
                hovertext=inert(held.hover),
                marker={"size": 11, "symbol": "diamond", "color": SERIES[0]},
            ),
        )
        sheet.key(
            "◆",
            SERIES[0],
            f"the set found, on held-out prompts: {number(held.value)} {interval(held.low, held.high)}".rstrip(),
        )
        at = 1
    for i, (family, values) in enumerate(groups):
        colour, symbol = series(i + 1)
        values = values[np.isfinite(values)]
        sheet.add(
            panel,
            go.Scatter(
                x=at + i + spread(len(values)) * 0.42,
                y=values,
                mode="markers",
                hoverinfo="text",
                hovertext=[inert(f"{visible(family)}: {number(v)}") for v in values],
                marker={"size": 5, "color": colour, "symbol": symbol, "opacity": 0.6},
            ),
        )
        sheet.key(GLYPHS[(i + 1) % len(GLYPHS)], colour, _null_words(family, values))


def _null_words(family: str, values: np.ndarray) -> str:
    meaning = FAMILIES.get(family, f"null sets, {visible(family)}")
    if not values.size:
        return f"{meaning}: none"
    low, high = np.quantile(values, [0.025, 0.975])
    return f"{meaning}: 95 % between {number(float(low))} and {number(float(high))} ({values.size} drawn)"


def parts(result: Result, most: int = 24) -> go.Figure:
    """The parts of the set in order of rank with their effects (tables["components"]).

    Raises ResultError where there is no such table.
    """
    table = need(result, "components")
    ordered = table.sort_values("rank", kind="stable")
    rows = [
        Row(visible(r["site"], most=18), float(r["effect"])) for r in ordered.head(most).to_dict("records")
    ]
    sheet = Sheet(result, "The parts in order", call("sets", "parts"))
    hidden = len(table) - len(rows)
    metric = str(result.effects.coords["metric"][0]) if result.effects is not None else ""
    name = "effect that ranked it" + (f", {unit(metric)}" if metric else "")
    draw_bars(sheet, rows, name, heading=f"{len(rows)} of {len(table)}" if hidden else "")
    sheet.key(
        "!", INK, "an order, not a test: the nulls of these effects are with the patching that ranked them"
    )
    return sheet.figure()


def _held(result: Result) -> Row | None:
    """The held-out faithfulness as a row; None where it was not measured."""
    table = table_of(result, "held_out")
    if table is None:
        return None
    rows: list[dict[Any, Any]] = table.to_dict("records")
    row = next((r for r in rows if str(r["quantity"]) == "faithfulness"), rows[0])
    value, low, high = (NAN if row.get(c) is None else float(row[c]) for c in ("value", "low", "high"))
    return Row(
        visible(row["quantity"]),
        value,
        low,
        high,
        hover=f"{visible(row['quantity'])}: {number(value)} {interval(low, high)}",
    )


def _extent(curve: pd.DataFrame, nulls: pd.DataFrame | None, held: Row | None) -> tuple[float, float]:
    values = [np.array([0.0, 1.0])]
    values += [curve[c].to_numpy(float) for c in ("value", "low", "high") if c in curve.columns]
    if nulls is not None:
        values.append(nulls["value"].to_numpy(float))
    if held is not None:
        values.append(np.array([held.value, held.low, held.high]))
    known = np.concatenate(values)
    known = known[np.isfinite(known)]
    room = 0.06 * float(np.ptp(known))
    return float(known.min()) - room, float(known.max()) + room


def _gap(high: float, low: float) -> float:
    gap = high - low
    return float(gap) if np.isfinite(gap) else 0.0


def pictures(result: Result) -> tuple[Picture, ...]:
    """All pictures of a set of components."""
    made = [
        Picture(
            "faithfulness",
            "A set is only worth its name if it carries the effect on prompts it was not chosen on, and sets "
            "made like it by chance do not.",
            partial(draw, result),
        )
    ]
    if len(result.tables.get("components", ())):
        made.append(
            Picture("parts", "What the set is made of.", partial(parts, result), call("sets", "parts"))
        )
    return tuple(made)
