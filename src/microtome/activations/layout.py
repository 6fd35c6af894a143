"""What is stored where, decided before the first forward: windows of items, batches in them, tensors in files.

Everything follows from the data, the sites and the batch size, so an interrupted capture goes on with the very batches
that an uninterrupted one would have run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from microtome.activations.items import Items

__all__ = ["Column", "Shard", "batches", "grouped", "shards", "windows"]

WINDOW_BYTES = 64 << 20
"""Activations written in one go. One window is written while the next is run, so two bound the memory of a capture."""
WINDOW_TOKENS = 1 << 16
"""Tokens run at most between two points from which a capture resumes."""
SHARD_BYTES = 2 << 30
"""Sites share a file up to this size; a site is never divided, so that it can be mapped as one array."""
WASTE = 1.125
"""How much longer than its shortest item a batch may be: what padding may cost."""
_PAGE = 4096

DTYPES: dict[str, tuple[torch.dtype, np.dtype[Any]]] = {
    "F64": (torch.float64, np.dtype("<f8")),
    "F32": (torch.float32, np.dtype("<f4")),
    "F16": (torch.float16, np.dtype("<f2")),
    "BF16": (torch.bfloat16, np.dtype("<u2")),  # NumPy has no bfloat16: its bits, widened when they are read
}
"""Safetensors' name of a dtype -> torch's, and NumPy's for the bytes."""


@dataclass(frozen=True)
class Column:
    """One site: rows x shape of a dtype. `low`, `high`: per item the half-open range of positions. `first`: its first row."""

    site: str
    shape: tuple[int, ...]
    dtype: str
    low: np.ndarray
    high: np.ndarray
    first: np.ndarray

    @classmethod
    def of(cls, site: str, shape: Sequence[int], dtype: str, low: np.ndarray, high: np.ndarray) -> Column:
        """A column; where its items' rows begin follows from the ranges."""
        return cls(site, tuple(shape), dtype, low, high, np.concatenate([[0], np.cumsum(high - low)]))

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape, dtype=np.int64)) * DTYPES[self.dtype][1].itemsize

    @property
    def rows(self) -> int:
        """Rows of all items."""
        return int(self.first[-1])

    @property
    def size(self) -> int:
        """Bytes of all rows."""
        return self.rows * self.row_bytes


@dataclass(frozen=True)
class Shard:
    """A safetensors file: its name, its header, and at which byte each column begins in it."""

    name: str
    header: bytes
    begins: dict[str, int]
    size: int


def grouped(columns: Sequence[Column]) -> list[list[str]]:
    """Which sites share a file, in their order."""
    groups: list[list[Column]] = [[]]
    for column in columns:
        if groups[-1] and sum(c.size for c in groups[-1]) + column.size > SHARD_BYTES:
            groups.append([])
        groups[-1].append(column)
    return [[c.site for c in group] for group in groups]


def shards(columns: Sequence[Column], groups: Sequence[Sequence[str]]) -> list[Shard]:
    """The files of grouped columns, wide dtypes first within a file so that every array is aligned."""
    by_site = {c.site: c for c in columns}
    return [
        _shard(f"shard-{i:04d}.safetensors", [by_site[s] for s in group]) for i, group in enumerate(groups)
    ]


def _shard(name: str, columns: Sequence[Column]) -> Shard:
    entries: dict[str, Any] = {}
    at = 0
    for column in sorted(columns, key=lambda c: -DTYPES[c.dtype][1].itemsize):
        entries[column.site] = {
            "dtype": column.dtype,
            "shape": [column.rows, *column.shape],
            "data_offsets": [at, at + column.size],
        }
        at += column.size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _PAGE)  # the format allows spaces here; arrays then begin on a page
    header = len(text).to_bytes(8, "little") + text
    begins = {site: len(header) + entry["data_offsets"][0] for site, entry in entries.items()}
    return Shard(name, header, begins, len(header) + at)


def windows(items: Items, columns: Sequence[Column], size: int, tokens: int) -> list[tuple[int, int]]:
    """Half-open ranges of items, each of at most `size` bytes of activations and `tokens` tokens, or of one item."""
    cost = np.zeros(len(items), np.int64)
    for column in columns:
        cost += (column.high - column.low) * column.row_bytes
    found: list[tuple[int, int]] = []
    begin, held, run = 0, 0, 0
    for item, (own, length) in enumerate(zip(cost.tolist(), items.lengths.tolist(), strict=True)):
        if item > begin and (held + own > size or run + length > tokens):
            found.append((begin, item))
            begin, held, run = item, 0, 0
        held, run = held + own, run + length
    return [*found, (begin, len(items))]


def batches(
    items: Items, window: tuple[int, int], tokens: int, *, alike: bool = False
) -> Iterator[list[int]]:
    """Items of a window in batches of similar length, of at most `tokens` tokens with padding, or of one item.

    alike: no padding at all, for models in which pads leak into the numbers.
    """
    lengths = items.lengths
    order = sorted(range(*window), key=lambda i: (int(lengths[i]), i))
    batch: list[int] = []
    for item in order:
        length = int(lengths[item])
        most = int(lengths[batch[0]]) * (1.0 if alike else WASTE) if batch else 0.0
        if batch and (length > most or length * (len(batch) + 1) > tokens):
            yield batch
            batch = []
        batch.append(item)
    yield batch
