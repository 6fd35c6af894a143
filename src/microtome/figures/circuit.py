"""The drawing of a circuit: layers upwards, spans of the prompt to the right, one line per edge.

A line's width and colour are the edge's effect, its dashes say what it feeds (queries, keys, values, an MLP or the output),
and pointing at its middle gives the number and interval. Only the strongest edges are drawn; the picture says how many of
how many. Keys and values of a group of heads are a node of their own, joined to the heads that use them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ResultError
from .colours import INK, MUTED, SERIES
from .sheet import Panel, Sheet, axis
from .snippet import call
from .tables import need, table_of
from .text import inert, interval, number, unit, visible

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from ..results.result import Result

MOST = 90
ROW = 27
DASHES = {"q": "solid", "k": "dash", "v": "dot", "ln2_out": "solid", "logits": "solid"}
WIDTHS = (1.0, 2.0, 3.5, 5.5)
_NODE = re.compile(r"^L(?P<layer>\d+)(?:(?P<unit>H|KV)(?P<index>\d+))?\.(?P<point>\w+)$")


@dataclass(frozen=True)
class _Node:
    """A place in the drawing. rank: (layer, 0 for keys and values, 1 for heads, 2 for the MLP)."""

    name: str
    rank: tuple[int, int]
    span: str


@dataclass
class _Plan:
    """Where everything goes. at: node -> (x, y); rows: the (layer, sublayer) of every y; group: query heads that share one
    key/value head."""

    at: dict[_Node, tuple[float, float]] = field(default_factory=dict)
    rows: list[tuple[int, int]] = field(default_factory=list)
    spans: list[str] = field(default_factory=list)
    group: int = 1


def draw(result: Result) -> go.Figure:
    """The strongest edges that a discovery kept, as a layered graph.

    Raises ResultError for a result without a table "edges", or of circuits of nodes.
    """
    table = _kept(result)
    size = table["value"].abs().to_numpy(float)
    chosen = table.iloc[np.argsort(-size, kind="stable")[:MOST]]
    about = _about(result)
    metric = about.get("metric", "")
    sheet = Sheet(result, f"The circuit: {_count(len(chosen), len(table))}", call("circuit", "draw"))
    plan = _plan(chosen, int(about.get("group", "1")), json.loads(about.get("spans", "[]")))
    panel = _panel(sheet, plan)
    _group_links(sheet, panel, plan)
    _edges(sheet, panel, plan, chosen, metric)
    _nodes(sheet, panel, plan)
    _keys(sheet, metric)
    return sheet.figure()


def _kept(result: Result) -> pd.DataFrame:
    """The edges of the circuit, with their span apart."""
    table = need(result, "edges")
    table = table[table["kept"].to_numpy(bool) & table["edge"].str.contains("->")]
    if table.empty:
        raise ResultError("there is no circuit to draw", why="no edge was kept, or the circuit is one of nodes",
                          instead="its other figures")  # fmt: skip
    parts = table["edge"].str.partition("@")
    return table.assign(edge=parts[0], span=parts[2], value=table["score"].astype(float))


def _about(result: Result) -> dict[str, str]:
    table = table_of(result, "about")
    return {} if table is None else dict(zip(map(str, table["name"]), map(str, table["value"]), strict=True))


def _count(drawn: int, total: int) -> str:
    return f"all {total:,} edges" if drawn == total else f"the strongest {drawn} of {total:,} edges"


def _parsed(name: str, reader: bool) -> tuple[str, tuple[int, int]]:
    """Label and rank of a writer or reader."""
    if name == "embed":
        return "embed", (-1, 1)
    if name == "logits":
        return "logits", (10**6, 1)
    found = _NODE.match(name)
    if found is None:
        return name, (0, 1)
    layer = int(found["layer"])
    if found["unit"] is None:
        return f"L{layer} MLP", (layer, 2)
    if reader and found["point"] in ("k", "v"):
        return (
            f"L{layer}{found['unit']}{found['index']} {'keys, values' if found['unit'] == 'H' else ''}".strip(),
            (layer, 0),
        )
    return f"L{layer}{found['unit']}{found['index']}", (layer, 1)


def _ends(row: dict[Any, Any]) -> tuple[_Node, _Node]:
    writer, _, reader = str(row["edge"]).partition("@")[0].partition("->")
    span = str(row.get("span") or "")
    return _Node(*_parsed(writer, False), span), _Node(*_parsed(reader, True), span)


def _plan(table: pd.DataFrame, group: int, spans: list[str]) -> _Plan:
    plan = _Plan(group=group)
    nodes = {node for row in table.to_dict("records") for node in _ends(row)}
    plan.rows = sorted({node.rank for node in nodes})
    place = {span: i for i, span in enumerate(spans)}
    plan.spans = sorted({node.span for node in nodes}, key=lambda span: (place.get(span, 0), span))
    for y, rank in enumerate(plan.rows):
        for x, span in enumerate(plan.spans):
            here = sorted(
                (n for n in nodes if n.rank == rank and n.span == span), key=lambda n: _natural(n.name)
            )
            for i, node in enumerate(here):
                plan.at[node] = (x + (i + 0.5 * (1 + y % 2)) / (len(here) + 0.5) - 0.5, float(y))
    return plan


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _panel(sheet: Sheet, plan: _Plan) -> Panel:
    names = [_row_name(rank) for rank in plan.rows]
    spans = [inert(visible(s, most=16, prose=True)) or "" for s in plan.spans]
    many = len(plan.spans) > 1
    x = axis("position in the prompt" if many else "", span=(-0.55, len(plan.spans) - 0.45), ticks=(list(range(len(spans))), spans), grid=False,
             labels=many, upright=len(spans) > 5)  # fmt: skip
    y = axis("layer", span=(-0.6, len(plan.rows) - 0.4), ticks=(list(range(len(names))), names))
    return sheet.panel(max(160, ROW * len(plan.rows)), x, y)


def _row_name(rank: tuple[int, int]) -> str:
    layer, part = rank
    if layer < 0:
        return "input"
    if layer >= 10**6:
        return "output"
    return f"{layer} " + ("keys", "heads", "MLP")[part]


def _edges(sheet: Sheet, panel: Panel, plan: _Plan, table: pd.DataFrame, metric: str) -> None:
    import plotly.graph_objects as go

    most = float(table["value"].abs().max()) or 1.0
    hover: dict[str, list[Any]] = {"x": [], "y": [], "text": []}
    lines: dict[tuple[str, str, float], list[list[float]]] = {}
    for row in table.to_dict("records"):
        writer, reader = _ends(row)
        (x0, y0), (x1, y1) = plan.at[writer], plan.at[reader]
        value = float(row["value"])
        kind = str(row["edge"]).partition("@")[0].rpartition("->")[2].rpartition(".")[2]
        width = WIDTHS[min(len(WIDTHS) - 1, int(len(WIDTHS) * np.sqrt(abs(value) / most)))]
        key = (SERIES[0] if value >= 0 else SERIES[1], DASHES.get(kind, "solid"), width)
        lines.setdefault(key, []).append([x0, y0, x1, y1])
        hover["x"].append((x0 + x1) / 2)
        hover["y"].append((y0 + y1) / 2)
        said = interval(float(row.get("low", np.nan)), float(row.get("high", np.nan)))
        hover["text"].append(
            inert(f"{row['edge']}{_at(row)}: {number(value, sign=True)} {said} {unit(metric)}")
        )
    for (colour, dash, width), found in sorted(lines.items(), key=lambda kv: kv[0][2]):
        xs = [v for x0, _, x1, _ in found for v in (x0, x1, None)]
        ys = [v for _, y0, _, y1 in found for v in (y0, y1, None)]
        sheet.add(
            panel,
            go.Scatter(
                x=xs,
                y=ys,
                mode="lines",
                hoverinfo="skip",
                opacity=0.75,
                line={"color": colour, "dash": dash, "width": width},
            ),
        )
    sheet.add(panel, go.Scatter(x=hover["x"], y=hover["y"], mode="markers", hoverinfo="text", hovertext=hover["text"],
                                marker={"size": 5, "color": MUTED, "opacity": 0.35}))  # fmt: skip


def _at(row: dict[Any, Any]) -> str:
    return f" at {visible(row['span'], prose=True)}" if row.get("span") else ""


def _group_links(sheet: Sheet, panel: Panel, plan: _Plan) -> None:
    """Thin lines from keys and values to the heads that read them (in a group of heads: by the name of the group)."""
    import plotly.graph_objects as go

    xs: list[float | None] = []
    ys: list[float | None] = []
    for node, (x0, y0) in plan.at.items():
        if node.rank[1] != 0:
            continue
        for other, (x1, y1) in plan.at.items():
            if other.rank == (node.rank[0], 1) and _uses(node.name, other.name, plan.group):
                xs += [x0, x1, None]
                ys += [y0, y1, None]
    if xs:
        sheet.add(
            panel,
            go.Scatter(
                x=xs,
                y=ys,
                mode="lines",
                hoverinfo="skip",
                line={"color": MUTED, "width": 1, "dash": "dot"},
                opacity=0.5,
            ),
        )


def _uses(keys: str, head: str, group: int) -> bool:
    """Whether a head reads these keys and values. Both are labels like L9KV2 and L9H6."""
    mine, its = (re.match(r"L\d+(KV|H)(\d+)", label) for label in (keys, head))
    if mine is None or its is None:
        return False
    index = int(its[2]) // group if mine[1] == "KV" else int(its[2])
    return int(mine[2]) == index


def _nodes(sheet: Sheet, panel: Panel, plan: _Plan) -> None:
    import plotly.graph_objects as go

    names = [inert(node.name) for node in plan.at]
    symbols = [{0: "diamond", 2: "square"}.get(node.rank[1], "circle") for node in plan.at]
    xs, ys = zip(*plan.at.values(), strict=True)
    sheet.add(panel, go.Scatter(x=list(xs), y=list(ys), mode="markers+text", text=names, textposition="top center", textfont={"size": 9, "color": INK},
                                hoverinfo="text", hovertext=names, marker={"size": 8, "color": INK, "symbol": symbols}))  # fmt: skip


def _keys(sheet: Sheet, metric: str) -> None:
    sheet.key("━", SERIES[0], f"the edge helps: without it {unit(metric)} falls (width: by how much)")
    sheet.key("━", SERIES[1], "the edge hurts: without it the metric rises")
    sheet.key("┄", INK, "dashes: into keys; dots: into values; unbroken: into queries, MLPs or the output")
    sheet.key("◆", INK, "keys and values, joined by thin dots to the heads of their layer; ■ MLPs; ● heads")
