"""Pictures of a prompt grid: each factor's effect beside those of a change of wording, and by wording."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ResultError
from .colours import INK
from .panels import Picture
from .rows import Row, draw_bars, draw_points, draw_row_key
from .sheet import Sheet
from .snippet import call
from .tables import need, table_of
from .text import change_of, label_lines, unit, visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ..results.result import Result

MOST = 24


def draw(result: Result) -> go.Figure:
    """A bar per level against its reference, strongest first, on the band of wordings; below, every change of wording.

    Raises ResultError for a result without effects.
    """
    rows, metric = _effects(result)
    sheet = Sheet(result, "What each change of the prompt does to the answer")
    draw_bars(sheet, rows[:MOST], f"change, {unit(metric)}", heading="one factor changed, all else the same")
    other = table_of(result, "wordings")
    if other is not None:
        again = [
            Row(
                f"wording {visible(r['wording'], prose=True)}",
                float(r["value"]),
                float(r["low"]),
                float(r["high"]),
            )
            for r in _records(other)
        ]
        again.sort(key=lambda r: -abs(r.value))
        draw_bars(
            sheet,
            again[:MOST],
            f"change, {unit(metric)}",
            heading="the same question in other words: the null",
        )
    draw_row_key(sheet, rows[:MOST], "significant by levels shuffled within matched sets (Holm over factors)")
    if len(rows) > MOST:
        sheet.key("…", INK, f"{len(rows) - MOST} weaker levels are in the data, not in this picture")
    return sheet.figure()


def wordings(result: Result) -> go.Figure:
    """Each level's effect within each wording: a point a wording.

    Raises ResultError for a result without that table.
    """
    table = need(result, "by_wording")
    metric = _metric(result)
    sheet = Sheet(result, "The same change in every wording", call("prompts", "wordings"))
    strongest = table.groupby("site", sort=False)["value"].apply(lambda v: float(np.abs(v).max()))
    names = list(strongest.sort_values(ascending=False, kind="stable").index)
    shown = list(dict.fromkeys(table["wording"]))[:8]
    groups = [
        (_short(name), [Row(f"wording {r['wording']}", float(r["value"])) for r in _records(table[table["site"] == name]) if r["wording"] in shown])
        for name in names[:12]
    ]  # fmt: skip
    draw_points(sheet, groups, f"change, {unit(metric)}")
    sheet.key("!", INK, "no null was drawn for these numbers: the picture before this one has it")
    sheet.key("●", INK, f"wordings in order: {', '.join(map(str, shown))}; 0 is the template")
    return sheet.figure()


def _effects(result: Result) -> tuple[list[Row], str]:
    """Rows of the first metric, strongest first."""
    frame = result.frame()
    if frame.empty:
        raise ResultError(
            "this prompt grid has no effects", why="nothing was measured", instead="run it again"
        )
    metric = _metric(result)
    cells = result.tables.get("cells")
    p: dict[Any, float] = {} if cells is None or "p" not in cells else {
        r["site"]: float(r["p"]) for r in _records(cells) if r["metric"] == metric
    }  # fmt: skip
    rows = []
    for r in _records(frame[frame["metric"] == metric]):
        value, clear = float(r["value"]), None
        if r["site"] in p and p[r["site"]] == p[r["site"]]:
            clear = bool(p[r["site"]] <= result.verdict.alpha)
        rows.append(Row(_short(r["site"]), value, float(r["low"]), float(r["high"]), float(r["null_low"]), float(r["null_high"]), clear,
                        f"{visible(r['site'], most=200, prose=True)}: {value:.3g}, {int(r['n'])} matched pairs"))  # fmt: skip
    return sorted(rows, key=lambda r: -abs(r.value)), metric


def _metric(result: Result) -> str:
    return "logprob_diff" if result.effects is None else str(result.effects.coords["metric"][0])


def _records(frame: Any) -> list[dict[Any, Any]]:
    return list(frame.to_dict("records"))


def _short(name: object) -> str:
    return label_lines(change_of(name))


def pictures(result: Result) -> tuple[Picture, ...]:
    """All pictures of a prompt grid."""
    found = [
        Picture(
            "effects",
            "A factor matters where its bar leaves the grey band, which is as far as another wording of the same question goes.",
            partial(draw, result),
        )
    ]
    if "by_wording" in result.tables:
        found.append(
            Picture(
                "by wording",
                "A change that goes one way in one wording and the other way in another says little about the model.",
                partial(wordings, result),
                call("prompts", "wordings"),
                secondary=True,
            )
        )
    return tuple(found)
