"""From a Result to cells: one row per site and position with value, interval, null and what else is known."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ResultError
from .tables import table_of
from .text import interval, number, visible

if TYPE_CHECKING:
    import pandas as pd

    from ..results.result import Result

_SITE = re.compile(r"^L(\d+)(?:(H|KV|N|F)(\d+))?\.(\w+)")


@dataclass(frozen=True)
class Cells:
    """The cells of one metric.

    frame: columns site, position (None where a site has none), point, layer, unit ("H", "KV", "N", "F" or ""),
    index, value, low, high, null_low, null_high, p, n, zero (structurally zero), share (normalised effect) with
    share_low and share_high; NaN where unknown. positions: labels in order, empty where there are none.
    rule: how `significant` was decided, in words; "" where nothing decides.
    """

    frame: pd.DataFrame
    metric: str
    positions: tuple[str | int, ...]
    names: Mapping[str, str]
    significant: np.ndarray | None
    rule: str

    @property
    def limit(self) -> float:
        """The largest |value|; 1 where all are 0 or unmeasured."""
        size = np.abs(self.frame["value"].to_numpy(float))
        size = size[np.isfinite(size)]
        return float(size.max()) if size.size and size.max() > 0 else 1.0

    @property
    def null(self) -> tuple[float, float] | None:
        """The widest null band over all cells that can differ; None where no null was drawn."""
        known = self.frame[~self.frame["zero"]]
        low, high = known["null_low"].to_numpy(float), known["null_high"].to_numpy(float)
        if not np.isfinite(low).any() or not np.isfinite(high).any():
            return None
        return float(np.nanmin(low)), float(np.nanmax(high))

    def position(self, label: str | int | None) -> str:
        """A position as a reader knows it: its number and what stands there."""
        if label is None:
            return ""
        name = self.names.get(str(label), "")
        if str(label).lstrip("-").isdigit() and name:
            return f"{label} {visible(name, most=14)}"
        return visible(label, most=18)


def metric_of(result: Result, metric: str | None = None) -> str:
    """The metric to draw: the one asked for, else the first, which is the one that tests and controls used.

    Raises ResultError for a metric that the result has not, and for a result without effects.
    """
    if result.effects is None:
        raise ResultError(
            f"this {result.kind} has no effects", why="there is no cell to draw", instead="use tables"
        )
    known = result.effects.coords["metric"]
    if metric is None:
        return str(known[0])
    if metric not in known:
        raise ResultError(
            f"no metric {metric!r} in this {result.kind}", why=f"it has {known}", instead=f"{known[0]!r}"
        )
    return metric


def cells_of(result: Result, metric: str | None = None) -> Cells:
    """The cells of one metric, in the order of the effects.

    Raises ResultError as `metric_of`, and when a tensor "structurally_zero" does not have the cells' shape.
    """
    name = metric_of(result, metric)
    assert result.effects is not None
    frame = result.frame()
    frame = frame[(frame["metric"] == name) & frame["site"].notna()].reset_index(drop=True)
    parts = [_parts(str(site)) for site in frame["site"]]
    for i, column in enumerate(("layer", "unit", "index", "point")):
        frame[column] = [part[i] for part in parts]
    frame["site"] = frame["site"].astype(object)
    positions = tuple(result.effects.coords.get("position", ()))
    if not positions:
        frame["position"] = [None] * len(frame)
    _add(frame, result.tables.get("cells"), name, {"p": "p"})
    _add(
        frame,
        result.tables.get("normalised"),
        name,
        {"value": "share", "low": "share_low", "high": "share_high"},
    )
    frame["zero"] = _zero(result, len(frame))
    significant, rule = _significant(frame, float(result.verdict.alpha))
    names = table_of(result, "positions")
    labels = (
        {}
        if names is None
        else {str(p): str(t) for p, t in zip(names["position"], names["label"], strict=True)}
    )
    return Cells(frame, name, positions, labels, significant, rule)


def _parts(site: str) -> tuple[float, str, float, str]:
    found = _SITE.match(site)
    if not found:
        return float("nan"), "", float("nan"), site.split("@")[0]
    layer, unit, index, point = found.groups()
    return float(layer), unit or "", float(index) if index else float("nan"), point


def _key(site: Any, position: Any) -> tuple[str, str]:
    blank = position is None or position != position or position == ""
    if isinstance(position, float) and not blank and position.is_integer():
        position = int(position)
    return str(site), "" if blank else str(position)


def _add(frame: pd.DataFrame, table: pd.DataFrame | None, metric: str, columns: Mapping[str, str]) -> None:
    """Columns of a side table, found by site, position and metric; NaN where it has no such row."""
    rows: dict[tuple[str, str], int] = {}
    if table is not None:
        if "metric" in table.columns:
            table = table[table["metric"].astype(str) == metric]
        at = table["position"].tolist() if "position" in table.columns else [None] * len(table)
        rows = {_key(*key): i for i, key in enumerate(zip(table["site"].tolist(), at, strict=True))}
    where = [rows.get(_key(*key), -1) for key in zip(frame["site"], frame["position"], strict=True)]
    for source, target in columns.items():
        known = None if table is None or source not in table.columns else table[source].to_numpy(float)
        frame[target] = [float("nan") if known is None or i < 0 else float(known[i]) for i in where]


def _zero(result: Result, n: int) -> np.ndarray:
    mask = result.tensors.get("structurally_zero")
    if mask is None:
        return np.zeros(n, bool)
    if mask.size != n:
        raise ResultError(
            f"tensors['structurally_zero'] has the shape {mask.shape} for {n} cells",
            why="it says of every cell whether it could differ at all", instead="shape [site, position]",
        )  # fmt: skip
    return mask.reshape(-1).astype(bool)


def _significant(frame: pd.DataFrame, alpha: float) -> tuple[np.ndarray | None, str]:
    p, value = frame["p"].to_numpy(float), frame["value"].to_numpy(float)
    low, high = frame["null_low"].to_numpy(float), frame["null_high"].to_numpy(float)
    free = ~frame["zero"].to_numpy(bool)
    if np.isfinite(p).any():
        return (np.nan_to_num(p, nan=1.0) <= alpha) & free, f"p ≤ {alpha:g} over the whole map"
    if np.isfinite(low).any():
        return ((value < low) | (value > high)) & free, "outside its null band"
    return None, ""


def describe(row: Mapping[Any, Any], cells: Cells) -> str:
    """What a pointer on a cell shows, one fact a line (plain text, not yet inert)."""
    head = visible(row["site"], most=40)
    if row["position"] is not None:
        head += f" @ {cells.position(row['position'])}"
    if row["zero"]:
        return head + "\ncannot differ: exactly 0"
    if not np.isfinite(row["value"]):
        return head + "\nnot measured"
    lines = [head, f"effect {number(row['value'], sign=True)} {interval(row['low'], row['high'])}".rstrip()]
    if np.isfinite(row["null_low"]):
        lines.append(f"null {number(row['null_low'])} to {number(row['null_high'])}")
    if np.isfinite(row["p"]):
        lines.append(f"p {row['p']:.2g}")
    if np.isfinite(row["share"]):
        lines.append(
            f"share of the gap {number(row['share'])} {interval(row['share_low'], row['share_high'])}"
        )
    lines.append(f"n {int(row['n'])}")
    return "\n".join(lines)


def unique(values: Iterable[Any]) -> list[Any]:
    """The distinct values in order of first appearance."""
    return list(dict.fromkeys(values))
