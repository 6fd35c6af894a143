"""Pictures of directional ablation: what goes without the direction and what comes with it, and the texts."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from .colours import BAND, INK, SERIES
from .panels import Picture
from .rows import Row, draw_points
from .sheet import Sheet
from .snippet import call
from .steering import samples as _samples
from .tables import need, table_of
from .text import visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ..results.result import Result

WORDS = {"removed": "removed, on its prompts", "added": "added, on harmless ones"}


def draw(result: Result) -> go.Figure:
    """The measure's change with the direction removed and with it added, beside null directions (tables["both"]).

    Raises ResultError for a result without that table.
    """
    table = need(result, "both")
    rows = []
    for r in table.to_dict("records"):
        value, low, high, below, above = (
            float(r[k]) for k in ("value", "low", "high", "null_low", "null_high")
        )
        rows.append(
            (
                WORDS.get(str(r["change"]), visible(r["change"])),
                [Row("value", value, low, high, below, above)],
            )
        )
    drawn = table_of(result, "nulls")
    many = "" if drawn is None else f"{int(drawn['value'].notna().sum()) // 2} "
    name = str(result.effects.coords["metric"][0]) if result.effects is not None else "measure"
    sheet = Sheet(result, "Without the direction, and with it")
    draw_points(sheet, rows, "change: " + visible(name, most=60, prose=True))
    sheet.key("●", SERIES[0], "mean over prompts with its interval")
    if table["null_low"].notna().any():
        sheet.key(
            "■",
            BAND,
            f"range of null directions ({many}were drawn), removed and added the same way",
        )
    else:
        sheet.key("!", INK, "no null was drawn for these numbers")
    return sheet.figure()


def samples(result: Result, prompt: int | None = None) -> go.Figure:
    """Texts of one prompt, whole and with the direction removed or added (tables["samples"]). Raises as `steering.samples`."""
    return _samples(result, prompt, module="removing")


def pictures(result: Result) -> tuple[Picture, ...]:
    """All pictures of a directional ablation."""
    made = [
        Picture(
            "both directions",
            "A direction that carries a behaviour takes it away when it is removed, and brings it when it is added.",
            partial(draw, result),
        )
    ]
    if len(result.tables.get("samples", ())):
        made.append(
            Picture("samples", "Read them: a score can fall because the text fell apart.", partial(samples, result), call("removing", "samples"))
        )  # fmt: skip
    return tuple(made)
