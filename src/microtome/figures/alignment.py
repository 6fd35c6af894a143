"""Pictures of an alignment search: how often the exchange does what the variable says, beside all that should not."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .colours import GLYPHS, INK, MUTED, SERIES, series
from .panels import Picture
from .rows import Row, draw_points
from .sheet import Sheet, axis
from .snippet import call
from .tables import need
from .text import inert, number, visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ..results.result import Result

PARTS = {"entity": "held-out entities", "template": "held-out templates", "training": "prompts trained on"}
WAYS = {
    "subspace": "the subspace found",
    "full vector": "whole site (ceiling)",
    "no intervention": "left alone (base rate)",
    "chance": "chance",
    "row space only": "part that is read",
    "null space only": "part that is not read",
    "random_subspace": "random subspace",
    "shuffled_labels": "shuffled labels",
    "irrelevant_variable": "irrelevant variable",
    "random_twin": "random twin",
}
HEIGHT = 150


def draw(result: Result) -> go.Figure:
    """Interchange accuracy of the subspace, its bounds and its placebos (tables["accuracy"]), by held-out part.

    Raises ResultError for a result without that table.
    """
    table = need(result, "accuracy")
    found: dict[str, list[Row]] = {}
    for r in table.to_dict("records"):
        if r["part"] == "training" or r["what"] not in WAYS:
            continue
        name = PARTS.get(str(r["part"]), visible(r["part"]))
        text = f"{WAYS[r['what']]}, {name}: {number(r['value'])}, n {_count(r)}"
        found.setdefault(str(r["what"]), []).append(
            Row(name, float(r["value"]), float(r["low"]), float(r["high"]), hover=text)
        )
    sheet = Sheet(result, _title(result))
    groups = [(WAYS[what], found[what]) for what in WAYS if what in found]
    panel = draw_points(sheet, groups, "interchange accuracy (share of interchanges)")
    panel.xaxis["range"] = [-0.03, 1.04]
    for i, name in enumerate(dict.fromkeys(row.name for _, rows in groups for row in rows)):
        sheet.key(GLYPHS[i % len(GLYPHS)], series(i)[0], name)
    sheet.key("├┤", INK, "interval over clusters of prompts")
    if not {"shuffled_labels", "irrelevant_variable", "random_twin"} & set(found):
        sheet.key("!", INK, "no null was drawn for these numbers")
    return sheet.figure()


def _title(result: Result) -> str:
    asked: dict[str, Any] = {} if result.query is None else dict(result.query.parameters)
    if "variable" not in asked:
        return "Does a subspace carry the variable?"
    return f"Does a subspace of {visible(asked.get('site', 'the site'))} carry {visible(asked['variable'])}?"


def _count(row: dict[Any, Any]) -> str:
    n = row.get("n")
    return "?" if n is None or n != n else str(int(n))


def training(result: Result) -> go.Figure:
    """The loss of every training, the real one and the placebos (tables["training"]).

    Raises ResultError where there is no such table.
    """
    import plotly.graph_objects as go

    table = need(result, "training")
    step, loss = table["step"].to_numpy(float), table["loss"].to_numpy(float)
    known = loss[np.isfinite(loss)]
    top = float(known.max()) if known.size else 1.0
    sheet = Sheet(result, "What training reached", call("alignment", "training"))
    x = axis("step", span=(-0.02 * max(step.max(), 1.0), 1.02 * max(step.max(), 1.0)))
    panel = sheet.panel(HEIGHT, x, axis("loss (nats)", span=(min(0.0, float(known.min())), 1.05 * top)))
    for run in dict.fromkeys(map(str, table["run"])):
        here = table["run"].astype(str).to_numpy() == run
        colour = SERIES[0] if run == "real" else MUTED
        text = [
            inert(f"{visible(run)}, step {int(s)}: {number(v)}")
            for s, v in zip(step[here], loss[here], strict=True)
        ]
        sheet.add(panel, go.Scatter(x=step[here], y=loss[here], mode="lines", hoverinfo="text", hovertext=text,
                                    line={"color": colour, "width": 2 if run == "real" else 1}))  # fmt: skip
    sheet.key("━", SERIES[0], "the variable asked about")
    sheet.key("━", MUTED, "placebos: same optimiser, steps and size")
    return sheet.figure()


def pictures(result: Result) -> tuple[Picture, ...]:
    """All pictures of an alignment search."""
    made = [
        Picture(
            "accuracy",
            "The subspace counts only as far as it beats the base rate, chance and every placebo on prompts it was not trained on.",
            partial(draw, result),
        )
    ]
    if len(result.tables.get("training", ())):
        caption = "A placebo whose loss falls as far was able to learn its labels too."
        made.append(
            Picture(
                "training", caption, partial(training, result), call("alignment", "training"), secondary=True
            )
        )
    return tuple(made)
