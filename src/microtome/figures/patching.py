"""Pictures of activation patching: where, how sure, and what other donors do at the same cells."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from .cells import cells_of
from .colours import GLYPHS, series
from .maps import draw_map, draw_strongest, other_metrics
from .panels import Picture
from .rows import NAN, Row, draw_points
from .sheet import Sheet
from .snippet import call
from .tables import need
from .text import unit, visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ..results.result import Result

DONORS = {
    "real": "the task's own donor",
    "same_value": "other text, same values: should do the same",
    "irrelevant": "other text, nothing of interest changed: should do nothing",
    "wrong_value": "other values, towards their own answer: moves there where the cell holds the answer itself",
    "other_value": "other values, on the task's own answer: should do less",
    "noise": "random vector of the same size: should do less",
}


def draw(result: Result, metric: str | None = None) -> go.Figure:
    """The map: patched minus base, per site and position. Raises ResultError without effects or this metric."""
    mode = _mode(result)
    title = {
        "denoise": "Clean activations put into corrupt runs",
        "noise": "Corrupt activations put into clean runs",
    }
    name = title.get(mode, "Activation patching")
    return draw_map(
        result,
        name,
        "effect",
        metric=metric,
        call="" if metric is None else call("patching", "draw", metric=metric),
    )


def strongest(result: Result, metric: str | None = None, most: int = 16) -> go.Figure:
    """The largest effects as bars with intervals and null bands."""
    return draw_strongest(result, "The largest effects beside their nulls", "effect", metric=metric, most=most,
                          call=call("patching", "strongest", metric=metric))  # fmt: skip


def donors(result: Result) -> go.Figure:
    """What other donors do at the selected cells, beside the real one (tables["donors"]).

    Raises ResultError when no donor controls ran.
    """
    return draw_donors(result, DONORS, "The same cells, other donors", call("patching", "donors"))


def draw_donors(result: Result, meanings: Mapping[str, str], title: str, again: str) -> go.Figure:
    """Several donors at the same cells (tables["donors"]), in the order of `meanings`, which are written in the key.

    Raises ResultError where there is no such table.
    """
    table = need(result, "donors")
    groups: dict[str, list[Row]] = {}
    cells = cells_of(result)
    order = [*meanings, *sorted(set(map(str, table["donor"])) - set(meanings))]
    for row in sorted(table.to_dict("records"), key=lambda r: order.index(str(r["donor"]))):
        position = row.get("position")
        blank = position is None or position != position or position == ""
        name = visible(row["site"], most=18) + ("" if blank else f" @ {cells.position(position)}")
        low, high = (float(row[k]) if row.get(k) is not None else NAN for k in ("low", "high"))
        groups.setdefault(name, []).append(
            Row(visible(row["donor"], prose=True).replace("_", " "), float(row["value"]), low, high)
        )
    sheet = Sheet(result, title, again)
    draw_points(sheet, list(groups.items()), f"effect, {unit(cells.metric)}")
    _donor_key(sheet, groups, meanings)
    return sheet.figure()


def _donor_key(sheet: Sheet, groups: dict[str, list[Row]], meanings: Mapping[str, str]) -> None:
    said = {name.replace("_", " "): text for name, text in meanings.items()}
    for i, name in enumerate(dict.fromkeys(row.name for rows in groups.values() for row in rows)):
        meaning = said.get(name, "")
        sheet.key(GLYPHS[i % len(GLYPHS)], series(i)[0], f"{name}: {meaning}" if meaning else name)


def pictures(result: Result) -> tuple[Picture, ...]:
    """All pictures of a patching result."""
    made = [
        Picture(
            "map",
            "Each cell is one intervention, run exactly. Colour is the mean change of the metric; a dot says that "
            "the cell stands out from its null, colour alone does not.",
            partial(draw, result),
        )
    ]
    if "cells" in result.tables and np.isfinite(result.frame()["value"].to_numpy(float)).any():
        made.append(
            Picture(
                "largest effects",
                "The same numbers with their intervals, each on its null band.",
                partial(strongest, result),
                call("patching", "strongest"),
            )
        )
    if len(result.tables.get("donors", ())):
        made.append(
            Picture(
                "other donors",
                "If only the task's own donor moves the answer, it is the content that matters and not that "
                "something was replaced.",
                partial(donors, result),
                call("patching", "donors"),
            )
        )
    for metric in other_metrics(result):
        made.append(
            Picture(
                f"map under {metric}",
                "The same interventions under another metric (no test was made on it).",
                partial(draw, result, metric),
                call("patching", "draw", metric=metric),
                secondary=True,
            )
        )
    return tuple(made)


def _mode(result: Result) -> str:
    return "" if result.query is None else str(result.query.parameters.get("mode", ""))
