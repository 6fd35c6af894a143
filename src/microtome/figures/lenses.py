"""Pictures of lenses: divergence from the end, agreement and calibration along the layers, each lens beside its null."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ResultError
from .cells import unique
from .colours import BAND, GLYPHS, INK, MUTED, pale, series
from .panels import Picture
from .sheet import Panel, Sheet, axis
from .snippet import call
from .tables import need, table_of
from .text import inert, number, visible

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from ..results.result import Result

TITLES = {
    "kl": "KL from the final distribution, nats",
    "agreement": "same likeliest token as the end, share",
    "nll": "-log p of the next token, nats",
}
CONSTANT = "constant"


def draw(result: Result) -> go.Figure:
    """Every lens along the layers: divergence, agreement, and calibration error, on the same text.

    Grey: the lenses reading another text. Raises ResultError where no divergence was measured.
    """
    frame = result.frame()
    names = _names(frame)
    sheet = Sheet(result, "What lenses read, layer by layer")
    for metric in ("kl", "agreement"):
        if any(f"{metric} {n}" in set(frame["metric"]) for n in names):
            _panel(sheet, frame, metric, names)
    calibration = table_of(result, "calibration")
    if calibration is not None:
        _calibrated(sheet, calibration, names)
    _keys(sheet, names)
    _null_key(sheet, frame)
    return sheet.figure()


def loss(result: Result) -> go.Figure:
    """-log p of the next token, along the layers. Raises ResultError where it was not measured."""
    frame = result.frame()
    sheet = Sheet(result, "How well lenses tell the next token", call("lenses", "loss"))
    names = _names(frame)
    _panel(sheet, frame, "nll", names)
    _keys(sheet, names)
    _null_key(sheet, frame)
    return sheet.figure()


def reliability(result: Result, site: str | None = None) -> go.Figure:
    """Confidence against how often it is right, per lens, at one site (None: the middle one).

    Raises ResultError without a table "reliability" or such a site in it.
    """
    table = need(result, "reliability")
    sites = unique(map(str, table["site"]))
    chosen = sites[len(sites) // 2] if site is None else site
    if chosen not in sites:
        raise ResultError(
            f"no site {visible(chosen)!r}", why=f"sites are {sites[:4]}...", instead="one of them"
        )
    part = table[table["site"] == chosen]
    sheet = Sheet(
        result, f"Confidence of lenses at {visible(chosen)}", call("lenses", "reliability", site=chosen)
    )
    panel = sheet.panel(
        260,
        axis("probability of the likeliest token", span=(0, 1)),
        axis("how often it is the next token", span=(0, 1)),
    )
    import plotly.graph_objects as go

    sheet.add(
        panel,
        go.Scatter(
            x=[0, 1],
            y=[0, 1],
            mode="lines",
            line={"color": MUTED, "width": 1, "dash": "dash"},
            hoverinfo="skip",
        ),
    )
    names = unique(map(str, part["lens"]))
    for k, name in enumerate(names):
        own = part[part["lens"] == name]
        colour, symbol = series(k)
        hover = [
            inert(
                f"{visible(name)}: {number(float(r['n']))} tokens, {number(float(r['predicted']))} said, {number(float(r['observed']))} seen"
            )
            for r in own.to_dict("records")
        ]
        sheet.add(panel, go.Scatter(x=own["predicted"], y=own["observed"], mode="lines+markers", hoverinfo="text", hovertext=hover,
                                    line={"color": colour, "width": 2}, marker={"size": 7, "color": colour, "symbol": symbol}))  # fmt: skip
    _keys(sheet, names)
    sheet.key("╌", MUTED, "as often right as it says")
    return sheet.figure()


def _names(frame: pd.DataFrame) -> list[str]:
    names = [str(m).partition(" ")[2] for m in unique(frame["metric"]) if str(m).startswith("kl ")]
    if not names:
        raise ResultError(
            "this result has no lenses", why="no divergence was measured", instead="see its controls"
        )
    return names


def _panel(sheet: Sheet, frame: pd.DataFrame, metric: str, names: list[str]) -> None:
    sites = unique(frame["site"])
    rows = {n: frame[frame["metric"] == f"{metric} {n}"].set_index("site").reindex(sites) for n in names}
    nulls = [r[["null_low", "null_high"]].to_numpy(float) for n, r in rows.items() if n != CONSTANT]
    low = np.fmin.reduce([n[:, 0] for n in nulls])  # NaN only where no lens has a null
    high = np.fmax.reduce([n[:, 1] for n in nulls])
    every = np.concatenate(
        [high, *(r[["value", "high"]].to_numpy(float).ravel() for r in rows.values()), [1e-9]]
    )
    top = float(every[np.isfinite(every)].max())
    panel = sheet.panel(190, _layers(sites), axis(TITLES[metric], span=(0.0, 1.06 * top)))
    _band(sheet, panel, low, high, BAND)
    for k, n in enumerate(names):
        _line(sheet, panel, rows[n], k, n, sites)


def _layers(sites: list[Any]) -> dict[str, Any]:
    shown = list(range(0, len(sites), max(1, -(-len(sites) // 12))))
    names = [str(s).split(".")[0].removeprefix("L") if "." in str(s) else "end" for s in sites]
    return axis(
        "stream before layer",
        span=(-0.5, len(sites) - 0.5),
        grid=False,
        ticks=(shown, [inert(names[i]) for i in shown]),
    )


def _band(sheet: Sheet, panel: Panel, low: np.ndarray, high: np.ndarray, colour: str) -> None:
    import plotly.graph_objects as go

    ok = np.isfinite(low) & np.isfinite(high)
    if ok.any():
        xs = np.arange(len(low))[ok]
        sheet.add(panel, go.Scatter(x=[*xs, *xs[::-1]], y=[*high[ok], *low[ok][::-1]], mode="lines", fill="toself", fillcolor=colour,
                                    line={"width": 0, "color": colour}, hoverinfo="skip"))  # fmt: skip


def _line(sheet: Sheet, panel: Panel, part: pd.DataFrame, k: int, name: str, sites: list[Any]) -> None:
    import plotly.graph_objects as go

    colour, symbol = series(k)
    value, low, high = (part[c].to_numpy(float) for c in ("value", "low", "high"))
    _band(sheet, panel, low, high, pale(colour))
    hover = [
        inert(f"{visible(s)}, {visible(name)}: {number(v)} ({number(a)} to {number(b)})")
        for s, v, a, b in zip(sites, value, low, high, strict=True)
    ]
    sheet.add(panel, go.Scatter(
        x=np.arange(len(value)), y=value, mode="lines+markers", hoverinfo="text", hovertext=hover,
        line={"color": colour, "width": 2, "dash": "dot" if name == CONSTANT else "solid"}, marker={"size": 5, "color": colour, "symbol": symbol},
    ))  # fmt: skip


def _calibrated(sheet: Sheet, table: pd.DataFrame, names: list[str]) -> None:
    sites = unique(table["site"])
    every = np.append(table[["value", "high"]].to_numpy(float).ravel(), 1e-9)
    top = float(every[np.isfinite(every)].max())
    panel = sheet.panel(150, _layers(sites), axis("calibration error", span=(0.0, 1.06 * top)))
    for k, n in enumerate(names):
        _line(sheet, panel, table[table["lens"] == n].set_index("site").reindex(sites), k, n, sites)


def _keys(sheet: Sheet, names: list[str]) -> None:
    said = {
        "constant": "the same for every text: what is known without reading",
        "logit": "as it is",
        "tuned": "an affine map, fitted",
        "jacobian": "the mean Jacobian",
    }
    for k, n in enumerate(names):
        sheet.key(
            GLYPHS[k % len(GLYPHS)], series(k)[0], f"{visible(n)}: {said[n]}" if n in said else visible(n)
        )
    sheet.key("…", INK, "bands: intervals by document")


def _null_key(sheet: Sheet, frame: pd.DataFrame) -> None:
    if frame["null_high"].notna().any():
        sheet.key("■", BAND, "null: the same lenses on another block's stream, over all lenses that read")
    else:
        sheet.key("!", INK, "no null was drawn for these numbers")


def pictures(result: Result) -> tuple[Picture, ...]:
    """All pictures of lenses."""
    made = [
        Picture(
            "lenses",
            "Lower is nearer to what the model says at the end. All lenses read the same text, which none was fitted to.",
            partial(draw, result),
        )
    ]
    if any(str(m).startswith("nll ") for m in result.frame()["metric"]):
        made.append(
            Picture(
                "next token",
                "The same by the loss on the next token.",
                partial(loss, result),
                call("lenses", "loss"),
                secondary=True,
            )
        )
    if len(result.tables.get("reliability", ())):
        sites = unique(map(str, result.tables["reliability"]["site"]))
        middle = sites[len(sites) // 2]
        made.append(
            Picture(
                "confidence",
                "On the dashed line a lens is as often right as it says.",
                partial(reliability, result, middle),
                call("lenses", "reliability", site=middle),
                secondary=True,
            )
        )
    return tuple(made)
