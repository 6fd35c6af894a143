"""Pictures of attention: what heads do by the detectors, and single patterns token by token."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ResultError
from .cells import unique
from .colours import HATCH, INK, MUTED
from .grid import Grid, Scale, draw_bar, draw_grid
from .panels import Picture
from .sheet import Sheet
from .snippet import call
from .tables import need, table_of
from .text import number, visible

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from ..results.result import Result

FEW = 24
EACH = 4
PATTERNS = 12
_PREFIX = "pattern/"


def draw(result: Result) -> go.Figure:
    """Detector scores, a row per head; of many heads the four highest of each detector.

    A score is the lowest over all text distributions, since a head's name holds only where it was observed; a
    dot means above the null on every one of them. Raises ResultError without a table "detectors".
    """
    table = need(result, "detectors")
    found, total = _heads(table)
    rows = sorted(found)
    heading = (
        f"{len(rows)} of {total} heads: the {EACH} highest of each detector" if len(rows) < total else ""
    )
    grid = _scores(_by_head(table), rows, heading, unique(map(str, table["detector"])))
    return _draw(result, table, "What the heads attend to", [grid], "", 22)


def every_head(result: Result) -> go.Figure:
    """Layer x head for each detector. Raises ResultError without a table "detectors"."""
    table = need(result, "detectors")
    scores = _by_head(table)
    grids = [_layer_head(scores, d) for d in unique(map(str, table["detector"]))]
    cell = 9 if len(grids[0].rows) > 16 else None
    return _draw(result, table, "What every head attends to", grids, call("attention", "every_head"), cell)


def _heads(table: pd.DataFrame) -> tuple[set[tuple[int, int]], int]:
    """The heads to show, and how many there are."""
    lowest = table.groupby(["detector", "layer", "head"], sort=False)["score"].min().reset_index()
    every = {(int(a), int(b)) for a, b in zip(table["layer"], table["head"], strict=True)}
    if len(every) <= FEW:
        return every, len(every)
    best = lowest.sort_values("score", ascending=False, kind="stable").groupby("detector").head(EACH)
    return {(int(a), int(b)) for a, b in zip(best["layer"], best["head"], strict=True)}, len(every)


def _many(result: Result) -> bool:
    table = result.tables["detectors"]
    return {"layer", "head"} <= set(table.columns) and len(table[["layer", "head"]].drop_duplicates()) > FEW


def _draw(
    result: Result, table: pd.DataFrame, title: str, grids: list[Grid], call: str, cell: int | None
) -> go.Figure:
    sheet = Sheet(result, title, call)
    scale = Scale(1.0, "attention on the detector's token, lowest over texts", signed=False)
    draw_bar(sheet, scale)
    for grid in grids:
        draw_grid(sheet, grid, scale, cell=cell)
    if table["null_high"].notna().any():
        sheet.key("●", INK, "above its null on every text distribution")
    else:
        sheet.key("!", INK, "no null was drawn for these scores")
    texts = unique(map(str, table["distribution"]))
    sheet.key("…", MUTED, f"texts: {', '.join(visible(t, prose=True) for t in texts)}")
    return sheet.figure()


Scores = dict[tuple[int, int, str], list[dict[Any, Any]]]


def _by_head(table: pd.DataFrame) -> Scores:
    """The rows of each layer, head and detector: one per text."""
    found: Scores = {}
    for row in table.to_dict("records"):
        found.setdefault((int(row["layer"]), int(row["head"]), str(row["detector"])), []).append(row)
    return found


def _scores(scores: Scores, rows: Sequence[tuple[int, int]], heading: str, detectors: Sequence[str]) -> Grid:
    """A row per head, a column per detector, the score written in."""
    shape = (len(rows), len(detectors))
    values, dots = np.full(shape, np.nan), np.zeros(shape, bool)
    hover, words = [["not measured"] * shape[1] for _ in rows], [[""] * shape[1] for _ in rows]
    for r, (layer, head) in enumerate(rows):
        for c, detector in enumerate(detectors):
            part = scores.get((layer, head, detector))
            if part:
                values[r, c], dots[r, c], hover[r][c] = _one(f"L{layer}H{head} {visible(detector)}", part)
                words[r][c] = f"{values[r, c]:.2f}"
    names, labels = [f"L{layer}H{head}" for layer, head in rows], [visible(d, most=10) for d in detectors]
    none = np.zeros(shape, bool)
    return Grid(heading, names, labels, "", "detector", values, none, dots, hover, None, words)


def _layer_head(scores: Scores, detector: str) -> Grid:
    mine = {(layer, head): part for (layer, head, name), part in scores.items() if name == detector}
    layers, heads = sorted({layer for layer, _ in mine}), sorted({head for _, head in mine})
    shape = (len(layers), len(heads))
    values, dots, absent = np.full(shape, np.nan), np.zeros(shape, bool), np.ones(shape, bool)
    hover = [["not in this result"] * shape[1] for _ in layers]
    for (layer, head), part in mine.items():
        r, c = layers.index(layer), heads.index(head)
        values[r, c], dots[r, c], hover[r][c] = _one(f"L{layer}H{head} {visible(detector)}", part)
        absent[r, c] = False
    names = [str(v) for v in layers], [str(v) for v in heads]
    none = np.zeros(shape, bool)
    return Grid(visible(detector), *names, "layer", "head", values, none, dots, hover, absent)


def _one(name: str, part: Sequence[dict[Any, Any]]) -> tuple[float, bool, str]:
    """The lowest score over texts, whether it is above its null on all of them, and the hover text."""
    lines = [name]
    for row in part:
        known = row["null_high"] == row["null_high"]
        null = f", null {number(row['null_low'])} to {number(row['null_high'])}" if known else ""
        lines.append(f"{visible(row['distribution'], prose=True)}: {number(float(row['score']))}{null}")
    clear = all(row["score"] > row["null_high"] for row in part)  # NaN compares false: no null, no dot
    return min(float(row["score"]) for row in part), bool(clear), "\n".join(lines)


def pattern(result: Result, site: str) -> go.Figure:
    """One attention pattern, query x key, with its tokens. site: "L9H6".

    Raises ResultError when the result holds no pattern of this head.
    """
    array = result.tensors.get(_PREFIX + site)
    if array is None or array.ndim != 2:
        known = [name.removeprefix(_PREFIX) for name in result.tensors if name.startswith(_PREFIX)]
        raise ResultError(
            f"no pattern of {site!r}", why=f"patterns are kept of {known[:8]}", instead="one of them"
        )
    values = array.astype(float)
    queries, keys, about = _tokens(result, site, values.shape)
    future = np.triu(np.ones(values.shape, bool), k=1) & (np.nan_to_num(values) == 0)
    if not future[np.triu_indices(min(values.shape), k=1)].all():
        future[:] = False  # not causal: an upper half with weight in it is not a mask
    hover = [
        [f"{queries[q]} attends to {keys[k]}\n{number(values[q, k])}" for k in range(values.shape[1])]
        for q in range(values.shape[0])
    ]
    grid = Grid(about, queries, keys, "query", "key", values, future, np.zeros(values.shape, bool), hover)
    limit = max(float(np.nanmax(values, initial=0.0)), 1e-9)
    scale = Scale(1.0 if limit > 0.5 else limit, "attention (probability)", signed=False)
    sheet = Sheet(result, f"Attention of {visible(site, most=40)}", call("attention", "pattern", site=site))
    draw_bar(sheet, scale)
    draw_grid(sheet, grid, scale, cell=16)
    if future.any():
        sheet.key("▨", HATCH, "later tokens: masked")
    return sheet.figure()


def _tokens(result: Result, site: str, shape: tuple[int, ...]) -> tuple[list[str], list[str], str]:
    table = table_of(result, "pattern_tokens")
    found: dict[int, str] = {}
    about = ""
    if table is not None:
        rows = table[table["site"].astype(str).str.split(".").str[0] == site.split(".")[0]]
        if len(rows):
            prompt = rows["prompt"].iloc[0]
            rows = rows[rows["prompt"] == prompt]
            about = f"prompt {visible(prompt, most=40)}"
            found = {int(i): str(t) for i, t in zip(rows["index"], rows["token"], strict=True)}
    names = [f"{i} {visible(found[i], most=12)}" if i in found else str(i) for i in range(max(shape))]
    return names[: shape[0]], names[: shape[1]], about


def pictures(result: Result) -> tuple[Picture, ...]:
    """All pictures of attention patterns: detectors first, then the first dozen patterns."""
    made = []
    if len(result.tables.get("detectors", ())):
        made.append(
            Picture(
                "detectors",
                "How much of its attention each head spends on the token that a detector names. A head's name "
                "holds for the texts it was measured on.",
                partial(draw, result),
            )
        )
        if _many(result):
            made.append(
                Picture(
                    "every head",
                    "The same for all heads.",
                    partial(every_head, result),
                    call("attention", "every_head"),
                    secondary=True,
                )
            )
    sites = [name.removeprefix(_PREFIX) for name in result.tensors if name.startswith(_PREFIX)]
    for i, site in enumerate(sites[:PATTERNS]):
        more = (
            f" ({len(sites) - PATTERNS} more are in the saved result.)"
            if i == PATTERNS - 1 and len(sites) > PATTERNS
            else ""
        )
        made.append(
            Picture(
                f"pattern of {visible(site, most=20)}",
                f"Rows look at columns; each row sums to 1.{more}",
                partial(pattern, result, site),
                call("attention", "pattern", site=site),
                secondary=i >= 4,
            )
        )
    return tuple(made)
