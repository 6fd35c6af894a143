"""Pictures of the evaluation of a circuit: beside its nulls, by size, prompt by prompt, and part by part."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from . import circuit
from .colours import GLYPHS, INK, MUTED, SERIES, series
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

FAMILIES = {
    "of its shape": "random circuits of its shape",
    "of the strongest": "random circuits of the strongest parts",
    "shuffled labels": "circuits found on shuffled labels",
}
MEASURED = ("faithfulness", "faithfulness, held out", "faithfulness of the complement")
SHORT = {
    "faithfulness": "circuit",
    "faithfulness, held out": "held out",
    "faithfulness of the complement": "without it",
}
HEIGHT = 230


def failures(result: Result) -> str:
    """Which tests the circuit failed, in words for a title; "" where it failed none."""
    failed = [c.name.replace("_", " ") for c in result.controls if c.passed is False]
    return f": fails {', '.join(failed)}" if failed else ""


def draw(result: Result) -> go.Figure:
    """Faithfulness of the circuit, on held-out prompts and of what is left without it, beside every null circuit.

    Raises ResultError for a result without a table "measures".
    """
    import plotly.graph_objects as go

    table = need(result, "measures").set_index("quantity")
    shown = [q for q in MEASURED if q in table.index]
    nulls = table_of(result, "nulls")
    families = [] if nulls is None else [f for f in FAMILIES if (nulls["family"] == f).any()]
    values = [] if nulls is None else nulls["value"].to_numpy(float).tolist()
    values += table.loc[shown, ["value", "low", "high"]].to_numpy(float).reshape(-1).tolist()
    known = [v for v in (0.0, 1.0, *values) if np.isfinite(v)]
    room = 0.06 * (max(known) - min(known))
    labels = [SHORT[q] for q in shown] + [f.replace("of the ", "") for f in families]
    sheet = Sheet(result, f"{_name(result)}{failures(result)}")
    x = axis("faithfulness", span=(min(known) - room, max(known) + room))
    y = axis(
        span=(len(labels) - 0.5, -0.5),
        grid=False,
        ticks=(list(range(len(labels))), [inert(v) for v in labels]),
    )
    panel = sheet.panel(34 * max(2, len(labels)), x, y)
    for level in (0, 1):
        sheet.line(panel, x=level, colour=MUTED, dash="dot")
    for k, family in enumerate(families):
        assert nulls is not None
        drawn = nulls.loc[nulls["family"] == family, "value"].to_numpy(float)
        colour, symbol = series(k + 1)
        place = len(shown) + k + 0.3 * np.cos(2.4 * np.arange(len(drawn)))
        hover = [inert(f"{FAMILIES[family]}: {number(float(v))}") for v in drawn]
        sheet.add(panel, go.Scatter(x=drawn, y=place, mode="markers", hoverinfo="text", hovertext=hover, marker={"size": 5, "color": colour, "symbol": symbol, "opacity": 0.6}))  # fmt: skip
        sheet.key(GLYPHS[k + 1], colour, f"{FAMILIES[family]}: {number(float(drawn.min()))} to {number(float(drawn.max()))} ({len(drawn)} drawn)")  # fmt: skip
    _measured(sheet, panel, table.loc[shown])
    if not families:
        sheet.key("…", MUTED, "no null was drawn")
    _second(sheet, result)
    return sheet.figure()


def _measured(sheet: Sheet, panel: Panel, table: pd.DataFrame) -> None:
    import plotly.graph_objects as go

    x, low, high = (table[c].to_numpy(float) for c in ("value", "low", "high"))
    bars = {"type": "data", "symmetric": False, "array": np.nan_to_num(high - x), "arrayminus": np.nan_to_num(x - low), "color": SERIES[0], "thickness": 1.5, "width": 4}  # fmt: skip
    hover = [
        inert(f"{q}: {number(a)} {interval(b, c)}")
        for q, a, b, c in zip(table.index, x, low, high, strict=True)
    ]
    sheet.add(panel, go.Scatter(x=x, y=list(range(len(x))), mode="markers", error_x=bars, hoverinfo="text", hovertext=hover, marker={"size": 9, "color": SERIES[0]}))  # fmt: skip
    sheet.key(
        "●", SERIES[0], "with interval over clusters; 1: as the whole model, 0: as with everything left out"
    )


def _second(sheet: Sheet, result: Result) -> None:
    table = table_of(result, "second")
    if table is None:
        return
    best = table.iloc[int((1 - (1 - table["value"]).abs()).to_numpy().argmax())]
    sheet.key("!", INK, f"best circuit without any part of it: {number(float(best['value']))} with {int(best['edges']):,} edges")  # fmt: skip


def _name(result: Result) -> str:
    if result.effects is None:
        return "A circuit tested"
    name = str(result.effects.coords["site"][0])
    return name[:1].upper() + name[1:]


def sizes(result: Result) -> go.Figure:
    """Faithfulness of the k strongest, by signed score (CPR) and by absolute score (CMD). Raises ResultError without "sizes"."""
    import plotly.graph_objects as go

    table, about = need(result, "sizes"), _quantities(result)
    known = np.concatenate([[0.0, 1.0], table["value"].to_numpy(float)])
    room = 0.06 * float(np.ptp(known))
    sheet = Sheet(result, "Circuits of ten sizes", call("circuit_tests", "sizes"))
    x = axis("share of the graph's edges", span=(-3.1, 0.1), log=True)
    panel = sheet.panel(HEIGHT, x, axis("faithfulness", span=(float(known.min()) - room, float(known.max()) + room)))  # fmt: skip
    for level in (0, 1):
        sheet.line(panel, y=level, colour=MUTED, dash="dot")
    for k, (ranking, name) in enumerate((("signed", "CPR"), ("absolute", "CMD"))):
        part = table[table["ranking"] == ranking]
        colour, symbol = series(k)
        hover = [
            inert(f"{ranking}, {f:g} of the edges: {number(v)}")
            for f, v in zip(part["fraction"], part["value"], strict=True)
        ]
        sheet.add(panel, go.Scatter(x=part["fraction"], y=part["value"], mode="lines+markers", hoverinfo="text", hovertext=hover,
                                    line={"color": colour, "width": 2, "dash": "solid" if k == 0 else "dot"}, marker={"size": 6, "color": colour, "symbol": symbol}))  # fmt: skip
        said = f"{name} {number(about.get(name, NAN))}, with log k {number(about.get(f'{name}, log k', NAN))}"
        sheet.key(GLYPHS[k], colour, f"ranked by {ranking} score: {said}")
    sheet.key(
        "…", MUTED, "no null was drawn for these sizes; a perfect CPR is .999, with log k 1; a perfect CMD 0"
    )
    return sheet.figure()


def _quantities(result: Result) -> dict[str, float]:
    table = table_of(result, "measures")
    return {} if table is None else dict(zip(table["quantity"], table["value"].astype(float), strict=True))


def prompts(result: Result) -> go.Figure:
    """Each prompt: the whole model's metric against the circuit's. Raises ResultError without a table "prompts"."""
    import plotly.graph_objects as go

    table = need(result, "prompts")
    full, own = table["whole model"].to_numpy(float), table["circuit"].to_numpy(float)
    low, high = float(min(full.min(), own.min())), float(max(full.max(), own.max()))
    room = 0.06 * ((high - low) or 1.0)
    span = (low - room, high + room)
    metric = _metric(result)
    sheet = Sheet(result, "The circuit, prompt by prompt", call("circuit_tests", "prompts"))
    panel = sheet.panel(HEIGHT, axis(f"whole model: {metric}", span=span), axis("circuit", span=span))
    sheet.add(panel, go.Scatter(x=list(span), y=list(span), mode="lines", hoverinfo="skip", line={"color": MUTED, "width": 1, "dash": "dot"}))  # fmt: skip
    hover = [
        inert(f"prompt {p}: {number(a)} in the whole model, {number(b)} in the circuit")
        for p, a, b in zip(table["prompt"], full, own, strict=True)
    ]
    sheet.add(panel, go.Scatter(x=full, y=own, mode="markers", hoverinfo="text", hovertext=hover, marker={"size": 6, "color": SERIES[0], "opacity": 0.7}))  # fmt: skip
    gap = np.abs(own - full)
    worst = int(gap.argmax())
    sheet.key("●", SERIES[0], f"{len(table)} prompts; on the dotted line circuit and model agree")
    sheet.key("!", INK, f"worst: prompt {table['prompt'].iloc[worst]}, {number(float(own[worst] - full[worst]), sign=True)}")  # fmt: skip
    sheet.key("…", MUTED, "no null was drawn for single prompts")
    return sheet.figure()


def _metric(result: Result) -> str:
    table = table_of(result, "about")
    found = {} if table is None else dict(zip(table["name"], table["value"], strict=True))
    return unit(str(found.get("metric", "metric")))


def units(result: Result, most: int = 24) -> go.Figure:
    """What leaving out single parts changes; pale: no more than parts added for no reason. Raises ResultError without "units"."""
    table = need(result, "units").sort_values("change", ascending=False, kind="stable")
    rows = [
        Row(visible(n, most=26), float(c), clear=None if p != p else bool(p <= 0.05), hover=f"{visible(n, most=40)}: {number(float(c))}, p = {number(float(p))}")
        for n, c, p in zip(table["unit"], table["change"], table["p"], strict=True)
    ][:most]  # fmt: skip
    sheet = Sheet(result, "What single parts do in the circuit", call("circuit_tests", "units", most=None if most == 24 else most))  # fmt: skip
    draw_bars(
        sheet,
        rows,
        "mean |change| without it, share of the effect",
        heading=f"{len(rows)} of {len(table)} tested",
    )
    weak = int((table["p"] > 0.05).sum())
    if table["p"].isna().all():
        sheet.key("…", MUTED, "no null was drawn")
    else:
        sheet.key("■", SERIES[0], f"pale: no more than parts on random paths added to the circuit ({weak} of {len(table)})")  # fmt: skip
    return sheet.figure()


def _has(result: Result, name: str) -> bool:
    table = result.tables.get(name)
    return table is not None and not table.empty


def pictures(result: Result) -> tuple[Picture, ...]:
    """All pictures of an evaluation."""
    made = [
        Picture(
            "tests",
            "A circuit counts for something where no null circuit comes as near to 1.",
            partial(draw, result),
        )
    ]
    if _has(result, "sizes"):
        caption = "How much the strongest parts carry, few or many. The areas under these lines are the published scores."
        made.append(Picture("sizes", caption, partial(sizes, result), call("circuit_tests", "sizes")))
    if _has(result, "prompts"):
        caption = "A mean hides prompts on which the circuit does something else."
        made.append(Picture("prompts", caption, partial(prompts, result), call("circuit_tests", "prompts")))
    if _has(result, "units"):
        caption = "A part whose removal changes nothing is not needed, or something stands in for it."
        made.append(Picture("parts", caption, partial(units, result), call("circuit_tests", "units")))
    edges = result.tables.get("edges")
    if edges is not None and (
        "kept" not in edges or bool((edges["kept"] & edges["edge"].str.contains("->")).any())
    ):
        caption = (
            "The circuit's edges, from the embedding below to the output above. Only the strongest are drawn."
        )
        made.append(Picture("the circuit", caption, partial(circuit.draw, result), call("circuit", "draw"), secondary=True))  # fmt: skip
    return tuple(made)
