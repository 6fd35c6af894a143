"""Pictures of attribution patching: an estimate of every patch from gradients, and what became of it when it was verified."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from .colours import MUTED
from .maps import draw_map, draw_strongest, other_metrics
from .panels import Picture
from .scatter import draw_scatter
from .sheet import Sheet
from .snippet import call
from .tables import need
from .text import number, unit, visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ..results.result import Result


def of_edges(result: Result) -> bool:
    """Whether the cells are edges: those have no map, a name joins two places of it."""
    return result.effects is not None and any(
        "->" in str(site) for site in result.effects.coords.get("site", ())
    )


def draw(result: Result, metric: str | None = None) -> go.Figure:
    """The map of the estimates; of edges the strongest as bars. Raises ResultError without effects or this metric."""
    if of_edges(result):
        called = "" if metric is None else call("attribution", "draw", metric=metric)
        return draw_strongest(result, "Attribution: the edges with the largest estimated effect", "estimated effect", metric=metric, most=EDGES, call=called)  # fmt: skip
    return draw_map(
        result,
        "Attribution: the estimated effect of every patch",
        "estimated effect",
        metric=metric,
        call="" if metric is None else call("attribution", "draw", metric=metric),
    )


EDGES = 24
"""Edges that are drawn."""


def strongest(result: Result, metric: str | None = None, most: int = 16) -> go.Figure:
    """The largest estimates as bars with intervals and null bands."""
    return draw_strongest(result, "The largest estimates", "estimated effect", metric=metric, most=most,
                          call=call("attribution", "strongest", metric=metric))  # fmt: skip


def rank_correlation(estimate: np.ndarray, exact: np.ndarray) -> tuple[float, int]:
    """Spearman's correlation over the sites that both have, and their number; NaN where ranks are undefined."""
    import pandas as pd  # not scipy.stats, which takes seconds to import

    known = np.isfinite(estimate) & np.isfinite(exact)
    n = int(known.sum())
    if n < 3:
        return float("nan"), n
    a, b = (pd.Series(v[known]).rank().to_numpy(float) - (n + 1) / 2 for v in (estimate, exact))
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return (float(a @ b) / scale if scale > 0 else float("nan")), n


def chance_correlation(n: int) -> float:
    """Below which |Spearman's correlation| of n unrelated ranks stays in about 95 % of cases."""
    return 1.96 / float(np.sqrt(n - 1)) if n > 2 else float("nan")


def agreement(result: Result, named: int = 4) -> go.Figure:
    """Attribution's estimate against the exact effect, site by site (tables["agreement"]).

    Raises ResultError where there is no such table.
    """
    table = need(result, "agreement")
    estimate, exact = table["estimate"].to_numpy(float), table["exact"].to_numpy(float)
    rho, n = rank_correlation(estimate, exact)
    sheet = Sheet(
        result,
        f"Estimate and exact effect: rank correlation {number(rho)} over {n} {'edges' if of_edges(result) else 'sites'}",
        call("attribution", "agreement"),
    )
    sites = [visible(s, most=24) for s in table["site"]]
    hover = [
        f"{s}: estimate {number(a)}, exact {number(b)}"
        for s, a, b in zip(sites, estimate, exact, strict=True)
    ]
    metric = "" if result.effects is None else f", {unit(str(result.effects.coords['metric'][0]))}"
    across, up = (f"estimate{metric}", estimate), (f"exact{metric}", exact)
    draw_scatter(sheet, across, up, sites, hover, named=named)
    sheet.key("╱", MUTED, "estimate equals exact effect")
    if np.isfinite(chance_correlation(n)):
        sheet.key(
            "…",
            MUTED,
            f"ranks that have nothing to do with each other: within ±{number(chance_correlation(n))} in 95 % of cases",
        )
    return sheet.figure()


def agreement_picture(result: Result) -> tuple[Picture, ...]:
    """The scatter of estimate and exact effect, where there is a table "agreement"."""
    if not len(result.tables.get("agreement", ())):
        return ()
    caption = (
        "The estimate costs a few passes for all together, the exact effect one intervention for each. Where they "
        "disagree, the exact one is right. The strongest are all verified, the others by a random sample."
    )
    return (Picture("agreement", caption, partial(agreement, result), call("attribution", "agreement")),)


def pictures(result: Result) -> tuple[Picture, ...]:
    """All pictures of an attribution."""
    if of_edges(result):
        caption = "The largest estimates with their intervals. Saturated attention and effects that cancel are missed: believe an edge once it was patched exactly."
        return (Picture("largest edges", caption, partial(draw, result)), *agreement_picture(result))
    made = [
        Picture(
            "map",
            "A first-order estimate: saturated attention and effects that cancel are missed. Believe a cell once "
            "it was patched exactly.",
            partial(draw, result),
        ),
        Picture(
            "largest estimates",
            "The largest of them, with intervals where there are some.",
            partial(strongest, result),
            call("attribution", "strongest"),
            secondary=True,
        ),
    ]
    made += [
        Picture(
            f"map under {m}",
            "The same under another metric.",
            partial(draw, result, m),
            call("attribution", "draw", metric=m),
            secondary=True,
        )
        for m in other_metrics(result)
    ]
    made[1:1] = agreement_picture(result)
    return tuple(made)
