"""Pictures of a chain of thought: how far each sentence moves the distribution of answers, and that distribution at every cut."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ResultError
from .colours import BAND, INK, series
from .panels import Picture
from .rows import Row, draw_bars
from .sheet import Sheet, axis
from .snippet import call
from .tables import need
from .text import inert, label_lines, number, visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ..results.result import Result

MOST, HEIGHT, NAMES = 40, 200, 6
TITLE = "change of the answers (total variation, 0 to 1)"


def draw(result: Result) -> go.Figure:
    """A bar per sentence in order, on what shuffled samples give; below, the edits.

    Raises ResultError for a result without effects.
    """
    frame = result.frame()
    rows = frame[frame["metric"] == "total_variation"]
    if rows.empty:
        raise ResultError("this chain of thought has no effects", why="nothing was sampled", instead="run it again")  # fmt: skip
    p = _p(result)
    sheet = Sheet(result, "Which sentences the answer rests on")
    records: list[dict[Any, Any]] = list(rows.to_dict("records"))
    drawn: list[Row] = []
    for kind, heading in (("resample", "with the sentence against without it, the rest regenerated"), ("", "sentences left out or replaced")):  # fmt: skip
        here = [r for r in records if str(r["site"]).startswith("resample") == bool(kind)]
        made = [_row(r, p, result.verdict.alpha) for r in here[:MOST]]
        if made:
            draw_bars(sheet, made, TITLE, heading=heading)
            drawn += made
        if len(here) > MOST:
            sheet.key("…", INK, f"{len(here) - MOST} more are in the data, not in this picture")
    if any(np.isfinite(r.low) for r in drawn):
        sheet.key("├┤", INK, "bootstrap interval over samples")
    if any(np.isfinite(r.null_high) for r in drawn):
        sheet.key("■", BAND, "samples shuffled between the two sides (the null)")
    else:
        sheet.key("!", INK, "no null was drawn for these numbers")
    if any(r.clear is False for r in drawn):
        sheet.key("■", INK, "pale: not significant (Holm over all bars)")
    return sheet.figure()


def answers(result: Result) -> go.Figure:
    """The share of each answer at every cut of the chain and after every edit.

    Raises ResultError for a result without tables["answers"].
    """
    import plotly.graph_objects as go

    table = need(result, "answers")
    cuts = table[table["where"].astype(str).str.startswith("before")]
    cuts = table if cuts.empty else cuts
    sheet = Sheet(result, "The answers from every cut on", call("thoughts", "answers"))
    names = [c for c in table.columns if c.startswith("share_")]
    names.sort(key=lambda c: -float(cuts[c].to_numpy(float).mean()))
    ticks = list(range(len(cuts)))
    text = [
        inert("end" if "answer" in w else visible(w.rsplit(" ", 1)[-1], most=8))
        for w in map(str, cuts["where"])
    ]
    x = axis("before sentence", span=(-0.3, len(cuts) - 0.7), ticks=(ticks, text))
    panel = sheet.panel(HEIGHT, x, axis("share of samples", span=(-0.03, 1.03)))
    for k, name in enumerate(names[:NAMES]):
        colour, symbol = series(k)
        said = visible(name.removeprefix("share_"), most=24)
        v = cuts[name].to_numpy(float)
        hover = [inert(f"{said}: {number(float(a))}, {w}") for a, w in zip(v, map(str, cuts["where"]), strict=True)]  # fmt: skip
        sheet.add(panel, go.Scatter(x=ticks, y=v, mode="lines+markers", line={"color": colour, "width": 2}, marker={"size": 7, "color": colour, "symbol": symbol},
                                    hoverinfo="text", hovertext=hover))  # fmt: skip
        sheet.key("━", colour, said)
    if len(names) > NAMES:
        sheet.key("…", INK, f"{len(names) - NAMES} rarer answers are in the data, not in this picture")
    sheet.key("!", INK, "no null was drawn for these numbers: the picture before this one has it")
    return sheet.figure()


def _row(r: dict[Any, Any], p: dict[str, float], alpha: float) -> Row:
    site = str(r["site"])
    clear = None if site not in p or p[site] != p[site] else bool(p[site] <= alpha)
    said = f"{visible(site, most=200, prose=True)}: {number(float(r['value']))}" + (f", p {p[site]:.2g}" if site in p else "")  # fmt: skip
    return Row(label_lines(site), float(r["value"]), float(r["low"]), float(r["high"]), float(r["null_low"]), float(r["null_high"]), clear, said)  # fmt: skip


def _p(result: Result) -> dict[str, float]:
    cells = result.tables.get("cells")
    if cells is None or "p" not in cells:
        return {}
    return {str(s): float(v) for s, v in zip(cells["site"], cells["p"], strict=True)}


def pictures(result: Result) -> tuple[Picture, ...]:
    """All pictures of a chain of thought."""
    made = [
        Picture(
            "importance",
            "A sentence matters where its bar leaves the grey band: without it the model would answer otherwise.",
            partial(draw, result),
        )
    ]
    if "answers" in result.tables:
        made.append(
            Picture(
                "answers",
                "Where a line turns, the reasoning settles; a flat picture says that the answer does not rest on the text.",
                partial(answers, result),
                call("thoughts", "answers"),
                secondary=True,
            )
        )
    return tuple(made)
