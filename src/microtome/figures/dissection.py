"""Pictures of a dissection as a whole: its map, and the estimate beside the exact effect."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ResultError
from .colours import INK, MUTED, SERIES
from .panels import Picture, pictures_of
from .sheet import Sheet, axis
from .snippet import call
from .text import inert, number, visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ..results.result import Result


def draw(result: Result) -> go.Figure:
    """The picture that stands for a dissection: its first patching map, else its first stage that has one.

    Raises ResultError for a dissection without a stage that can be drawn.
    """
    first = [c for c in result.children if c.kind == "activation_patching"]
    for child in (*first, *result.children):
        found = pictures_of(child)
        if found:
            return found[0].draw()
    raise ResultError("this dissection has no picture", why="no stage of it has one", instead="use tables")


def rank_correlation(estimate: np.ndarray, exact: np.ndarray) -> tuple[float, int]:
    """Spearman's correlation over the sites that both have, and their number; NaN where ranks are undefined."""
    from scipy.stats import rankdata

    known = np.isfinite(estimate) & np.isfinite(exact)
    n = int(known.sum())
    if n < 3:
        return float("nan"), n
    a, b = (rankdata(v[known]) - (n + 1) / 2 for v in (estimate, exact))
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return (float(a @ b) / scale if scale > 0 else float("nan")), n


def chance_correlation(n: int) -> float:
    """Below which |Spearman's correlation| of n unrelated ranks stays in about 95 % of cases."""
    return 1.96 / float(np.sqrt(n - 1)) if n > 2 else float("nan")


def agreement(result: Result, named: int = 4) -> go.Figure:
    """Attribution's estimate against the exact effect, site by site (tables["agreement"]).

    Raises ResultError where there is no such table.
    """
    import plotly.graph_objects as go

    table = result.tables.get("agreement")
    if table is None or table.empty:
        raise ResultError("nothing to compare", why='there is no table "agreement"', instead="run both methods")
    estimate, exact = table["estimate"].to_numpy(float), table["exact"].to_numpy(float)
    rho, n = rank_correlation(estimate, exact)
    sheet = Sheet(result, f"Estimate and exact effect: rank correlation {number(rho)} over {n} sites", call("dissection", "agreement"))
    known = np.concatenate([estimate, exact, [0.0]])
    known = known[np.isfinite(known)]
    room = 0.08 * (float(np.ptp(known)) or 1.0)
    span = (float(known.min()) - room, float(known.max()) + room)
    panel = sheet.panel(300, axis("exact effect (patching)", span=span), axis("estimate (attribution)", span=span))
    sheet.line(panel, x=0, colour=MUTED, dash="dot")
    sheet.line(panel, y=0, colour=MUTED, dash="dot")
    sheet.add(panel, go.Scatter(x=list(span), y=list(span), mode="lines", line={"color": MUTED, "width": 1, "dash": "dash"}, hoverinfo="skip"))
    sites = [visible(s, most=24) for s in table["site"]]
    top = np.argsort(np.where(np.isfinite(exact), -np.abs(exact), np.inf))[:named]
    hover = [inert(f"{s}: estimate {number(a)}, exact {number(b)}") for s, a, b in zip(sites, estimate, exact, strict=True)]
    sheet.add(panel, go.Scatter(x=exact, y=estimate, mode="markers+text", hoverinfo="text", hovertext=hover, textposition="top center",
                                text=[inert(s) if i in top else "" for i, s in enumerate(sites)], textfont={"size": 10, "color": INK},
                                marker={"size": 7, "color": SERIES[0], "opacity": 0.7}))  # fmt: skip
    sheet.key("╱", MUTED, "estimate equals exact effect")
    if np.isfinite(chance_correlation(n)):
        sheet.key("…", MUTED, f"ranks that have nothing to do with each other: within ±{number(chance_correlation(n))} in 95 % of cases")
    return sheet.figure()


def pictures(result: Result) -> tuple[Picture, ...]:
    """The pictures that belong to no single stage."""
    if not len(result.tables.get("agreement", ())):
        return ()
    return (Picture("agreement", "The estimate costs two forwards and a backward, the exact effect one intervention per site. Where they "
                    "disagree, the exact one is right.", partial(agreement, result), call("dissection", "agreement")),)  # fmt: skip
