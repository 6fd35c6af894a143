"""Pictures of patchscopes: how likely the model says what a state should hold, by which vector it was given."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from .colours import INK
from .panels import Picture
from .rows import Row, draw_bars
from .sheet import Sheet
from .snippet import call
from .tables import need, table_of
from .text import number, visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ..results.result import Result

SAID = {
    "own": "its own state",
    "other": "other prompts' states",
    "random": "random vectors, same length",
    "none": "nothing put in",
}


def draw(result: Result) -> go.Figure:
    """Mean log p of the answers under each kind of state; with no answers, how many texts there are to read.

    Raises ResultError without both tables "states" and "generations".
    """
    sheet = Sheet(result, "What the model says of a state")
    table = table_of(result, "states")
    if table is not None:
        rows = [Row(SAID.get(str(r["state"]), visible(r["state"])), float(r["value"]), float(r["low"]), float(r["high"]),
                    hover=f"{number(float(r['value']))} nats per token of the answer") for r in table.to_dict("records")]  # fmt: skip
        draw_bars(sheet, rows, "log p of the answer, nats per token (0 is certain)")
        sheet.key("…", INK, "the last three are the null: what is said without the state")
        return sheet.figure()
    texts = need(result, "generations")
    kinds = texts["state"].astype(str).str.split(" ").str[0]
    rows = [Row(SAID.get(k, visible(k)), float((kinds == k).sum())) for k in dict.fromkeys(kinds)]
    draw_bars(sheet, rows, 'texts in the table "generations"')
    sheet.key("!", INK, "no answers were given: no null was drawn, the texts are in the data")
    return sheet.figure()


def named(result: Result) -> go.Figure:
    """The share of texts that name the state's own answer, by what was put in. Raises ResultError without a table "generations"."""
    texts = need(result, "generations")
    kinds = texts["state"].astype(str).str.split(" ").str[0]
    rows = [
        Row(
            SAID.get(k, visible(k)),
            float(texts["right"][kinds == k].astype(float).mean()),
            hover=f"{int((kinds == k).sum())} texts",
        )
        for k in dict.fromkeys(kinds)
    ]
    sheet = Sheet(result, "How often the model names the answer", call("patchscopes", "named"))
    draw_bars(sheet, rows, "share of texts")
    sheet.key("…", INK, "all but the first are the null")
    return sheet.figure()


def pictures(result: Result) -> tuple[Picture, ...]:
    """The pictures of a patchscope."""
    caption = (
        "The nearer to 0, the surer the model is of the answer. Lines: intervals over prompts, by answer."
    )
    made = [Picture("states", caption, partial(draw, result))]
    if len(result.tables.get("generations", ())):
        made.append(
            Picture(
                "texts",
                "What the model writes, rather than how likely it finds the answer.",
                partial(named, result),
                call("patchscopes", "named"),
                secondary=True,
            )
        )
    return tuple(made)
