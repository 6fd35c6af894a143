"""The picture of a circuit's robustness: its faithfulness under every setting of the six choices, beside random circuits."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from .circuit_tests import failures
from .colours import BAND, INK, MUTED, SERIES
from .panels import Picture
from .sheet import Sheet, axis
from .tables import need
from .text import inert, interval, number, visible

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from ..results.result import Result

ROW = 22


def draw(result: Result) -> go.Figure:
    """One line a setting: faithfulness with its interval on the range of random circuits under the same choices.

    Raises ResultError for a result without a table "settings".
    """
    import plotly.graph_objects as go

    table = need(result, "settings")
    done = table[np.isfinite(table["value"].to_numpy(float))]
    labels = [_label(str(c), str(s)) for c, s in zip(done["choice"], done["setting"], strict=True)]
    columns = ["value", "low", "high", *(c for c in ("null_low", "null_high") if c in done)]
    known = [v for v in (0.0, 1.0, *done[columns].to_numpy(float).reshape(-1)) if np.isfinite(v)]
    room = 0.06 * (max(known) - min(known))
    sheet = Sheet(result, f"The circuit under {len(done)} settings{failures(result)}")
    x = axis("faithfulness", span=(min(known) - room, max(known) + room))
    y = axis(
        span=(len(done) - 0.5, -0.5), grid=False, ticks=(list(range(len(done))), [inert(v) for v in labels])
    )
    panel = sheet.panel(ROW * max(3, len(done)), x, y)
    for level in (0, 1):
        sheet.line(panel, x=level, colour=MUTED, dash="dot")
    nulls = 0
    for i, (lo, hi) in enumerate(_bands(done)):
        if np.isfinite(lo) and np.isfinite(hi):
            nulls += 1
            sheet.box(panel, (lo, hi), (i - 0.42, i + 0.42), BAND)
    value, low, high = (done[c].to_numpy(float) for c in ("value", "low", "high"))
    bars = {"type": "data", "symmetric": False, "array": np.nan_to_num(high - value), "arrayminus": np.nan_to_num(value - low), "color": SERIES[0], "thickness": 1.5, "width": 3}  # fmt: skip
    hover = [
        inert(f"{c or 'as found'}: {s}\n{number(v)} {interval(a, b)}".replace("\n", " "))
        for c, s, v, a, b in zip(done["choice"], done["setting"], value, low, high, strict=True)
    ]
    sheet.add(panel, go.Scatter(x=value, y=list(range(len(done))), mode="markers", error_x=bars, hoverinfo="text", hovertext=hover, marker={"size": 7, "color": SERIES[0]}))  # fmt: skip
    sheet.key(
        "●", SERIES[0], "with interval over clusters; 1: as the whole model, 0: as with everything left out"
    )
    sheet.key("■", BAND, "random circuits of its shape, under the same choices") if nulls else sheet.key("…", MUTED, "no null was drawn")  # fmt: skip
    for _, row in table[~np.isfinite(table["value"].to_numpy(float))].iterrows():
        sheet.key("!", INK, f"{visible(row['choice'], most=20)}, {visible(row['setting'], most=24)}: {visible(row['why'], most=90, prose=True)}")  # fmt: skip
    return sheet.figure()


def _bands(table: pd.DataFrame) -> list[tuple[float, float]]:
    if "null_low" not in table or "null_high" not in table:
        return []
    return list(zip(table["null_low"].astype(float), table["null_high"].astype(float), strict=True))


def _label(choice: str, setting: str) -> str:
    return visible(setting if choice else "as found", most=24, prose=True)


def pictures(result: Result) -> tuple[Picture, ...]:
    """The one picture of a sweep of choices."""
    caption = "Miller et al. found faithfulness of one circuit from below 0 to above 1, by choices that are seldom stated."
    return (Picture("choices", caption, partial(draw, result)),)
