"""Pictures of the logit lens: what the stream would say if the model stopped after each layer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ResultError
from .cells import Cells, cells_of, describe, unique
from .colours import BAND, GLYPHS, INK, MUTED, pale, series
from .grid import Grid, Scale, draw_bar, draw_grid
from .maps import other_metrics
from .panels import Picture
from .sheet import Sheet, axis
from .snippet import call
from .tables import need
from .text import inert, number, unit, visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ..results.result import Result

MOST = 5


def draw(result: Result, metric: str | None = None) -> go.Figure:
    """The metric along the layers, a line per position; the null band of all of them in grey.

    With more than five positions: the last one. Raises ResultError without effects or this metric.
    """
    cells = cells_of(result, metric)
    positions: list[Any] = list(cells.positions) or [None]
    hidden = len(positions) - 1 if len(positions) > MOST else 0
    positions = positions[-1:] if hidden else positions
    frame = cells.frame[cells.frame["position"].isin(positions)] if cells.positions else cells.frame
    sites = unique(frame["site"].tolist())
    layer = dict(zip(frame["site"], frame["layer"], strict=True))
    names = [f"{int(layer[s])}" if np.isfinite(layer[s]) else visible(s, most=14) for s in sites]
    shown = list(range(0, len(sites), max(1, -(-len(sites) // 12))))
    known = np.concatenate(
        [frame[c].to_numpy(float) for c in ("value", "low", "high", "null_low", "null_high")] + [np.zeros(1)]
    )
    known = known[np.isfinite(known)]
    room = 0.06 * (float(np.ptp(known)) or 1.0)
    sheet = Sheet(
        result,
        "What the stream says, layer by layer",
        "" if metric is None else call("lens", "draw", metric=metric),
    )
    x = axis(
        f"layer ({visible(frame['point'].iloc[0])})",
        span=(-0.5, len(sites) - 0.5),
        grid=False,
        ticks=(shown, [inert(names[i]) for i in shown]),
    )
    panel = sheet.panel(
        240, x, axis(unit(cells.metric), span=(float(known.min()) - room, float(known.max()) + room))
    )
    _null(sheet, panel, frame, sites)
    sheet.line(panel, y=0, colour=MUTED, dash="dot")
    for k, position in enumerate(positions):
        part = frame if position is None else frame[frame["position"] == position]
        _line(sheet, panel, cells, part.set_index("site").reindex(sites).reset_index(), k)
        sheet.key(
            GLYPHS[k % len(GLYPHS)],
            series(k)[0],
            f"at {cells.position(position)}" if position is not None else "mean over prompts, with interval",
        )
    if cells.null is None:
        sheet.key("!", INK, "no null was drawn for these numbers")
    if hidden:
        sheet.key("…", MUTED, f"{hidden} other positions are in the data, not in this picture")
    return sheet.figure()


def _null(sheet: Sheet, panel: Any, frame: Any, sites: list[str]) -> None:
    import plotly.graph_objects as go

    low = frame.groupby("site")["null_low"].min().reindex(sites).to_numpy(float)
    high = frame.groupby("site")["null_high"].max().reindex(sites).to_numpy(float)
    ok = np.isfinite(low) & np.isfinite(high)
    if not ok.any():
        return
    xs = np.arange(len(sites))[ok]
    sheet.add(
        panel,
        go.Scatter(
            x=[*xs, *xs[::-1]],
            y=[*high[ok], *low[ok][::-1]],
            mode="lines",
            fill="toself",
            fillcolor=BAND,
            line={"width": 0, "color": BAND},
            hoverinfo="skip",
        ),
    )
    sheet.key("■", BAND, "null band")


def _line(sheet: Sheet, panel: Any, cells: Cells, part: Any, k: int) -> None:
    import plotly.graph_objects as go

    colour, symbol = series(k)
    low, high, value = (part[c].to_numpy(float) for c in ("low", "high", "value"))
    ok = np.isfinite(low) & np.isfinite(high)
    xs = np.arange(len(part))
    if ok.any():
        sheet.add(
            panel,
            go.Scatter(
                x=[*xs[ok], *xs[ok][::-1]],
                y=[*high[ok], *low[ok][::-1]],
                mode="lines",
                fill="toself",
                fillcolor=pale(colour),
                line={"width": 0, "color": colour},
                hoverinfo="skip",
            ),
        )
    rows = part.to_dict("records")
    hover = [
        "<br>".join(map(inert, describe(row, cells).split("\n"))) if np.isfinite(row["value"]) else ""
        for row in rows
    ]
    sheet.add(
        panel,
        go.Scatter(
            x=xs,
            y=value,
            mode="lines+markers",
            line={"color": colour, "width": 2},
            hoverinfo="text",
            hovertext=hover,
            marker={"size": 6, "color": colour, "symbol": symbol},
        ),
    )


def top_tokens(result: Result, prompt: int | str | None = None, most: int = 5) -> go.Figure:
    """The most likely tokens of one prompt at each layer (tables["top"]); colour is probability.

    prompt: its label, default the first in the table. Raises ResultError where there is no such table or prompt.
    """
    table = need(result, "top")
    chosen = table["prompt"].iloc[0] if prompt is None else prompt
    part = table[table["prompt"].astype(str) == str(chosen)]
    if part.empty:
        raise ResultError(
            f"no prompt {prompt!r}",
            why=f"prompts are {unique(table['prompt'].tolist())[:8]}",
            instead="one of them",
        )
    ranks = sorted(unique(part["rank"].tolist()))[:most]
    sites = unique(part["site"].tolist())
    values, hover = np.full((len(sites), len(ranks)), np.nan), [[""] * len(ranks) for _ in sites]
    words = [[""] * len(ranks) for _ in sites]
    for row in part[part["rank"].isin(ranks)].to_dict("records"):
        r, c = sites.index(row["site"]), ranks.index(row["rank"])
        values[r, c], words[r][c] = float(row["probability"]), visible(row["token"], most=9)
        hover[r][c] = (
            f"{visible(row['site'])}, rank {row['rank']}\n{visible(row['token'], most=60)}\nprobability {number(values[r, c])}"
        )
    none = np.zeros(values.shape, bool)
    heading, found, title = _rows(sites)
    grid = Grid(
        heading, found, [str(r) for r in ranks], title, "rank", values, none, none, hover, None, words
    )
    scale = Scale(1.0, "probability", signed=False)
    sheet = Sheet(
        result,
        f"Most likely next tokens of prompt {visible(chosen)}",
        call("lens", "top_tokens", prompt=prompt),
    )
    draw_bar(sheet, scale)
    draw_grid(sheet, grid, scale, cell=18)
    return sheet.figure()


def _rows(sites: Sequence[str]) -> tuple[str, list[str], str]:
    """Heading, row labels and their title: the number of the layer alone where all rows are one point, so that the
    tokens have room on a phone.
    """
    layers = [re.fullmatch(r"L(\d+)\.(\w+)", str(site)) for site in sites]
    points = {found[2] for found in layers if found}
    if len(points) == 1 and all(layers):
        return points.pop(), [found[1] for found in layers if found], "layer"
    return "", [visible(s, most=16) for s in sites], ""


def pictures(result: Result) -> tuple[Picture, ...]:
    """All pictures of a logit lens."""
    made = [
        Picture(
            "lines",
            "Early layers do not speak the language of the output, so a low line there means little.",
            partial(draw, result),
        )
    ]
    table = result.tables.get("top")
    if table is not None and "prompt" in table.columns:
        for prompt in unique(table["prompt"].tolist())[:2]:
            label = int(prompt) if isinstance(prompt, (int, np.integer)) else str(prompt)
            made.append(
                Picture(
                    f"tokens of prompt {visible(label)}",
                    "The tokens behind the lines, for one prompt.",
                    partial(top_tokens, result, label),
                    call("lens", "top_tokens", prompt=label),
                    secondary=True,
                )
            )
    made += [
        Picture(
            f"lines of {m}",
            "The same under another metric.",
            partial(draw, result, m),
            call("lens", "draw", metric=m),
            secondary=True,
        )
        for m in other_metrics(result)
    ]
    return tuple(made)
