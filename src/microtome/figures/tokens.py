"""Pictures of a token attribution: the tokens of one prompt, and what removing them in their order does."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ResultError
from .colours import BAND, INK, MUTED, series
from .panels import Picture
from .rows import Row, draw_bars, draw_row_key
from .sheet import Sheet, axis
from .snippet import call
from .tables import need
from .text import inert, number, unit, visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ..results.result import Result

MOST, HEIGHT = 28, 220
WAYS = {"gradient_x_input": "gradient × input", "integrated_gradients": "integrated gradients", "occlusion": "occlusion"}  # fmt: skip


def draw(result: Result) -> go.Figure:
    """The metric as tokens are removed in the order of each way, on the band of random orders; dotted: least first.

    Raises ResultError for a result without tables["deletion"].
    """
    import plotly.graph_objects as go

    table = need(result, "deletion")
    sheet = Sheet(result, "Removing tokens in the order of their attribution")
    names = list(dict.fromkeys(map(str, table["order"])))
    everything = np.concatenate([table[c].to_numpy(float) for c in ("value", "null_low", "null_high")])
    known = [0.0, *everything[np.isfinite(everything)]]
    room = 0.06 * (max(known) - min(known) or 1.0)
    y = axis(f"change, {unit(_metric(result))}", span=(min(known) - room, max(known) + room))
    panel = sheet.panel(HEIGHT, axis("share of tokens removed", span=(-0.02, 1.04)), y)
    sheet.line(panel, y=0, colour=MUTED)
    own = table[table["order"].astype(str) == "random"]
    if len(own) and np.isfinite(own["null_low"].to_numpy(float)).all():
        xs, low, high = (own[c].to_numpy(float) for c in ("share", "null_low", "null_high"))
        ring = {"mode": "lines", "fill": "toself", "fillcolor": BAND, "line": {"width": 1, "color": BAND}, "hoverinfo": "skip"}  # fmt: skip
        sheet.add(panel, go.Scatter(x=[0, *xs, *xs[::-1]], y=[0, *high, *low[::-1]], **ring))
        sheet.key("■", BAND, "random orders: the middle 95 % of their means (the null)")
    else:
        sheet.key("!", INK, "no null was drawn for these numbers")
    ways = [n for n in names if n != "random" and not n.endswith("least first")]
    for k, way in enumerate(ways):
        colour, symbol = series(k)
        for name, dash in ((way, "solid"), (f"{way}, least first", "dot")):
            part = table[table["order"].astype(str) == name]
            if not len(part):
                continue
            x, v = part["share"].to_numpy(float), part["value"].to_numpy(float)
            text = [inert(f"{_named(name)}: {number(b)} at {a:.0%}") for a, b in zip(x, v, strict=True)]
            sheet.add(panel, go.Scatter(x=[0, *x], y=[0, *v], mode="lines+markers", line={"color": colour, "width": 2, "dash": dash},
                                        marker={"size": 6, "color": colour, "symbol": symbol}, hoverinfo="text", hovertext=["", *text]))  # fmt: skip
        sheet.key("━", colour, f"{_named(way)}, most important first; dotted: least important first")
    return sheet.figure()


def tokens(result: Result, prompt: int | None = None) -> go.Figure:
    """Bars for every token of one prompt, a panel per way.

    prompt: its number (None: the first that is held). Raises ResultError for a result without tables["tokens"] or that prompt.
    """
    table = need(result, "tokens")
    held = sorted(set(table["prompt"].astype(int)))
    which = held[0] if prompt is None else prompt
    if which not in held:
        raise ResultError(f"prompt {which} is not among the {len(held)} attributed", why="only those have numbers",
                          instead=f"one of {held[:8]}")  # fmt: skip
    part = table[table["prompt"].astype(int) == which]
    ways = [w for w in WAYS if w in part.columns]
    sheet = Sheet(
        result,
        f"What each token of prompt {which} adds",
        call("tokens", "tokens", prompt=prompt),
    )
    every: list[Row] = []
    records: list[dict[Any, Any]] = list(part.head(MOST).to_dict("records"))
    for way in ways:
        rows = [Row(f"{int(r['position'])} {visible(r['token'], most=16)}", float(r[way])) for r in records]
        every += rows
        draw_bars(sheet, rows, f"{unit(_metric(result))}", heading=_named(way), height=15)
    draw_row_key(sheet, every, "")
    if len(part) > MOST:
        sheet.key("…", INK, f"{len(part) - MOST} later tokens are in the data, not in this picture")
    return sheet.figure()


def _named(name: str) -> str:
    way, _, rest = name.partition(", ")
    return WAYS.get(way, visible(way, most=40)) + (f", {rest}" if rest else "")


def _metric(result: Result) -> str:
    return "logit_diff" if result.effects is None else str(result.effects.coords["metric"][0])


def pictures(result: Result) -> tuple[Picture, ...]:
    """All pictures of a token attribution."""
    made = [
        Picture(
            "deletion",
            "An attribution means something where its solid line falls below the grey band and its dotted one stays above.",
            partial(draw, result),
        )
    ]
    if "tokens" in result.tables:
        made.append(
            Picture(
                "tokens",
                "One prompt, token by token; the picture before this one says whether to believe it.",
                partial(tokens, result),
                call("tokens", "tokens"),
            )
        )
    return tuple(made)
