"""Pictures of path patching: each sender's effect along the paths, what was frozen said in the title, and what adds up."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .cells import metric_of
from .maps import draw_map, draw_strongest, other_metrics
from .panels import Picture
from .patching import donors
from .rows import Row, draw_points
from .sheet import Sheet
from .snippet import call
from .tables import need
from .text import unit, visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ..results.result import Result

_FROZEN = {"norms": "norm divisors", "patterns": "patterns of mediating heads", "mlps": "MLPs"}
_MODE = {"denoise": "clean into corrupt", "noise": "corrupt into clean"}


def draw(result: Result, metric: str | None = None) -> go.Figure:
    """The map: path-patched minus base, per sender. Raises ResultError without effects or this metric."""
    return draw_map(result, title_of(result), "effect along the paths", metric=metric,
                    call="" if metric is None else call("paths", "draw", metric=metric))  # fmt: skip


def strongest(result: Result, metric: str | None = None, most: int = 16) -> go.Figure:
    """The senders with the largest effects as bars with intervals and null bands."""
    return draw_strongest(result, f"The largest senders. {title_of(result)}", "effect along the paths", metric=metric, most=most,
                          call=call("paths", "strongest", metric=metric))  # fmt: skip


def sums(result: Result) -> go.Figure:
    """Senders one by one, all writers together and what they miss, beside donor minus base (tables["sums"]).

    Raises ResultError where there is no such table.
    """
    table = need(result, "sums")
    rows = [(visible(r["quantity"], most=26, prose=True), [Row("mean", float(r["value"]), float(r["low"]), float(r["high"]))])
            for r in table.to_dict("records")]  # fmt: skip
    sheet = Sheet(result, "What the senders add up to", call("paths", "sums"))
    draw_points(sheet, rows, f"effect, {unit(metric_of(result))}")
    return sheet.figure()


def title_of(result: Result) -> str:
    """What was asked in words: senders, receivers, mediators, what is frozen on the path and behind it, direction."""
    asked: dict[str, Any] = {} if result.query is None else dict(result.query.parameters)
    receiver = _listed(asked.get("receiver", "the receiver"))
    through = asked.get("through", ())
    how = {"all": "through all heads and MLPs between", "mlps": "through all MLPs between"}.get(
        through if isinstance(through, str) else ""
    )
    how = how or (f"through {_listed(through)}" if len(through) else "directly")
    frozen = [_FROZEN.get(str(part), str(part)) for part in asked.get("freeze", ())]
    said = [f"frozen on the path: {', '.join(frozen)}" if frozen else "norms and patterns on the path free"]
    if receiver != "logits":
        behind = {"free": "all behind it free", "frozen": "all behind it frozen"}
        said.append(behind.get(str(asked.get("downstream", "")), ""))
    said.append(_MODE.get(str(asked.get("mode", "")), ""))
    sender = _listed(asked.get("sender", "senders"))
    return f"{sender} to {receiver} {how} ({'; '.join(x for x in said if x)})"


def _listed(names: str | Sequence[str], most: int = 4) -> str:
    many = [names] if isinstance(names, str) else list(names)
    shown = ", ".join(visible(n, most=24) for n in many[:most])
    return shown + (f" and {len(many) - most} more" if len(many) > most else "")


def pictures(result: Result) -> tuple[Picture, ...]:
    """All pictures of a path-patching result."""
    made = [Picture("map", "Each cell is one sender, patched alone: only what travels to the receiver along the named paths counts. "
                    "A dot says that the sender stands out from its null, colour alone does not.", partial(draw, result))]  # fmt: skip
    if "cells" in result.tables and np.isfinite(result.frame()["value"].to_numpy(float)).any():
        made.append(Picture("largest senders", "The same numbers with their intervals, each on its null band.",
                            partial(strongest, result), call("paths", "strongest")))  # fmt: skip
    if len(result.tables.get("sums", ())):
        made.append(Picture("sums", "Senders one by one against all writers together: a gap says that effects are no shares of a whole. "
                            "Donor minus base holds all other paths too and need not be reached.", partial(sums, result), call("paths", "sums")))  # fmt: skip
    if len(result.tables.get("donors", ())):
        made.append(Picture("other donors", "If only the task's own donor moves the answer, it is the content that matters and not that "
                            "something was replaced.", partial(donors, result), call("patching", "donors")))  # fmt: skip
    for metric in other_metrics(result):
        made.append(Picture(f"map under {metric}", "The same paths under another metric (no test was made on it).",
                            partial(draw, result, metric), call("paths", "draw", metric=metric), secondary=True))  # fmt: skip
    return tuple(made)
