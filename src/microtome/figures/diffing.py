"""Pictures of a model diff: where two models differ, over layers and tokens, on top of what noise of the same size does."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ResultError
from .cells import Cells, cells_of, describe, unique
from .colours import BAND, BLACK, INK, MUTED, SERIES, pale
from .grid import Grid, Scale, draw_bar, draw_grid, draw_key
from .maps import draw_map, other_metrics
from .panels import Picture
from .rows import Row, draw_bars
from .sheet import Panel, Sheet, axis
from .snippet import call
from .tables import need
from .text import inert, number, unit, visible

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from ..results.result import Result

TITLE = "Where the two models differ"
MOST, POINTS = 20, 6
HEIGHT = 130


def draw(result: Result, metric: str | None = None) -> go.Figure:
    """The difference along the layers, a panel per point, on the null band of the noise models; a map where positions are cells.

    Raises ResultError without effects or this metric.
    """
    cells = cells_of(result, metric)
    again = "" if metric is None else call("diffing", "draw", metric=metric)
    if cells.positions or cells.frame["layer"].isna().all() or (cells.frame["unit"] != "").any():
        return draw_map(result, TITLE, "difference", metric=metric, call=again)
    sheet = Sheet(result, TITLE, again)
    points = unique(cells.frame["point"].tolist())
    highest = np.nanmax(cells.frame[["value", "high", "null_high"]].to_numpy(float))
    top = 1.06 * float(highest) if np.isfinite(highest) and highest > 0 else 1.0
    for i, point in enumerate(points[:POINTS]):
        part = cells.frame[cells.frame["point"] == point].sort_values("layer")
        _profile(sheet, cells, part, point, top, last=i == len(points[:POINTS]) - 1)
    sheet.key("●", SERIES[0], "mean over texts, with its interval over documents")
    if cells.null is None:
        sheet.key("!", INK, "no null was drawn for these numbers")
    else:
        sheet.key("■", BAND, "noise models: weights moved as far in random directions")
    if cells.rule:
        said = "above every noise model's band" if cells.null is not None else cells.rule
        sheet.key("●", BLACK, f"{said} ({cells.rule})")
    if cells.frame["zero"].any():
        sheet.key("○", MUTED, "no changed weight reaches it: exactly 0")
    if len(points) > POINTS:
        sheet.key("…", MUTED, f"{len(points) - POINTS} other points are in the data, not in this picture")
    return sheet.figure()


def _profile(sheet: Sheet, cells: Cells, part: pd.DataFrame, point: str, top: float, *, last: bool) -> None:
    import plotly.graph_objects as go

    layers = part["layer"].to_numpy(float)
    x = axis("layer" if last else "", span=(layers.min() - 0.5, layers.max() + 0.5), grid=False)
    panel = sheet.panel(HEIGHT, x, axis(unit(cells.metric), span=(-0.04 * top, top)), heading=visible(point, most=40))  # fmt: skip
    _band(sheet, panel, layers, part["null_low"].to_numpy(float), part["null_high"].to_numpy(float), BAND)
    _band(sheet, panel, layers, part["low"].to_numpy(float), part["high"].to_numpy(float), pale(SERIES[0]))
    zero = part["zero"].to_numpy(bool)
    text = ["<br>".join(map(inert, describe(row, cells).split("\n"))) for row in part.to_dict("records")]
    value = np.where(zero, 0.0, part["value"].to_numpy(float))
    symbols = np.where(zero, "circle-open", "circle").tolist()
    sheet.add(panel, go.Scatter(x=layers, y=value, mode="lines+markers", hoverinfo="text", hovertext=text,
                                line={"color": SERIES[0], "width": 2}, marker={"size": 6, "color": SERIES[0], "symbol": symbols}))  # fmt: skip
    if cells.significant is not None:
        clear = cells.significant[part.index.to_numpy()]
        if clear.any():
            sheet.add(panel, go.Scatter(x=layers[clear], y=value[clear], mode="markers", hoverinfo="skip",
                                        marker={"size": 8, "color": BLACK}))  # fmt: skip


def _band(sheet: Sheet, panel: Panel, x: Any, low: Any, high: Any, colour: str) -> None:
    import plotly.graph_objects as go

    ok = np.isfinite(low) & np.isfinite(high)
    if not ok.any():
        return
    ring = {"mode": "lines", "fill": "toself", "fillcolor": colour, "line": {"width": 1, "color": colour}, "hoverinfo": "skip"}  # fmt: skip
    xs = x[ok]
    sheet.add(panel, go.Scatter(x=[*xs, *xs[::-1]], y=[*high[ok], *low[ok][::-1]], **ring))


def by_token(result: Result, text: int | None = None) -> go.Figure:
    """Layer x token of one text (tables["token_map"], tensors["token_map"]): the relative norm of the difference in the stream.

    text: its number; default the first that was kept. Raises ResultError where there is none such.
    """
    table = need(result, "token_map")
    chosen = int(table["document"].iloc[0] if text is None else text)
    part = table[table["document"] == chosen].sort_values("at")
    values = result.tensors.get("token_map")
    kept = unique(table["document"].tolist())
    if part.empty or values is None:
        raise ResultError(
            f"the map of text {text} was not kept",
            why=f"kept are {kept if values is not None else 'none'}",
            instead="one of them",
        )
    z = np.asarray(values)[kept.index(chosen), :, : len(part)].astype(float)
    names = [str(s) for s in result.effects.coords["site"] if str(s).endswith(".resid_post")] if result.effects else []  # fmt: skip
    rows = [n.split(".")[0].removeprefix("L") for n in names] or [str(i) for i in range(len(z))]
    tokens = part["token"].tolist()
    hover = [[f"layer {r}, token {i} {visible(t)}\nrelative difference {number(v)}" for i, (t, v) in enumerate(zip(tokens, line, strict=True))]
             for r, line in zip(rows, z, strict=True)]  # fmt: skip
    none = np.zeros(z.shape, bool)
    grid = Grid("", rows, [visible(t, most=10) for t in tokens], "layer", "token", z, none, none, hover)
    cells = cells_of(result)
    limit = float(np.nanmax(z)) if np.isfinite(z).any() and np.nanmax(z) > 0 else 1.0
    scale = Scale(limit, "relative norm of the difference", signed=False, null=cells.null)
    sheet = Sheet(result, f"Text {chosen}, token by token", call("diffing", "by_token", text=text))
    draw_bar(sheet, scale)
    draw_grid(sheet, grid, scale)
    draw_key(sheet, [grid], scale, "")
    sheet.key("…", MUTED, "the band is of means over whole texts, single tokens scatter more")
    return sheet.figure()


def focus(result: Result) -> go.Figure:
    """How few tokens the difference sits on, site by site (the rows "focus" of tables["cells"]).

    Raises ResultError without such rows.
    """
    table = result.tables.get("cells")
    part = None if table is None else table[table["metric"] == "focus"]
    if part is None or part.empty:
        raise ResultError(f"this {result.kind} has no focus", why="it needs noise models, and means over texts", instead="see its other figures")  # fmt: skip
    order = part.sort_values("value", ascending=False, kind="stable").head(MOST)
    rows = [
        Row(visible(r["site"], most=20), float(r["value"]), null_low=float(r["null_low"]), null_high=float(r["null_high"]),
            clear=None if not np.isfinite(r["p"]) else bool(r["p"] <= result.verdict.alpha),
            hover=f"{visible(r['site'])}\n{number(r['value'])}, noise models up to {number(r['null_high'])}\np {number(r['p'])}")
        for r in order.to_dict("records")
    ]  # fmt: skip
    sheet = Sheet(result, "On how few tokens the difference sits", call("diffing", "focus"))
    draw_bars(sheet, rows, "tokens / effective number of tokens that differ", heading=f"{len(rows)} of {len(part)} sites, largest first")  # fmt: skip
    sheet.key("■", BAND, "noise models, at the level of the test over all sites")
    sheet.key("…", MUTED, "1: spread evenly. Pale: no more than noise models reach")
    return sheet.figure()


def tokens(result: Result) -> go.Figure:
    """The tokens after which the outputs differ most (tables["differing_tokens"]), as shares of the mean KL, on their null.

    Raises ResultError without that table.
    """
    table = need(result, "differing_tokens")
    rows = [
        Row(visible(r["token"], most=14), float(r["share"]), null_low=0.0 if np.isfinite(r["null_high"]) else np.nan, null_high=float(r["null_high"]),
            clear=None if not np.isfinite(r["p"]) else bool(r["p"] <= result.verdict.alpha),
            hover=f"text {r['document']}, token {r['at']}\n{visible(r['context'], most=70, prose=True)}[{visible(r['token'])}]\nKL {number(r['kl'])} nats, {number(r['share'])} x the mean\np {number(r['p'])}")
        for r in table.head(MOST).to_dict("records")
    ]  # fmt: skip
    sheet = Sheet(result, "After which tokens the outputs differ most", call("diffing", "tokens"))
    draw_bars(sheet, rows, "KL, multiples of its mean over all tokens", heading=f"the {len(rows)} largest")
    if all(np.isnan(r.null_high) for r in rows):
        sheet.key("!", INK, "no null was drawn for these numbers")
    else:
        sheet.key("■", BAND, "noise models, at the level of the test over all tokens")
        sheet.key("…", MUTED, "pale: no more than noise models reach")
    return sheet.figure()


def weights(result: Result) -> go.Figure:
    """The tensors that moved most (tables["weight_changes"]); how many are equal to the bit is in the key.

    Raises ResultError without that table.
    """
    table = need(result, "weight_changes")
    moved = table[table["changed"].astype(bool)].sort_values("relative", ascending=False, kind="stable")
    rows = [
        Row(visible(r["tensor"].removesuffix(".weight").replace("model.layers.", "L"), most=26), float(r["relative"]),
            hover=f"{visible(r['tensor'], most=70)}\nrelative change {number(r['relative'])}, largest entry {number(r['largest'])}\nrank {number(r['rank'])} of {number(r['full'])}, effective {number(r['effective_rank'])}")
        for r in moved.head(MOST).to_dict("records") if np.isfinite(r["relative"])
    ]  # fmt: skip
    sheet = Sheet(result, "Which weights differ", call("diffing", "weights"))
    if rows:
        draw_bars(sheet, rows, "norm of the difference / norm of the weights", heading=f"{len(rows)} of {len(moved)} tensors that differ")  # fmt: skip
    else:
        sheet.panel(30, axis(span=(0, 1), labels=False), axis(span=(0, 1), labels=False), heading="no tensor differs")  # fmt: skip
    sheet.key("=", MUTED, f"{len(table) - len(moved)} of {len(table)} tensors are equal to the bit")
    rank = moved["rank"].to_numpy(float)
    full = moved["full"].to_numpy(float)
    thin = np.isfinite(rank) & (full > 1) & (rank < 0.5 * full)
    if thin.any():
        sheet.key("…", MUTED, f"{int(thin.sum())} differences have less than half their full rank, the largest {int(rank[thin].max())}: a low-rank update")  # fmt: skip
    return sheet.figure()


def reading(result: Result, site: str | None = None) -> go.Figure:
    """What the mean difference at the first positions promotes at one site, beside what its nulls promote (tables["reading"]).

    site: default the last one read. Raises ResultError where there is none such.
    """
    table = need(result, "reading")
    known = unique(table["site"].tolist())
    chosen = known[-1] if site is None else site
    part = table[table["site"] == chosen]
    if part.empty:
        raise ResultError(f"{site} was not read", why=f"read are {', '.join(map(str, known))}", instead="one of them")  # fmt: skip
    ranks = sorted(unique(part["rank"].tolist()))[:5]
    sheet = Sheet(result, f"What the difference at {visible(chosen)} promotes", call("diffing", "reading", site=site))  # fmt: skip
    limit = float(part["score"].abs().max()) or 1.0
    scale = Scale(limit, "logit, standard deviations of all tokens'", signed=False)
    draw_bar(sheet, scale)
    grids = []
    for source in unique(part["source"].tolist()):
        mine = part[part["source"] == source]
        places = sorted(unique(mine["position"].tolist()))
        values, words = np.full((len(places), len(ranks)), np.nan), [[""] * len(ranks) for _ in places]
        hover = [["not in this result"] * len(ranks) for _ in places]
        for r in mine[mine["rank"].isin(ranks)].to_dict("records"):
            i, j = places.index(r["position"]), ranks.index(r["rank"])
            values[i, j], words[i][j] = max(0.0, float(r["score"])), visible(r["token"], most=8)
            hover[i][j] = f"{source}, position {places[i]}, rank {r['rank']}\n{visible(r['token'], most=60)}\nscore {number(r['score'])}"  # fmt: skip
        none = np.zeros(values.shape, bool)
        grids.append(Grid(str(source), [str(p) for p in places], [str(r) for r in ranks], "position", "rank", values, none, none, hover, None, words))  # fmt: skip
        draw_grid(sheet, grids[-1], scale, cell=22)
    if len(grids) == 1:
        sheet.key("!", INK, "no null was drawn for these words")
    else:
        sheet.key(
            "…", MUTED, "compare the panels: words that every difference promotes say nothing of this one"
        )
    return sheet.figure()


def drift(result: Result) -> go.Figure:
    """The difference minus the unrelated fine-tune's, with intervals over documents (tables["drift"]).

    Raises ResultError without that table.
    """
    table = need(result, "drift")
    gap = table["value"].to_numpy(float) - table["unrelated"].to_numpy(float)
    order = np.argsort(-np.abs(gap), kind="stable")[:MOST]
    rows = []
    for i in order.tolist():
        r = table.iloc[i]
        blank = r["position"] == "" or r["position"] != r["position"]
        name = visible(r["site"], most=20) + ("" if blank else f" @ {r['position']}")
        low, high = float(r["low"]), float(r["high"])
        clear = None if not np.isfinite(low) else bool(low > 0 or high < 0)
        rows.append(Row(name, float(gap[i]), low, high, clear=clear,
                        hover=f"{name}\n{number(r['value'])}, unrelated {number(r['unrelated'])}"))  # fmt: skip
    sheet = Sheet(result, "More than an unrelated fine-tune?", call("diffing", "drift"))
    draw_bars(sheet, rows, "difference minus the unrelated one's", heading=f"{len(rows)} of {len(table)} cells, largest first")  # fmt: skip
    sheet.key("…", MUTED, "pale: the interval over documents holds 0")
    return sheet.figure()


_OTHERS = (
    ("differing_tokens", "tokens", "A change that only some texts reach shows here before it shows in a mean."),
    ("weight_changes", "weights", "Rank says how the change was made: an adapter is thin, a full fine-tune is not."),
    ("reading", "reading", "The traces that narrow training leaves at the first tokens of any text, and what noise leaves there."),
    ("drift", "drift", "Any fine-tune moves a model: what counts is what this one moves more."),
)  # fmt: skip


def pictures(result: Result) -> tuple[Picture, ...]:
    """All pictures of a model diff."""
    made = [Picture("difference", "Grey is what models do whose weights were moved as far in random directions.", partial(draw, result))]  # fmt: skip
    drawn = {"tokens": tokens, "weights": weights, "reading": reading, "drift": drift}
    for table, name, caption in _OTHERS:
        if len(result.tables.get(table, ())):
            made.append(Picture(name, caption, partial(drawn[name], result), call("diffing", name)))
    cells = result.tables.get("cells")
    if cells is not None and "metric" in cells.columns and (cells["metric"] == "focus").any():
        made.insert(1, Picture("focus", "A backdoor is small on average and all of it on the few tokens that trigger it.", partial(focus, result),
                               call("diffing", "focus")))  # fmt: skip
    found = result.tables.get("token_map")
    if found is not None and "document" in found.columns and "token_map" in result.tensors:
        for text in unique(found["document"].tolist())[:2]:
            made.append(Picture(f"tokens of text {int(text)}", "One text, token by token and layer by layer.", partial(by_token, result, int(text)),
                                call("diffing", "by_token", text=int(text)), secondary=True))  # fmt: skip
    made += [Picture(f"difference, {m.replace('_', ' ')}", "The same under another measure.", partial(draw, result, m),
                     call("diffing", "draw", metric=m), secondary=True) for m in other_metrics(result)]  # fmt: skip
    return tuple(made)
