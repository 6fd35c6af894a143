"""Pictures of function vectors: accuracy without demonstrations beside every null, the heads, the layers."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .colours import BAND, INK, MUTED, SERIES
from .maps import draw_map
from .panels import Picture
from .rows import Row, draw_points
from .sheet import Sheet, axis
from .snippet import call
from .tables import need, table_of
from .text import inert, number, visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ..results.result import Result

NULL_OF = {
    "function vector": "vector, shuffled labels",
    "task vector": "task, shuffled labels",
}


def draw(result: Result) -> go.Figure:
    """Accuracy on held-out pairs without a vector, with each, and behind demonstrations (tables["accuracy"]), with the range of null
    vectors (tables["nulls"]).

    Raises ResultError for a result without the first.
    """
    table = need(result, "accuracy")
    nulls = table_of(result, "nulls")
    spread: dict[str, tuple[float, float, float]] = {}
    if nulls is not None:
        for family, part in nulls.groupby("family", sort=False):
            v = part["value"].to_numpy(float)
            spread[str(family)] = (float(v.mean()), float(v.min()), float(v.max()))
    rows = []
    for r in table.to_dict("records"):
        name = str(r["what"])
        low, high = spread.get(NULL_OF.get(name, ""), (np.nan,) * 3)[1:]
        rows.append(
            (
                visible(name, most=26, prose=True),
                [Row("accuracy", float(r["value"]), float(r["low"]), float(r["high"]), low, high)],
            )
        )
    for family, (mean, low, high) in spread.items():
        rows.append(
            (visible(family, most=26, prose=True), [Row("accuracy", mean, null_low=low, null_high=high)])
        )
    sheet = Sheet(result, "What the vector does without demonstrations")
    draw_points(sheet, rows, "held-out pairs answered right (share)")
    sheet.key("●", SERIES[0], "share of held-out pairs with its exact interval; of nulls their mean")
    if spread:
        sheet.key("■", BAND, "range of null vectors")
    else:
        sheet.key("!", INK, "no null was drawn for these numbers")
    return sheet.figure()


def heads(result: Result) -> go.Figure:
    """Every head's effect when its mean output is put into prompts with shuffled labels. Raises ResultError without effects."""
    return draw_map(
        result,
        "Heads that carry the task",
        "log-probability of the answer, nats",
        call=call("functions", "heads"),
    )


def layers(result: Result) -> go.Figure:
    """Accuracy on the pairs that build, by the layer at whose end the vector is added (tables["layers"]).

    Raises ResultError without that table.
    """
    import plotly.graph_objects as go

    table = need(result, "layers").sort_values("layer")
    x, y = table["layer"].to_numpy(float), table["accuracy"].to_numpy(float)
    sheet = Sheet(result, "Where the vector is put", call("functions", "layers"))
    panel = sheet.panel(
        150,
        axis("layer", span=(float(x.min()) - 0.5, float(x.max()) + 0.5)),
        axis("share right", span=(-0.03, 1.03)),
    )
    text = [inert(f"layer {int(a)}: {number(float(b))}") for a, b in zip(x, y, strict=True)]
    sheet.add(panel, go.Scatter(x=x, y=y, mode="lines+markers", hoverinfo="text", hovertext=text, line={"color": SERIES[0], "width": 2},
                                marker={"size": 7, "color": SERIES[0]}))  # fmt: skip
    sheet.key("●", SERIES[0], "on pairs that build: the best layer is chosen here and reported on others")
    sheet.key("!", MUTED, "no null was drawn for these numbers: they choose, they do not show")
    return sheet.figure()


def pictures(result: Result) -> tuple[Picture, ...]:
    """All pictures of a function vector."""
    made: list[Any] = [
        Picture("accuracy", "A vector that carries a task answers held-out words without a demonstration; one from shuffled labels does not.", partial(draw, result))
    ]  # fmt: skip
    if result.effects is not None:
        made.append(
            Picture(
                "heads",
                "What is summed: a head far outside the null band carries the task.",
                partial(heads, result),
                call("functions", "heads"),
            )
        )
    if len(result.tables.get("layers", ())):
        made.append(
            Picture(
                "layers",
                "Where the vector works, on the pairs that choose.",
                partial(layers, result),
                call("functions", "layers"),
                secondary=True,
            )
        )
    return tuple(made)
