"""Pictures of max-activating examples: how far tokens predict a unit, how its activations are spread, and the examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ResultError
from .cells import unique
from .colours import BAND, INK, MUTED, SERIES
from .grid import Grid, Scale, draw_bar, draw_grid
from .panels import Picture
from .rows import Row, draw_bars, whiskers
from .sheet import Sheet, axis
from .snippet import call
from .tables import need, table_of
from .text import inert, interval, number, visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ..results.result import Result

MOST, WIDE = 16, 9
NO_NULL = "no null was drawn for these numbers"


def draw(result: Result) -> go.Figure:
    """How well tokens predict each unit's activations on held-out documents, beside random directions.

    Of more than 16 units: the 16 best. Raises ResultError for a result without cells.
    """
    return draw_areas(result, "What its tokens say of a unit, on held-out text", "a unit, predicted from tokens and bigrams")  # fmt: skip


def draw_areas(result: Result, title: str, point: str, names: str = "site") -> go.Figure:
    """Areas under the ROC as points with intervals on their null bands, chance at one half. names: the column that labels them."""
    frame = result.frame()
    if frame.empty:
        raise ResultError(
            f"this {result.kind} has no cells", why="nothing was scored", instead="see its tables"
        )
    frame = frame.sort_values("value", ascending=False, kind="stable")
    hidden = max(0, len(frame) - MOST)
    records = frame.head(MOST).to_dict("records")
    rows = [Row(visible(r[names], most=22), float(r["value"]), float(r["low"]), float(r["high"]), float(r["null_low"]), float(r["null_high"])) for r in records]  # fmt: skip
    known = [
        v for r in rows for v in (r.value, r.low, r.high, r.null_low, r.null_high, 0.5) if math.isfinite(v)
    ]
    room = 0.05 * ((max(known) - min(known)) or 1.0)
    sheet = Sheet(result, title)
    ticks = (list(range(len(rows))), [inert(r.name) for r in rows])
    panel = sheet.panel(max(22 * len(rows), 60), axis("area under the ROC (0.5 is chance)", span=(min(known) - room, max(known) + room)),
                        axis(span=(len(rows) - 0.5, -0.5), grid=False, ticks=ticks))  # fmt: skip
    _points(sheet, panel, rows)
    sheet.key("●", SERIES[0], f"{point}, with its interval over documents")
    if any(math.isfinite(r.null_low) for r in rows):
        sheet.key("■", BAND, "95 % of random directions on the same tokens")
    else:
        sheet.key("!", INK, NO_NULL)
    if hidden:
        sheet.key("…", MUTED, f"{hidden} others are in the data, not in this picture")
    return sheet.figure()


def _points(sheet: Sheet, panel: Any, rows: Sequence[Row]) -> None:
    import plotly.graph_objects as go

    for i, row in enumerate(rows):
        if math.isfinite(row.null_low) and math.isfinite(row.null_high):
            sheet.box(panel, (row.null_low, row.null_high), (i - 0.42, i + 0.42), BAND)
    sheet.line(panel, x=0.5, colour=MUTED, dash="dot")
    whiskers(sheet, panel, rows)
    hover = [inert(f"{r.name}: {number(r.value)} {interval(r.low, r.high)}, random directions {interval(r.null_low, r.null_high)}") for r in rows]  # fmt: skip
    sheet.add(panel, go.Scatter(x=[r.value for r in rows], y=list(range(len(rows))), mode="markers", hoverinfo="text", hovertext=hover,
                                marker={"size": 9, "color": SERIES[0], "symbol": "circle"}))  # fmt: skip


def _unit(table: Any, unit: str | None) -> tuple[str, Any]:
    names = unique(table["unit"].tolist())
    chosen = names[0] if unit is None else unit
    part = table[table["unit"].astype(str) == str(chosen)]
    if part.empty:
        raise ResultError(f"no unit {unit!r} is shown", why=f"those shown are {', '.join(map(str, names[:8]))}", instead="one of them, or show=[...]")  # fmt: skip
    return str(chosen), part


def histogram(result: Result, unit: str | None = None) -> go.Figure:
    """How often each size of a unit's activation occurs (shares, logarithmic), with random directions of the same spread and the
    edges of its quantile strata. Raises ResultError where there is no such table or unit.
    """
    import plotly.graph_objects as go

    name, part = _unit(need(result, "histogram"), unit)
    left, right, share, null = (part[c].to_numpy(float) for c in ("left", "right", "share", "null"))
    known = np.concatenate([share[share > 0], null[null > 0], [1e-4]])
    floor = math.log10(float(known.min())) - 0.2
    sheet = Sheet(result, f"Activations of {visible(name)}", call("examples", "histogram", unit=unit))
    span = (float(left[0]), float(right[-1]))
    panel = sheet.panel(240, axis("activation (units of the site)", span=span), axis("share of tokens", span=(floor, 0.0), log=True))  # fmt: skip
    middle = (left + right) / 2
    if np.isfinite(null).any():
        sheet.add(panel, go.Scatter(x=middle, y=np.where(null > 0, null, np.nan), mode="lines", line={"color": MUTED, "width": 2, "dash": "dash"}, hoverinfo="skip"))  # fmt: skip
        sheet.key("┅", MUTED, "random directions, at the same mean and spread")
    else:
        sheet.key("!", INK, NO_NULL)
    text = [
        inert(f"{number(a)} to {number(b)}: {number(s)}") for a, b, s in zip(left, right, share, strict=True)
    ]
    sheet.add(panel, go.Scatter(x=middle, y=np.where(share > 0, share, np.nan), mode="lines+markers", line={"color": SERIES[0], "width": 2},
                                marker={"size": 5, "color": SERIES[0]}, hoverinfo="text", hovertext=text))  # fmt: skip
    sheet.key("●", SERIES[0], "tokens drawn at random")
    strata = table_of(result, "strata")
    if strata is not None:
        own = strata[strata["unit"].astype(str) == name]
        for edge in own["from"].to_numpy(float)[1:]:
            if span[0] <= edge <= span[1]:
                sheet.line(panel, x=float(edge), colour=MUTED, dash="dot")
        if len(own) > 1:
            sheet.key("┊", MUTED, "quantiles at " + ", ".join(str(s).partition("-")[0] for s in own["stratum"].tolist()[1:]) + " %")  # fmt: skip
    return sheet.figure()


def contexts(result: Result, unit: str | None = None, which: str = "top") -> go.Figure:
    """Examples of a unit token by token, the token found in the last column but what follows; colour is activation.

    which: "top", "random" or "strata" (a sample of every quantile). Raises ResultError where there is no such table, unit or
    stratum.
    """
    name, part = _unit(need(result, "contexts"), unit)
    part = part[~part["stratum"].isin(["top", "random"])] if which == "strata" else part[part["stratum"] == which]  # fmt: skip
    if part.empty:
        raise ResultError(f"no examples {which!r} of {name}", why="none were kept", instead='which="top", "random" or "strata"')  # fmt: skip
    groups = [(f"{s}" if which == "strata" else f"{int(r) + 1}", rows) for (s, r), rows in part.groupby(["stratum", "rank"], sort=False)]  # fmt: skip
    values = np.full((len(groups), WIDE), np.nan)
    words, hover = [[""] * WIDE for _ in groups], [[""] * WIDE for _ in groups]
    for g, (label, rows) in enumerate(groups):
        peak = int(np.argmax(rows["peak"].to_numpy(bool)))
        for i, row in enumerate(rows.to_dict("records")):
            column = WIDE - 3 + i - peak
            if 0 <= column < WIDE:
                values[g, column] = float(row["value"])
                words[g][column] = visible(row["token"], most=6)
                hover[g][column] = f"{label}, {'the token found' if row['peak'] else 'beside it'}\n{visible(row['token'], most=60)}\nactivation {number(row['value'])}"  # fmt: skip
    shown = np.isfinite(values)
    everything = need(result, "contexts")
    limit = float(everything.loc[everything["unit"].astype(str) == name, "value"].abs().max()) or 1.0
    none = np.zeros(values.shape, bool)
    heads = [f"{c - WIDE + 3:+d}" if c != WIDE - 3 else "here" for c in range(WIDE)]
    title = {"top": "largest", "random": "drawn at random", "strata": "from every quantile"}.get(which, which)
    grid = Grid("", [label for label, _ in groups], heads, "example", "token", values, none, none, hover, ~shown, words)  # fmt: skip
    scale = Scale(limit, "activation (units of the site)")
    sheet = Sheet(
        result, f"{visible(name)}: examples {title}", call("examples", "contexts", unit=unit, which=which)
    )
    draw_bar(sheet, scale)
    draw_grid(sheet, grid, scale, cell=18)
    sheet.key("", MUTED, "One block of text a line. Random directions have tops too: see the first picture.")
    if "cells" not in result.tables:
        sheet.key("!", INK, NO_NULL)
    return sheet.figure()


def logits(result: Result, unit: str | None = None) -> go.Figure:
    """The tokens that a unit's output raises and lowers most, directly; the largest of random directions in grey.

    Raises ResultError where there is no such table or unit.
    """
    name, part = _unit(need(result, "logits"), unit)
    part = part.sort_values("value", ascending=False, kind="stable")
    rows = []
    for row in part.to_dict("records"):
        null = abs(float(row["null"]))
        rows.append(Row(visible(row["token"], most=18), float(row["value"]), null_low=-null, null_high=null, clear=abs(row["value"]) > null if math.isfinite(null) else None,
                        hover=f"{visible(row['token'], most=60)}: {number(float(row['value']))}, random directions up to {number(null)}"))  # fmt: skip
    sheet = Sheet(result, f"What {visible(name)} writes, in the vocabulary", call("examples", "logits", unit=unit))  # fmt: skip
    draw_bars(sheet, rows, "logits per unit of activation, before the final norm divides")
    if any(math.isfinite(r.null_low) for r in rows):
        sheet.key("■", BAND, "the largest token of 95 % of random directions of this length")
    else:
        sheet.key("!", INK, NO_NULL)
    return sheet.figure()


def pictures(result: Result) -> tuple[Picture, ...]:
    """All pictures: detection first, then each shown unit's examples."""
    made = [Picture("detection", "A description made of its top examples is a hypothesis. Where the point lies in the grey band, tokens say no more of the unit than of a random direction.",
                    partial(draw, result))]  # fmt: skip
    table = result.tables.get("contexts")
    if table is None or not {"unit", "stratum"} <= set(table.columns):
        return tuple(made)
    for i, unit in enumerate(unique(table["unit"].tolist())):
        later = i > 0
        have = set(table.loc[table["unit"] == unit, "stratum"])
        if "histogram" in result.tables:
            made.append(Picture(f"activations of {visible(unit)}", "The examples shown as the largest are the far right end.", partial(histogram, result, unit),
                                call("examples", "histogram", unit=unit), secondary=later))  # fmt: skip
        for which, caption in (("top", "The largest activations, at most one of a block of text."), ("strata", "Samples of every quantile: what the top does not show."),
                               ("random", "Drawn at random, not chosen.")):  # fmt: skip
            if which in have or (which == "strata" and have - {"top", "random"}):
                made.append(Picture(f"{which} of {visible(unit)}", caption, partial(contexts, result, unit, which), call("examples", "contexts", unit=unit, which=which),
                                    secondary=later or which == "random"))  # fmt: skip
        words = result.tables.get("logits")
        if words is not None and unit in set(words["unit"] if "unit" in words.columns else ()):
            made.append(Picture(f"logits of {visible(unit)}", "Direct writing only: what later layers make of it is left out.", partial(logits, result, unit),
                                call("examples", "logits", unit=unit), secondary=later))  # fmt: skip
    return tuple(made)
