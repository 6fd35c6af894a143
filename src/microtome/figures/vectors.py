"""Pictures of singular vectors: how much their tokens resemble each other, against random directions of the same space."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from .colours import BAND, INK
from .grid import Grid, Scale, draw_bar, draw_grid
from .panels import Picture
from .rows import Row, draw_bars
from .sheet import Sheet
from .snippet import call
from .tables import need
from .text import number, visible

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from ..results.result import Result

TOP = 12
WORDS = 6
SIDES = {"reads": "tokens that it reads", "writes": "tokens that it promotes"}


def draw(result: Result) -> go.Figure:
    """The most coherent vectors of each side, by part, each on its random directions. Raises ResultError without "vectors"."""
    table = need(result, "vectors")
    sheet = Sheet(result, "Singular vectors in the vocabulary")
    for side, part in table.groupby("side", sort=False):
        best = part.sort_values("coherence", ascending=False, kind="stable").head(TOP)
        rows = [Row(f"{visible(r['part'], most=9)} no. {int(r['rank']) + 1}", float(r["coherence"]), null_low=min(0.0, float(r["null_high"])), null_high=float(r["null_high"]),
                    clear=bool(r["coherence"] > r["null_high"]), hover=visible(r["tokens"], most=120, prose=True)) for r in best.to_dict("records")]  # fmt: skip
        draw_bars(sheet, rows, "mean cosine of its tokens", heading=SIDES.get(str(side), visible(side)))
    sheet.key("■", BAND, "up to the most coherent random direction of the part's own space")
    sheet.key(
        "…",
        INK,
        f"the {TOP} most coherent of {len(table)} vectors, so their height alone says little: see the verdict",
    )
    return sheet.figure()


def words(result: Result, side: str = "writes") -> go.Figure:
    """The tokens of the most coherent vectors of one side. Raises ResultError without "vectors" or this side in it."""
    table = need(result, "vectors")
    best: pd.DataFrame = (
        table[table["side"] == side].sort_values("coherence", ascending=False, kind="stable").head(TOP)
    )
    if best.empty:
        from ..errors import ResultError

        raise ResultError(
            f"tables['vectors'] has no side {side!r}",
            why=f"sides are {sorted(set(map(str, table['side'])))}",
            instead="one of them",
        )
    lists = [str(t).split(" | ")[:WORDS] for t in best["tokens"]]
    values = np.repeat(best["coherence"].to_numpy(float)[:, None], WORDS, 1)
    said = [[visible(t, most=8) for t in [*row, *[""] * (WORDS - len(row))]] for row in lists]
    hover = [
        [f"{visible(p)}\n{visible(t, most=60)}" for t in row]
        for p, row in zip(best["part"], said, strict=True)
    ]
    none = np.zeros(values.shape, bool)
    names = [
        f"{visible(p, most=9)} no. {int(k) + 1}" for p, k in zip(best["part"], best["rank"], strict=True)
    ]
    grid = Grid(
        SIDES.get(side, visible(side)),
        names,
        [str(k + 1) for k in range(WORDS)],
        "",
        "token",
        values,
        none,
        none,
        hover,
        None,
        said,
    )
    sheet = Sheet(result, "Tokens of singular vectors", call("vectors", "words", side=side))
    scale = Scale(max(float(values.max()), 1e-9), "mean cosine of its tokens", signed=False)
    draw_bar(sheet, scale)
    draw_grid(sheet, grid, scale, cell=18)
    mean = table["null"].mean() if "null" in table.columns else float("nan")
    sheet.key(
        "…",
        INK,
        f"random directions: {number(float(mean))} on average"
        if np.isfinite(mean)
        else "no null was drawn for these vectors",
    )
    return sheet.figure()


def pictures(result: Result) -> tuple[Picture, ...]:
    """All pictures of singular vectors."""
    made = [
        Picture(
            "coherence",
            "The tokens nearest to any direction resemble each other: what counts is more than a random direction's.",
            partial(draw, result),
        )
    ]
    if "vectors" in result.tables:
        made += [Picture(SIDES[s], "The lists themselves, of the most coherent vectors.", partial(words, result, s), call("vectors", "words", side=s), secondary=True)
                 for s in SIDES if "side" in result.tables["vectors"].columns and (result.tables["vectors"]["side"] == s).any()]  # fmt: skip
    return tuple(made)
