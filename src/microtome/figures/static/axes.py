"""An axis of a Plotly figure in pixels: its range, its ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ...errors import ResultError


class Axis:
    """Maps data to pixels. `low` and `high` are the range as Plotly has it (powers of ten for a log axis)."""

    def __init__(self, made: Any, name: str, data: Iterable[Any], start: float, stop: float) -> None:
        self.made, self.name = made, name
        self.start, self.stop = start, stop
        self.log = made.type == "log"
        values = [v for v in data if v is not None]
        words = [v for v in values if isinstance(v, str)]
        self.categories = {w: i for i, w in enumerate(dict.fromkeys(map(str, values)))} if words else {}
        if made.type not in (None, "-", "linear", "log", "category"):
            raise ResultError(
                f"no static picture of a {made.type} axis",
                why="the renderer is small",
                instead="figure().show()",
            )
        self.low, self.high = self._range(values)

    def _range(self, values: list[Any]) -> tuple[float, float]:
        if self.made.range is not None and None not in self.made.range:
            return float(self.made.range[0]), float(self.made.range[1])
        numbers = np.array([self.number(v) for v in values], float)
        numbers = numbers[np.isfinite(numbers)]
        if not numbers.size:
            return 0.0, 1.0
        low, high = float(numbers.min()), float(numbers.max())
        room = 0.06 * (high - low) or 0.5
        low, high = low - room, high + room
        return (high, low) if self.made.autorange == "reversed" else (low, high)

    def number(self, value: Any) -> float:
        """A datum on the axis's linear scale; NaN for what has no place."""
        if self.categories:
            return float(self.categories.get(str(value), math.nan))
        if value is None:
            return math.nan
        number = float(value)
        if self.log:
            return math.log10(number) if number > 0 else math.nan
        return number

    def pixel(self, value: Any) -> float:
        """Where a datum is, in pixels of the figure."""
        return self.place(self.number(value))

    def place(self, number: float) -> float:
        """Where a number of the axis's linear scale is, in pixels."""
        return self.start + (number - self.low) / ((self.high - self.low) or 1.0) * (self.stop - self.start)

    def pixels(self, values: Sequence[Any]) -> list[float]:
        """`pixel` for many."""
        return [self.pixel(v) for v in values]

    def ticks(self) -> list[tuple[float, str]]:
        """Places in pixels and texts (as Plotly's label text) within the range."""
        if self.made.tickvals is not None:
            texts = (
                self.made.ticktext
                if self.made.ticktext is not None
                else [f"{v:g}" for v in self.made.tickvals]
            )
            found = [(self.number(v), str(t)) for v, t in zip(self.made.tickvals, texts, strict=False)]
        elif self.categories:
            found = [(float(i), w) for w, i in self.categories.items()]
        elif self.log:
            found = [
                (float(e), f"{10.0**e:g}")
                for e in range(math.ceil(min(self.low, self.high)), math.floor(max(self.low, self.high)) + 1)
            ]
        else:
            found = nice(self.low, self.high, int(self.made.nticks or 7))
        low, high = sorted((self.low, self.high))
        slack = 1e-6 * (high - low)
        return [(self.place(v), t) for v, t in found if low - slack <= v <= high + slack]


def nice(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Round numbers between two ends, at most about `most`."""
    low, high = sorted((low, high))
    if not high > low:
        return [(low, f"{low:g}")]
    raw = (high - low) / max(most - 1, 1)
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(s * scale for s in (1, 2, 5, 10) if s * scale >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    count = int(math.floor(high / step + 1e-9)) - first + 1
    return [
        ((first + i) * step, f"{round((first + i) * step, 12):g}".replace("-", "−")) for i in range(count)
    ]
