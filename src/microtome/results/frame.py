"""The one long frame that every result gives: one row per cell and metric, always the same columns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ResultError
from .labelled import Labelled, mean_and_count

if TYPE_CHECKING:
    import pandas as pd

CELL = ("site", "layer", "head", "position")
KEYS = (*CELL, "metric")
BOUNDS = ("low", "high", "null_low", "null_high")
COLUMNS = (*KEYS, "value", *BOUNDS, "n")

_SITE = re.compile(r"^L(\d+)(?:H(\d+))?\.\w+(?:@(-?\d+|[A-Za-z_]\w*))?$")


def check_effects(effects: Labelled) -> None:
    """Raises ResultError unless dims are some of site, layer, head, position, then prompt, then metric."""
    dims = effects.dims
    if dims[-2:] != ("prompt", "metric") or not set(dims[:-2]) <= set(CELL):
        raise ResultError(
            f"effects have the dims {dims}",
            why=f"they are [cell..., prompt, metric], with cells named by {', '.join(CELL)}, so that every "
            "effect keeps its prompts and finds its row in frame()",
            instead="name neurons, features and edges by their site (L3N1021.neurons); other arrays go to tensors=",
        )
    for dim, kind, word in (("site", str, "text"), ("layer", int, "integers"), ("head", int, "integers")):
        if dim in dims and not all(isinstance(label, kind) for label in effects.coords[dim]):
            raise ResultError(
                f"{dim} has labels that are not {word}", why="frame() has one type per column", instead=word
            )
    if not all(isinstance(label, str) for label in effects.coords["metric"]):
        raise ResultError(
            "metric has labels that are not text", why="metrics have names", instead="('logit_diff',)"
        )


def frame(effects: Labelled | None, cells: pd.DataFrame | None) -> pd.DataFrame:
    """Rows for every cell x metric of `effects`, then for the rows of `cells` that `effects` has not.

    `value` is the mean over the prompts that were measured (NaN: this prompt has no such cell), `n` their
    number. low, high, null_low and null_high come from `cells`, NaN elsewhere. Layer, head and position
    are read from the site's address where they are no dimension of their own. Row order: C order.
    Columns: site and metric text, layer and head Int64, position object (integer or span), numbers float64,
    n int64.

    Raises ResultError when `cells` contradicts `effects` or names a cell twice.
    """
    blocks = []
    if effects is not None:
        blocks.append(_from_effects(effects))
    if cells is not None:
        extra = _merge(blocks[0] if blocks else None, effects, cells)
        blocks.append(extra)
    columns = {name: [x for block in blocks for x in block[name]] for name in COLUMNS}
    return _typed(columns)


def _typed(columns: Mapping[str, list[Any]]) -> pd.DataFrame:
    import pandas as pd

    made: dict[str, Any] = {}
    for name in COLUMNS:
        if name in ("site", "metric"):
            made[name] = pd.Series(columns[name], dtype="string")
        elif name in ("layer", "head"):
            made[name] = pd.Series(columns[name], dtype="Int64")
        elif name == "position":
            made[name] = pd.Series(columns[name], dtype=object)
        else:
            made[name] = pd.Series(columns[name], dtype="int64" if name == "n" else "float64")
    return pd.DataFrame(made)


def _from_effects(effects: Labelled) -> dict[str, list[Any]]:
    mean, count = mean_and_count(effects.values, (len(effects.dims) - 2,), skipna=True)
    dims = (*effects.dims[:-2], "metric")
    shape = mean.shape
    labelled = Labelled(np.zeros(shape, np.float32), dims, {d: effects.coords[d] for d in dims})
    columns: dict[str, list[Any]] = {d: labelled.label_column(d) for d in dims}
    size = mean.size
    for name in KEYS:
        columns.setdefault(name, [None] * size)
    columns["value"], columns["n"] = mean.ravel().tolist(), count.ravel().tolist()
    for name in BOUNDS:
        columns[name] = [float("nan")] * size
    _read_sites(columns, [d for d in CELL if d not in dims])
    return columns


def _read_sites(columns: dict[str, list[Any]], empty: list[str]) -> None:
    known: dict[Any, dict[str, Any]] = {}
    for row, site in enumerate(columns["site"]):
        if site not in known:
            found = _SITE.match(site) if isinstance(site, str) else None
            parts = found.groups() if found else (None, None, None)
            known[site] = dict(zip(("layer", "head", "position"), (_label(p) for p in parts), strict=True))
        for name in empty:
            if name != "site" and columns[name][row] is None:
                columns[name][row] = known[site][name]


def _label(text: str | None) -> str | int | None:
    return int(text) if text is not None and text.lstrip("-").isdigit() else text


def _plain(value: Any) -> Any:
    """A table's entry as a label: pandas stores integers beside gaps as floats."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str) or type(value).__name__ in ("NAType", "NaTType"):
        return value if isinstance(value, str) else None
    if isinstance(value, float):
        return None if value != value else int(value) if value.is_integer() else value
    return value


def _number(value: Any) -> float:
    value = _plain(value)
    return float("nan") if value is None else float(value)


def _merge(
    rows: dict[str, list[Any]] | None, effects: Labelled | None, cells: pd.DataFrame
) -> dict[str, list[Any]]:
    """Write the bounds of `cells` into `rows`; give back the rows of `cells` that `effects` has not."""
    dims = (*effects.dims[:-2], "metric") if effects is not None else ("metric",)
    _need(cells, dims, "to find the cell")
    keys = tuple(k for k in KEYS if k in cells.columns)
    table = {name: cells[name].tolist() for name in COLUMNS if name in cells.columns}
    lookup = {d: {label: i for i, label in enumerate(effects.coords[d])} for d in dims} if effects else {}
    shape = tuple(len(lookup[d]) for d in dims) if effects else ()
    extra: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    seen: set[tuple[Any, ...]] = set()
    for row in range(len(cells)):
        key = {k: _plain(table[k][row]) for k in keys}
        index = [lookup[d].get(key[d]) for d in dims] if effects else [None]
        found = None not in index
        identity = tuple(key[d] for d in dims) if found else tuple(key.values())
        if identity in seen:
            raise ResultError(
                f"tables['cells'] has two rows for {key}",
                why="a cell has one interval",
                instead="keep one of them",
            )
        seen.add(identity)
        numbers = {b: _number(table[b][row]) if b in table else float("nan") for b in BOUNDS}
        _check_bounds(key, numbers)
        value = _number(table["value"][row]) if "value" in table else float("nan")
        if found and rows is not None:
            at = int(np.ravel_multi_index([i for i in index if i is not None], shape))
            _check_value(key, value, rows["value"][at])
            for b in BOUNDS:
                rows[b][at] = numbers[b]
            continue
        _need(cells, ("value", "n"), f"for {key}, of which effects know nothing")
        for name in COLUMNS:
            extra[name].append(key.get(name) if name in KEYS else numbers.get(name, value))
        extra["n"][-1] = _count(key, table["n"][row])
    _read_sites(extra, list(CELL))
    return extra


def _count(key: Mapping[str, Any], value: Any) -> int:
    count = _plain(value)
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ResultError(
            f"tables['cells'] has n={value!r} for {key}", why="n counts prompts", instead="an integer"
        )
    return count


def _need(cells: pd.DataFrame, columns: tuple[str, ...], purpose: str) -> None:
    missing = [name for name in columns if name not in cells.columns]
    if missing:
        raise ResultError(
            f"tables['cells'] has no column {', '.join(map(repr, missing))}",
            why=f"needed {purpose}",
            instead=f"its columns are {list(cells.columns)}; add the missing",
        )


def _check_bounds(key: Mapping[str, Any], numbers: Mapping[str, float]) -> None:
    for low, high in (("low", "high"), ("null_low", "null_high")):
        if numbers[low] > numbers[high]:
            raise ResultError(
                f"tables['cells'] has {low} {numbers[low]:g} above {high} {numbers[high]:g} for {key}",
                why="an interval runs from low to high",
                instead="swap them",
            )


def _check_value(key: Mapping[str, Any], value: float, mean: float) -> None:
    if value == value and not np.isclose(value, mean, rtol=1e-3, atol=1e-5, equal_nan=False):
        raise ResultError(
            f"tables['cells'] says {value:g} for {key}, the effects' mean over prompts is {mean:g}",
            why="one cell would show two numbers under one metric's name",
            instead="leave the column out, or give the other number its own metric name",
        )
