"""Pictures of ablation: what removing a part costs on the task, and whether it costs as much everywhere else."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from .colours import MUTED
from .maps import draw_map, other_metrics
from .panels import Picture
from .scatter import draw_scatter
from .sheet import Sheet
from .snippet import call
from .tables import need
from .text import number, visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ..results.result import Result


def draw(result: Result, metric: str | None = None) -> go.Figure:
    """The map: the metric with a part ablated minus without. Raises ResultError without effects or this metric."""
    by = "" if result.query is None else str(result.query.parameters.get("by", ""))
    name = f"What removing each part changes ({by} ablation)" if by else "What removing each part changes"
    return draw_map(
        result,
        name,
        "change",
        metric=metric,
        call="" if metric is None else call("ablation", "draw", metric=metric),
    )


def off_task(result: Result, named: int = 3) -> go.Figure:
    """Damage on the task against damage elsewhere, both as KL at the scored positions (tables["off_task"]).

    Raises ResultError when the off-task control did not run.
    """
    table = need(result, "off_task")
    on, off = table["on"].to_numpy(float), table["off"].to_numpy(float)
    sites = [visible(s, most=24) for s in table["site"]]
    both = np.concatenate([on, off])
    both = both[np.isfinite(both)]
    log = bool(both.size and (both > 0).all() and both.max() > 30 * both.min())
    ratio = np.divide(on, off, out=np.zeros_like(on), where=off > 0)
    hover = [
        f"{s}: on {number(a)}, off {number(b)}, ratio {number(r)}"
        for s, a, b, r in zip(sites, on, off, ratio, strict=True)
    ]
    sheet = Sheet(result, "Damage on the task and elsewhere", call("ablation", "off_task"))
    across, up = ("off the task: KL (nats)", off), ("on the task: KL (nats)", on)
    draw_scatter(sheet, across, up, sites, hover, named=named, log=log)
    sheet.key("╱", MUTED, "equal damage: parts on or below this line matter to any text, not to the task")
    return sheet.figure()


def pictures(result: Result) -> tuple[Picture, ...]:
    """All pictures of an ablation."""
    made = [
        Picture(
            "map",
            "Negative: the model does worse without the part. Other parts may take over (self-repair), so a small number "
            "does not say that a part is unused.",
            partial(draw, result),
        )
    ]
    if len(result.tables.get("off_task", ())):
        made.append(
            Picture(
                "on and off the task",
                "The first MLP matters on every input: only damage above the line belongs to the task.",
                partial(off_task, result),
                call("ablation", "off_task"),
            )
        )
    made += [
        Picture(
            f"map under {m}",
            "The same under another metric.",
            partial(draw, result, m),
            call("ablation", "draw", metric=m),
            secondary=True,
        )
        for m in other_metrics(result)
    ]
    return tuple(made)
