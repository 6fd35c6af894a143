"""Pictures of a probe: beside its random twin and the baselines along the layers, its reliability, and the causal test."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ResultError
from .cells import unique
from .colours import BAND, GLYPHS, INK, MUTED, SERIES, pale, series
from .panels import Picture
from .sheet import Panel, Sheet, axis
from .snippet import call
from .tables import need
from .text import inert, layer_of, number, visible

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from ..results.result import Result

LINES = ("probe", "random twin")
DASHES = ("dash", "dot", "dashdot", "longdash")
WAYS = {
    "move": "added to one class, subtracted from the other",
    "project_out": "projected out",
}


def draw(result: Result) -> go.Figure:
    """AUROC along the layers: the probe, the random twin, and what needs no model as level lines (tables["probes"]).

    Raises ResultError without that table.
    """
    table = need(result, "probes")
    part = table[table["site"].astype(str) != ""]
    sites = unique(part["site"].tolist())
    if not sites:
        raise ResultError("no probe in this result", why="the table names no site", instead="see its tables")
    names = [layer_of(s) for s in sites]
    shown = list(range(0, len(sites), max(1, -(-len(sites) // 12))))
    numbers = table[["value", "low", "high"]].to_numpy(float)
    low = min(0.4, float(np.nanmin(numbers)) - 0.02)
    sheet = Sheet(result, "What a probe reads, and what reads as much without it")
    point = str(sites[0]).split(".", 1)[-1]
    x = axis(
        f"layer ({visible(point)})",
        span=(-0.5, len(sites) - 0.5),
        grid=False,
        ticks=(shown, [inert(names[i]) for i in shown]),
    )
    panel = sheet.panel(240, x, axis("AUROC on held-out texts (0.5: chance)", span=(max(low, -0.1), 1.03)))
    _band(sheet, panel, part)
    sheet.line(panel, y=0.5, colour=MUTED, dash="dot")
    for k, what in enumerate(w for w in LINES if (part["what"] == w).any()):
        rows = part[part["what"] == what].drop_duplicates("site").set_index("site").reindex(sites)
        _line(sheet, panel, rows, k)
        sheet.key(GLYPHS[k], series(k)[0], f"{what}, with interval over groups")
    levels = table[table["site"].astype(str) == ""].to_dict("records")
    for k, row in enumerate(levels, start=2):
        _level(sheet, panel, row, k, len(sites))
    if "random twin" not in set(part["what"]):
        sheet.key("!", INK, "no random twin was run")
    return sheet.figure()


def _band(sheet: Sheet, panel: Panel, part: pd.DataFrame) -> None:
    ends = part[["null_low", "null_high"]].to_numpy(float)
    if not np.isfinite(ends).all(1).any():
        sheet.key("!", INK, "no null was drawn for these numbers")
        return
    sheet.box(panel, None, (float(np.nanmin(ends[:, 0])), float(np.nanmax(ends[:, 1]))), BAND)
    sheet.key("■", BAND, "shuffled labels: all closed-form probes of all places stay inside")


def _line(sheet: Sheet, panel: Panel, rows: pd.DataFrame, k: int) -> None:
    import plotly.graph_objects as go

    colour, symbol = series(k)
    low, high, value = (rows[c].to_numpy(float) for c in ("low", "high", "value"))
    ok = np.isfinite(low) & np.isfinite(high)
    xs = np.arange(len(rows))
    if ok.any():
        sheet.add(panel, go.Scatter(x=[*xs[ok], *xs[ok][::-1]], y=[*high[ok], *low[ok][::-1]], mode="lines", fill="toself",
                                    fillcolor=pale(colour), line={"width": 0, "color": colour}, hoverinfo="skip"))  # fmt: skip
    hover = [
        f"{visible(site)}<br>{inert(visible(row['kind']))} at {inert(visible(row['position']))}<br>AUROC {number(row['value'])}"
        if np.isfinite(row["value"])
        else ""
        for site, row in rows.iterrows()
    ]
    sheet.add(panel, go.Scatter(x=xs, y=value, mode="lines+markers", line={"color": colour, "width": 2}, hoverinfo="text",
                                hovertext=hover, marker={"size": 6, "color": colour, "symbol": symbol}))  # fmt: skip


def _level(sheet: Sheet, panel: Panel, row: dict[Any, Any], k: int, n: int) -> None:
    import plotly.graph_objects as go

    colour = SERIES[k % len(SERIES)]
    value = float(row["value"])
    text = f"{row['what']}: AUROC {number(value)}"
    hover = [inert(visible(text, most=80))] * 2
    sheet.add(panel, go.Scatter(x=[-0.5, n - 0.5], y=[value, value], mode="lines", hoverinfo="text", hovertext=hover,
                                line={"color": colour, "width": 2, "dash": DASHES[(k - 2) % len(DASHES)]}))  # fmt: skip
    ends = [float(row["low"]), float(row["high"])]
    said = f" ({number(ends[0])} to {number(ends[1])})" if np.isfinite(ends).all() else ""
    sheet.key("┅", colour, text + said)


def reliability(result: Result) -> go.Figure:
    """How often texts are positive among those given each probability (tables["reliability"]).

    Raises ResultError without that table.
    """
    import plotly.graph_objects as go

    table = need(result, "reliability")
    x, y = table["predicted"].to_numpy(float), table["observed"].to_numpy(float)
    low, high = table["low"].to_numpy(float), table["high"].to_numpy(float)
    sheet = Sheet(result, "Is the probe as sure as it should be", call("probing", "reliability"))
    panel = sheet.panel(200, axis("probability given (mean of a bin)", span=(-0.03, 1.03)),
                        axis("share that is positive", span=(-0.03, 1.03)))  # fmt: skip
    sheet.add(panel, go.Scatter(x=[0, 1], y=[0, 1], mode="lines", hoverinfo="skip", line={"color": MUTED, "width": 1, "dash": "dot"}))  # fmt: skip
    for k in range(len(x)):
        if np.isfinite([low[k], high[k]]).all():
            sheet.add(panel, go.Scatter(x=[x[k], x[k]], y=[low[k], high[k]], mode="lines", hoverinfo="skip", line={"color": SERIES[0], "width": 1}))  # fmt: skip
    hover = [inert(f"said {number(a)}, seen {number(b)}") for a, b in zip(x, y, strict=True)]
    sheet.add(panel, go.Scatter(x=x, y=y, mode="markers", hoverinfo="text", hovertext=hover, marker={"size": 8, "color": SERIES[0], "symbol": "circle"}))  # fmt: skip
    sheet.key("●", SERIES[0], "test texts in bins of equal count, exact 95 % intervals")
    sheet.key("┅", MUTED, "perfect reliability")
    return sheet.figure()


FAMILIES = {
    "shuffled labels": (MUTED, "the same estimator on shuffled labels, at its own length"),
    "shuffled labels, equal length": (BAND, "the same ones, drawn out to the direction's length"),
    "isotropic": (SERIES[1], "isotropic noise of its length"),
    "natural noise": (SERIES[2], "noise of its length, as texts of one class vary"),
}
"""Null directions of the causal test: colour and words."""


def causal(result: Result) -> go.Figure:
    """What the direction does to the answers, beside null directions of every family (tables["causal"]).

    Raises ResultError without that table.
    """
    import plotly.graph_objects as go

    table = need(result, "causal")
    ways = unique(table["way"].tolist())
    sheet = Sheet(result, "Does the model use the direction", call("probing", "causal"))
    values = table["value"].to_numpy(float)
    span = float(np.abs(values).max()) * 1.08 or 1.0
    for way in ways:
        part = table[table["way"] == way]
        edges = np.linspace(-span, span, 41)
        null = [
            (family, np.histogram(part.loc[part["family"] == family, "value"].to_numpy(float), edges)[0])
            for family in FAMILIES
        ]
        top = max(1, *(int(counts.max()) for _, counts in null)) * 1.1
        panel = sheet.panel(130, axis("change of the answer toward the other class (nats)", span=(-span, span)),
                            axis("directions", span=(0, top)), heading=WAYS.get(str(way), visible(way)))  # fmt: skip
        for family, counts in null:
            if not counts.any():
                continue
            colour = FAMILIES[family][0]
            xs = [edges[0], *np.repeat(edges, 2)[1:-1].tolist(), edges[-1]]
            ys = [0.0, *np.repeat(counts, 2).tolist(), 0.0]
            sheet.add(panel, go.Scatter(x=xs, y=ys, mode="lines", fill="toself", fillcolor=pale(colour, 0.35), line={"width": 1, "color": colour},
                                        hoverinfo="text", hovertext=[inert(f"{int(counts.sum())} directions, {family}")] * len(xs)))  # fmt: skip
        real = part.loc[part["family"] == "direction", "value"].to_numpy(float)
        if real.size:
            sheet.line(panel, x=float(real[0]), colour=SERIES[0])
    sheet.key("│", SERIES[0], "the probe's direction")
    drawn = set(table["family"])
    for family, (colour, words) in FAMILIES.items():
        if family in drawn:
            sheet.key("■", colour, words)
    return sheet.figure()


def pictures(result: Result) -> tuple[Picture, ...]:
    """All pictures of a probe."""
    made = [
        Picture(
            "layers",
            "A probe means something where it stands above the grey band, the random twin and every level line.",
            partial(draw, result),
        )
    ]
    if len(result.tables.get("causal", ())):
        made.append(Picture("causal test", "Reading is not using: the direction must move the answer further than the grey ones.",
                            partial(causal, result), call("probing", "causal")))  # fmt: skip
    if len(result.tables.get("reliability", ())):
        made.append(Picture("reliability", "Points on the diagonal: probabilities that can be taken at their word.",
                            partial(reliability, result), call("probing", "reliability"), secondary=True))  # fmt: skip
    return tuple(made)
