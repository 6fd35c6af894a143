"""The baseline without any description: what the token, and the one before it, say about an activation.

Means over the tokens and bigrams of the training half, each drawn towards the next coarser one by as much as `LEAN` further
observations would: a bigram seen once says little beyond its token.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEAN", "NGrams"]

LEAN = 1.0
Floats = NDArray[np.float64]


class NGrams:
    """Fitted to activations `values` [row, column] after tokens `before` and at tokens `here` [row]."""

    def __init__(self, before: NDArray[np.int64], here: NDArray[np.int64], values: NDArray[np.floating]) -> None:  # fmt: skip
        rows = np.asarray(values, np.float64)
        self.overall: Floats = rows.mean(0)
        self.tokens, own = np.unique(here, return_inverse=True)
        self.by_token = _leaning(own, len(self.tokens), rows, np.broadcast_to(self.overall, (len(self.tokens), rows.shape[1])))  # fmt: skip
        pairs = _pair(before, here)
        self.pairs, which, own = np.unique(pairs, return_index=True, return_inverse=True)
        self.by_pair = _leaning(own, len(self.pairs), rows, self.of_tokens(here[which]))

    def of_tokens(self, here: NDArray[np.int64]) -> Floats:
        """Predictions from the token alone. Shapes: [row] -> [row, column]."""
        place, known = _find(self.tokens, here)
        return np.asarray(np.where(known[:, None], self.by_token[place], self.overall), np.float64)

    def __call__(self, before: NDArray[np.int64], here: NDArray[np.int64]) -> Floats:
        """Predictions from the bigram, else the token, else the mean. Shapes: [row], [row] -> [row, column]."""
        place, known = _find(self.pairs, _pair(before, here))
        return np.asarray(np.where(known[:, None], self.by_pair[place], self.of_tokens(here)), np.float64)


def _pair(before: NDArray[np.int64], here: NDArray[np.int64]) -> NDArray[np.int64]:
    return (np.asarray(before, np.int64) + 1) * (1 << 31) + here


def _leaning(own: NDArray[np.intp], n: int, rows: Floats, towards: Floats) -> Floats:
    """Means per group, drawn towards another value. Shapes: own [row], rows [row, column], towards [n, column]."""
    order = np.argsort(own, kind="stable")
    sums = np.add.reduceat(rows[order], np.searchsorted(own[order], np.arange(n)), axis=0)
    count = np.bincount(own, minlength=n)[:, None]
    return np.asarray((sums + LEAN * towards) / (count + LEAN), np.float64)


def _find(known: NDArray[np.int64], asked: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    place = np.minimum(np.searchsorted(known, asked), len(known) - 1)
    return place, known[place] == asked
