"""Which prompt and token position each place of a running tensor is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """The window of one forward call.

    Rectangular: `batch` rows of `width` columns, the first of which is absolute column `start` (a cached or
    replayed prefix lies before it); with a `row_map`, row r is here at `row_map[r]`, -1 where it is not. Packed: one
    row of tokens in which row r's columns `starts[r]` to `stops[r]` begin at `offsets[r]`, -1 where it is not.
    """

    batch: int
    width: int
    start: int = 0
    row_map: Tensor | None = None
    offsets: Tensor | None = None
    starts: Tensor | None = None
    stops: Tensor | None = None

    @property
    def packed(self) -> bool:
        """True when all rows lie one after the other in one row of tokens."""
        return self.offsets is not None

    @property
    def shape(self) -> tuple[int, int]:
        """(batch, pos) of a running tensor."""
        return (1, self.width) if self.packed else (self.batch, self.width)

    def locate(self, rows: Tensor, cols: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """Where (row, column) pairs are now.

        Returns (which pairs are in the window, or None for all; first index; second index). Shapes: [pair].
        """
        if self.offsets is not None and self.starts is not None and self.stops is not None:
            first = self.starts[rows]
            inside = (cols >= first) & (cols < self.stops[rows]) & (self.offsets[rows] >= 0)
            at = self.offsets[rows] + cols - first
            zero = torch.zeros_like(rows)
        else:
            inside = (cols >= self.start) & (cols < self.start + self.width)
            at, zero = cols - self.start, rows
            if self.row_map is not None:
                zero = self.row_map[rows]
                inside &= zero >= 0
        if bool(inside.all()):
            return None, zero, at
        keep = inside.nonzero()[:, 0]
        return keep, zero[keep], at[keep]
