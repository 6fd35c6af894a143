"""Pictures of ablation: what removing a part costs on the task, and whether it costs as much everywhere else."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ResultError
from .colours import INK, MUTED, SERIES
from .maps import draw_map, other_metrics
from .panels import Picture
from .sheet import Sheet, axis
from .snippet import call
from .text import inert, number, visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ..results.result import Result


def draw(result: Result, metric: str | None = None) -> go.Figure:
    """The map: the metric with a part ablated minus without. Raises ResultError without effects or this metric."""
    by = "" if result.query is None else str(result.query.parameters.get("by", ""))
    name = f"What removing each part changes ({by} ablation)" if by else "What removing each part changes"
    return draw_map(result, name, "change", metric=metric, call="" if metric is None else call("ablation", "draw", metric=metric))


def off_task(result: Result, named: int = 4) -> go.Figure:
    """Damage on the task against damage elsewhere, both as KL at the scored positions (tables["off_task"]).

    Raises ResultError when the off-task control did not run.
    """
    import plotly.graph_objects as go

    table = result.tables.get("off_task")
    if table is None or table.empty:
        raise ResultError("nothing was ablated off-task", why='there is no table "off_task"', instead="see the controls")
    on, off = table["on"].to_numpy(float), table["off"].to_numpy(float)
    sites = [visible(s, most=24) for s in table["site"]]
    known = np.concatenate([on, off])
    known = known[np.isfinite(known)]
    log = bool(known.size and (known > 0).all() and known.max() > 30 * known.min())
    span = _span(known, log)
    sheet = Sheet(result, "Damage on the task and elsewhere", call("ablation", "off_task"))
    panel = sheet.panel(300, axis("off the task: KL (nats)", span=span, log=log), axis("on the task: KL (nats)", span=span, log=log))
    ends = [10**v for v in span] if log else list(span)
    sheet.add(panel, go.Scatter(x=ends, y=ends, mode="lines", line={"color": MUTED, "width": 1, "dash": "dash"}, hoverinfo="skip"))
    ratio = np.divide(on, off, out=np.zeros_like(on), where=off > 0)
    order = np.argsort(np.where(np.isfinite(on), -on, np.inf))[:named]
    text = [inert(sites[i]) if i in order else "" for i in range(len(sites))]
    hover = [inert(f"{s}: on {number(a)}, off {number(b)}, ratio {number(r)}") for s, a, b, r in zip(sites, on, off, ratio, strict=True)]
    sheet.add(panel, go.Scatter(x=off, y=on, mode="markers+text", text=text, textposition="top center", textfont={"size": 10, "color": INK},
                                marker={"size": 7, "color": SERIES[0], "opacity": 0.75}, hoverinfo="text", hovertext=hover))  # fmt: skip
    sheet.key("╱", MUTED, "equal damage: parts on or below this line matter to any text, not to the task")
    return sheet.figure()


def _span(known: np.ndarray, log: bool) -> tuple[float, float]:
    if not known.size:
        return 0.0, 1.0
    if log:
        low, high = np.log10(known.min()), np.log10(known.max())
        return float(low - 0.15), float(high + 0.25)
    low, high = min(0.0, float(known.min())), float(known.max())
    room = 0.08 * ((high - low) or 1.0)
    return low - room / 2, high + 1.5 * room


def pictures(result: Result) -> tuple[Picture, ...]:
    """All pictures of an ablation."""
    made = [Picture("map", "Negative: the model does worse without the part. Other parts may take over (self-repair), so a small number "
                    "does not say that a part is unused.", partial(draw, result))]  # fmt: skip
    if len(result.tables.get("off_task", ())):
        made.append(Picture("on and off the task", "The first MLP matters on every input: only damage above the line belongs to the task.",
                            partial(off_task, result), call("ablation", "off_task")))  # fmt: skip
    made += [Picture(f"map under {m}", "The same under another metric.", partial(draw, result, m), call("ablation", "draw", metric=m),
                     secondary=True) for m in other_metrics(result)]  # fmt: skip
    return tuple(made)
