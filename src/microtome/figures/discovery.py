"""Pictures of circuit discovery: the edges with the largest scores, how faithful smaller circuits are, ACDC's decisions."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from . import circuit
from .colours import GLYPHS, INK, MUTED, SERIES
from .panels import Picture
from .rows import NAN, Row, draw_bars
from .sheet import Panel, Sheet, axis
from .snippet import call
from .tables import need, table_of
from .text import inert, interval, number, unit, visible

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from ..results.result import Result

HEIGHT = 230
_SCORES = {"acdc": "rise of the loss", "edge-pruning": "log alpha of the gate"}


def draw(result: Result, most: int = 24) -> go.Figure:
    """The edges with the largest |score| as bars with intervals; pale: not in the circuit.

    Raises ResultError for a result without a table "edges".
    """
    table = need(result, "edges")
    scores = table["score"].to_numpy(float)
    order = np.argsort(-np.abs(np.nan_to_num(scores)), kind="stable")[:most]
    rows = [_row(table, int(i)) for i in order]
    sheet = Sheet(result, f"The strongest of {len(table):,} edges", "" if most == 24 else call("discovery", "draw", most=most))  # fmt: skip
    about = _about(result)
    metric = unit(about.get("metric", ""))
    name = _SCORES.get(about.get("how", ""), "estimated loss when left out")
    heading = f"{len(rows)} of {len(table):,}; {int(table['kept'].sum()):,} are in the circuit"
    draw_bars(sheet, rows, f"{name}, {metric}" if about.get("how") != "edge-pruning" else name, heading=heading)  # fmt: skip
    sheet.key("▬", SERIES[0], "full colour: in the circuit; pale: left out")
    sheet.key("!", INK, _caution(about.get("how", "")))
    sheet.key("…", MUTED, "no null was drawn for single edges; the circuit's is beside its faithfulness")
    return sheet.figure()


def _row(table: pd.DataFrame, i: int) -> Row:
    name, score, low, high, kept = (table[c].iloc[i] for c in ("edge", "score", "low", "high", "kept"))
    words = f"{visible(name, most=40)}: {number(float(score))} {interval(float(low), float(high))}".rstrip()
    words += ", in the circuit" if kept else ", left out"
    return Row(
        visible(name, most=26),
        float(score),
        float(low),
        float(high),
        NAN,
        NAN,
        clear=bool(kept),
        hover=words,
    )


def _caution(how: str) -> str:
    if how == "acdc":
        return "a rise is measured in the circuit of its turn, not in the whole model"
    if how == "edge-pruning":
        return "gates are learnt together: one alone says nothing"
    if how == "exact":
        return "each edge left out alone: edges that stand in for each other do not show"
    return (
        "estimates by gradients, not tests: the circuit's own controls say whether it carries the behaviour"
    )


def _about(result: Result) -> dict[str, str]:
    table = table_of(result, "about")
    if table is None:
        return {}
    return dict(zip(map(str, table["name"]), map(str, table["value"]), strict=True))


def faithfulness(result: Result) -> go.Figure:
    """Faithfulness of the measured circuits by their edges on a path. Raises ResultError without a table "curve"."""
    import plotly.graph_objects as go

    table = need(result, "curve")
    if table["edges"].isna().any():
        table["edges"] = table["k"]
    found = table.iloc[-1]
    nulls = table_of(result, "nulls")
    drawn = np.zeros(0) if nulls is None else nulls["value"].to_numpy(float)
    ordered = table[table["edges"] > 0].sort_values("edges", kind="stable")
    sheet = Sheet(result, "Faithfulness by size", call("discovery", "faithfulness"))
    x, y = ordered["edges"].to_numpy(float), ordered["value"].to_numpy(float)
    low, high = ordered["low"].to_numpy(float), ordered["high"].to_numpy(float)
    known = np.concatenate([[0.0, 1.0], y, low[np.isfinite(low)], high[np.isfinite(high)], drawn])
    room = 0.06 * float(np.ptp(known))
    span = (np.log10(x.min()) - 0.1, np.log10(x.max()) + 0.1) if len(x) else (0.0, 1.0)
    panel = sheet.panel(HEIGHT, axis("edges on a path", span=span, log=True), axis("faithfulness", span=(float(known.min()) - room, float(known.max()) + room)))  # fmt: skip
    for level in (0, 1):
        sheet.line(panel, y=level, colour=MUTED, dash="dot")
    hover = [
        inert(f"{int(a):,} edges: {number(b)} {interval(lo, hi)}")
        for a, b, lo, hi in zip(x, y, low, high, strict=True)
    ]
    bars = {"type": "data", "symmetric": False, "array": np.nan_to_num(high - y), "arrayminus": np.nan_to_num(y - low), "color": SERIES[0], "thickness": 1.2, "width": 3}  # fmt: skip
    sheet.add(panel, go.Scatter(x=x, y=y, mode="lines+markers", error_y=bars, hoverinfo="text", hovertext=hover,
                                line={"color": SERIES[0], "width": 2}, marker={"size": 6, "color": SERIES[0]}))  # fmt: skip
    sheet.key(
        "━",
        SERIES[0],
        "on the prompts that chose it, with interval; 1: the whole model, 0: the empty circuit",
    )
    _nulls(sheet, panel, float(found["edges"]), drawn)
    sheet.key("!", INK, f"the circuit found: {int(found['edges']):,} edges, {number(float(found['value']))} {interval(float(found['low']), float(found['high']))}".rstrip())  # fmt: skip
    return sheet.figure()


def _nulls(sheet: Sheet, panel: Panel, size: float, values: np.ndarray) -> None:
    """Random circuits of the found one's shape, at its size."""
    import plotly.graph_objects as go

    if not values.size:
        sheet.key("…", MUTED, "no null was drawn")
        return
    hover = [inert(f"a random circuit of this shape: {number(float(v))}") for v in values]
    sheet.add(panel, go.Scatter(x=np.full(values.size, max(size, 1.0)), y=values, mode="markers", hoverinfo="text", hovertext=hover,
                                marker={"size": 5, "color": SERIES[1], "symbol": "square", "opacity": 0.6}))  # fmt: skip
    sheet.key(GLYPHS[1], SERIES[1], f"random circuits with as many edges of each kind and depth: {number(float(values.min()))} to {number(float(values.max()))} ({values.size} drawn)")  # fmt: skip


def decisions(result: Result) -> go.Figure:
    """The loss along ACDC's walk, with what was kept. Raises ResultError without a table "decisions"."""
    import plotly.graph_objects as go

    table = need(result, "decisions")
    sheet = Sheet(result, "The loss along the walk", call("discovery", "decisions"))
    x, y = table["order"].to_numpy(float), table["loss"].to_numpy(float)
    kept = table["kept"].to_numpy(bool)
    top = float(np.nanmax(y)) or 1.0
    panel = sheet.panel(HEIGHT, axis("decision, from the logits to the embedding", span=(-1.0, len(x))), axis(f"loss, {unit(_about(result).get('metric', ''))}", span=(min(0.0, float(np.nanmin(y))) - 0.04 * top, 1.06 * top)))  # fmt: skip
    turns = np.flatnonzero(np.concatenate([[True], np.diff(y) != 0, [True]])[: len(y)])
    turns = np.unique(np.concatenate([turns, [len(y) - 1]]))
    sheet.add(panel, go.Scatter(x=x[turns], y=y[turns], mode="lines", hoverinfo="skip", line={"color": SERIES[0], "width": 2, "shape": "hv"}))  # fmt: skip
    hover = [
        inert(f"{visible(table['edge'].iloc[i], most=40)}: rise {number(float(table['rise'].iloc[i]))}, kept")
        for i in np.flatnonzero(kept)
    ]
    sheet.add(panel, go.Scatter(x=x[kept], y=y[kept], mode="markers", hoverinfo="text", hovertext=hover, marker={"size": 6, "color": SERIES[1], "symbol": "square"}))  # fmt: skip
    tested = int((table["how"] != "dead").sum())
    sheet.key(
        "━",
        SERIES[0],
        f"loss of the present circuit over {len(x):,} decisions, {tested:,} of them with a run",
    )
    sheet.key("■", SERIES[1], f"kept: {int(kept.sum()):,}")
    return sheet.figure()


def pictures(result: Result) -> tuple[Picture, ...]:
    """All pictures of a discovery."""
    made = [
        Picture(
            "edges",
            "Scores rank edges; only the circuit as a whole is held against its nulls.",
            partial(draw, result),
        )
    ]
    kept = need(result, "edges")
    if bool((kept["kept"].to_numpy(bool) & kept["edge"].str.contains("->")).any()):
        caption = (
            "What was kept, from the embedding below to the output above. Only the strongest edges are drawn."
        )
        made.insert(
            0, Picture("the circuit", caption, partial(circuit.draw, result), call("circuit", "draw"))
        )
    curve = table_of(result, "curve")
    if curve is not None:
        caption = "How much of the behaviour circuits of several sizes carry, on the prompts that chose them."
        made.append(Picture("faithfulness by size", caption, partial(faithfulness, result), call("discovery", "faithfulness")))  # fmt: skip
    if table_of(result, "decisions") is not None:
        made.append(Picture("decisions", "Every edge that stays made the loss rise by the threshold or more when it was its turn.",
                            partial(decisions, result), call("discovery", "decisions"), secondary=True))  # fmt: skip
    return tuple(made)
