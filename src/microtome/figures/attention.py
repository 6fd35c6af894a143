"""Pictures of attention: what heads do by the detectors, and single patterns token by token."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ResultError
from .cells import unique
from .grid import Grid, Scale, draw_bar, draw_grid
from .panels import Picture
from .sheet import Sheet
from .snippet import call
from .text import number, visible

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from ..results.result import Result

FEW = 24
PATTERNS = 12
_PREFIX = "pattern/"


def draw(result: Result) -> go.Figure:
    """Detector scores: a row per head where there are few heads, else layer x head for each detector.

    A score is the lowest over all text distributions, since a head's name holds only where it was observed; a
    dot means above the null on every one of them. Raises ResultError without a table "detectors".
    """
    table = result.tables.get("detectors")
    if table is None or table.empty:
        raise ResultError("no detectors were run", why='there is no table "detectors"', instead="draw a pattern")
    sheet = Sheet(result, "What the heads attend to")
    scale = Scale(1.0, "attention on the detector's token, lowest over all texts", signed=False)
    draw_bar(sheet, scale)
    heads = table[["layer", "head"]].drop_duplicates().sort_values(["layer", "head"])
    detectors = unique(map(str, table["detector"]))
    if len(heads) <= FEW:
        rows = [(int(layer), int(head)) for layer, head in heads.itertuples(index=False)]
        names = [f"L{layer}H{head}" for layer, head in rows]
        grids = [_scores(table, rows, names, "", [(d, visible(d, most=10)) for d in detectors])]
    else:
        grids = [_layer_head(table, d) for d in detectors]
    for grid in grids:
        draw_grid(sheet, grid, scale, cell=22 if len(heads) <= FEW else None)
    if table["null_high"].notna().any():
        sheet.key("●", "#20242a", "above its null on every text distribution")
    else:
        sheet.key("!", "#20242a", "no null was drawn for these scores")
    texts = unique(map(str, table["distribution"]))
    sheet.key("…", "#6b7280", f"texts: {', '.join(visible(t) for t in texts)}")
    return sheet.figure()


def _scores(table: pd.DataFrame, rows: list[tuple[int, int]], names: list[str], heading: str, detectors: list[tuple[str, str]]) -> Grid:
    shape = (len(rows), len(detectors))
    values, dots = np.full(shape, np.nan), np.zeros(shape, bool)
    hover, words = [["not measured"] * shape[1] for _ in rows], [[""] * shape[1] for _ in rows]
    at = {head: i for i, head in enumerate(rows)}
    column = {name: i for i, (name, _) in enumerate(detectors)}
    for (layer, head, detector), part in table.groupby(["layer", "head", "detector"], sort=False):
        r, c = at[int(layer), int(head)], column[str(detector)]
        values[r, c], dots[r, c], hover[r][c] = _one(f"L{layer}H{head} {visible(detector)}", part)
        words[r][c] = number(values[r, c])
    labels = [label for _, label in detectors]
    return Grid(heading, names, labels, "", "detector", values, np.zeros(shape, bool), dots, hover, None, words)


def _layer_head(table: pd.DataFrame, detector: str) -> Grid:
    part = table[table["detector"].astype(str) == detector]
    layers, heads = sorted(unique(map(int, part["layer"]))), sorted(unique(map(int, part["head"])))
    shape = (len(layers), len(heads))
    values, dots = np.full(shape, np.nan), np.zeros(shape, bool)
    absent, hover = np.ones(shape, bool), [["not in this result"] * shape[1] for _ in layers]
    at, column = {v: i for i, v in enumerate(layers)}, {v: i for i, v in enumerate(heads)}
    for (layer, head), rows in part.groupby(["layer", "head"], sort=False):
        r, c = at[int(layer)], column[int(head)]
        values[r, c], dots[r, c], hover[r][c] = _one(f"L{layer}H{head} {visible(detector)}", rows)
        absent[r, c] = False
    names = [str(v) for v in layers], [str(v) for v in heads]
    return Grid(visible(detector), *names, "layer", "head", values, np.zeros(shape, bool), dots, hover, absent)


def _one(name: str, part: pd.DataFrame) -> tuple[float, bool, str]:
    rows: list[dict[Any, Any]] = part.to_dict("records")
    lines = [name]
    for row in rows:
        null = "" if row["null_high"] != row["null_high"] else f", null {number(row['null_low'])} to {number(row['null_high'])}"
        lines.append(f"{visible(row['distribution'])}: {number(float(row['score']))}{null}")
    clear = all(row["score"] > row["null_high"] for row in rows)  # NaN compares false: no null, no dot
    return float(part["score"].min()), bool(clear), "\n".join(lines)


def pattern(result: Result, site: str) -> go.Figure:
    """One attention pattern, query x key, with its tokens. site: "L9H6".

    Raises ResultError when the result holds no pattern of this head.
    """
    array = result.tensors.get(_PREFIX + site)
    if array is None or array.ndim != 2:
        known = [name.removeprefix(_PREFIX) for name in result.tensors if name.startswith(_PREFIX)]
        raise ResultError(f"no pattern of {site!r}", why=f"patterns are kept of {known[:8]}", instead="one of them")
    values = array.astype(float)
    queries, keys, about = _tokens(result, site, values.shape)
    future = np.triu(np.ones(values.shape, bool), k=1) & (np.nan_to_num(values) == 0)
    if not future[np.triu_indices(min(values.shape), k=1)].all():
        future[:] = False  # not causal: an upper half with weight in it is not a mask
    hover = [[f"{queries[q]} attends to {keys[k]}\n{number(values[q, k])}" for k in range(values.shape[1])] for q in range(values.shape[0])]
    grid = Grid(about, queries, keys, "query", "key", values, future, np.zeros(values.shape, bool), hover)
    limit = max(float(np.nanmax(values, initial=0.0)), 1e-9)
    scale = Scale(1.0 if limit > 0.5 else limit, "attention (probability)", signed=False)
    sheet = Sheet(result, f"Attention of {visible(site, most=40)}", call("attention", "pattern", site=site))
    draw_bar(sheet, scale)
    draw_grid(sheet, grid, scale, cell=16)
    if future.any():
        sheet.key("▨", "#8f8f8f", "later tokens: masked")
    return sheet.figure()


def _tokens(result: Result, site: str, shape: tuple[int, ...]) -> tuple[list[str], list[str], str]:
    table = result.tables.get("pattern_tokens")
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
        made.append(Picture("detectors", "How much of its attention each head spends on the token that a detector names. A head's name "
                            "holds for the texts it was measured on.", partial(draw, result)))  # fmt: skip
    sites = [name.removeprefix(_PREFIX) for name in result.tensors if name.startswith(_PREFIX)]
    for i, site in enumerate(sites[:PATTERNS]):
        more = f" ({len(sites) - PATTERNS} more are in the saved result.)" if i == PATTERNS - 1 and len(sites) > PATTERNS else ""
        made.append(Picture(f"pattern of {visible(site, most=20)}", f"Rows look at columns; each row sums to 1.{more}",
                            partial(pattern, result, site), call("attention", "pattern", site=site), secondary=i >= 4))  # fmt: skip
    return tuple(made)
