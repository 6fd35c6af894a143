"""Where a capture puts its windows: into memory, or into files from which it can be resumed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from microtome.activations import files
from microtome.activations.items import Items
from microtome.activations.layout import DTYPES, Column, Shard, shards
from microtome.errors import ResourceError
from microtome.model import paths

__all__ = ["InFolder", "InMemory", "Writer"]


class Writer(Protocol):
    """Takes the rows of each window in turn."""

    @property
    def done(self) -> int:
        """Windows that are kept."""

    def put(self, window: tuple[int, int], buffers: Mapping[str, Tensor]) -> None:
        """Keep the rows of one window: site -> [row, ...]."""


class InMemory:
    """Whole arrays in memory. `done` counts windows."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns, self.done = columns, 0
        self.arrays = {c.site: torch.empty((c.rows, *c.shape), dtype=DTYPES[c.dtype][0]) for c in columns}

    def put(self, window: tuple[int, int], buffers: Mapping[str, Tensor]) -> None:
        """Keep the rows of one window."""
        for column in self.columns:
            low, high = int(column.first[window[0]]), int(column.first[window[1]])
            self.arrays[column.site][low:high] = buffers[column.site]
        self.done += 1


class InFolder:
    """Files in a folder; see files.py for their order. Hold the folder's lock while using it."""

    def __init__(self, folder: Path, request: Mapping[str, Any], columns: Sequence[Column], items: Items) -> None:  # fmt: skip
        self.folder, self.request, self.columns = folder, dict(request), columns
        self.shards = shards(columns, request["shards"])
        self.pieces: list[list[str]] = []
        if (folder / files.CURSOR).exists():
            self.pieces = files.read_json(folder / files.CURSOR)["pieces"]
        self._open(items)

    @property
    def done(self) -> int:
        """Windows that are on the disk."""
        return len(self.pieces)

    def _open(self, items: Items) -> None:
        if not self.pieces:
            size = sum(s.size for s in self.shards)
            _require_space(self.folder, size + 8 * len(items.ids) + (1 << 20))
            self._cursor()
            save_items(items, self.folder / files.ITEMS)
            for shard in self.shards:
                _fresh(self.folder / (shard.name + files.PARTIAL), shard)
            files.disk.fsync(self.folder)
        for shard in self.shards:
            if not self._path(shard).exists():
                raise ResourceError(f"{self._path(shard)} is missing", why="the capture that is to be gone on with had written it",
                                    instead="capture anew in a new folder")  # fmt: skip

    def _path(self, shard: Shard) -> Path:
        partial = self.folder / (shard.name + files.PARTIAL)
        return partial if partial.exists() else self.folder / shard.name

    def _cursor(self) -> None:
        content = {"format": files.FORMAT, "schema_version": files.SCHEMA_VERSION, **self.request}
        files.put_json(self.folder / files.CURSOR, {**content, "pieces": self.pieces})

    def check(self, windows: Sequence[tuple[int, int]]) -> None:
        """Compare what is written already with its digests.

        Raises
        ------
        ResourceError: it changed since.
        """
        for window, digests in zip(windows, self.pieces, strict=False):
            check_piece(self.folder, self.columns, self.shards, window, digests)

    def put(self, window: tuple[int, int], buffers: Mapping[str, Tensor]) -> None:
        """Write the rows of one window, force them to the disk, then count them."""
        digests = {}
        home = {site: shard for shard in self.shards for site in shard.begins}
        handles = {
            s.name: os.open(self._path(s), os.O_RDWR | getattr(os, "O_BINARY", 0)) for s in self.shards
        }
        try:
            for column in self.columns:
                content = memoryview(raw(buffers[column.site])).cast("B")
                shard = home[column.site]
                at = shard.begins[column.site] + int(column.first[window[0]]) * column.row_bytes
                _write_all(handles[shard.name], content, at)
                digests[column.site] = files.digest_of(content)
        finally:
            for handle in handles.values():
                os.close(handle)
        for shard in self.shards:
            files.disk.fsync(self._path(shard))
        self.pieces.append([digests[c.site] for c in self.columns])
        self._cursor()

    def finish(self) -> dict[str, Any]:
        """Give the files their names and write the manifest, which is returned."""
        for shard in self.shards:
            partial = self.folder / (shard.name + files.PARTIAL)
            if partial.exists():
                files.disk.rename(partial, self.folder / shard.name)
        files.disk.fsync(self.folder)
        content = {"format": files.FORMAT, "schema_version": files.SCHEMA_VERSION, **self.request}
        content["pieces"] = self.pieces
        content["files"] = {s.name: s.size for s in self.shards}
        files.put_json(self.folder / files.MANIFEST, content)
        clear(self.folder)
        return content


def clear(folder: Path) -> None:
    """Remove the cursor of a finished capture."""
    if (folder / files.CURSOR).exists():
        (folder / files.CURSOR).unlink()
        files.disk.fsync(folder)


def raw(values: Tensor) -> Any:
    """The bytes of a tensor as a flat NumPy array that shares its memory."""
    return values.contiguous().reshape(-1).view(torch.uint8).numpy()


def save_items(items: Items, path: Path) -> None:
    """Token ids as safetensors."""
    from safetensors.numpy import save

    files.put(path, save({"ids": items.ids, "starts": items.starts}))


def check_piece(
    folder: Path,
    columns: Sequence[Column],
    found: Sequence[Shard],
    window: tuple[int, int],
    digests: Sequence[str],
    sites: Sequence[str] = (),
) -> None:
    """Compare one window's rows of some sites (none named: all) with their digests.

    Raises
    ------
    ResourceError: they are not what was written.
    """
    home = {site: shard for shard in found for site in shard.begins}
    for column, told in zip(columns, digests, strict=True):
        if sites and column.site not in sites:
            continue
        shard = home[column.site]
        path = folder / (shard.name + files.PARTIAL)
        path = path if path.exists() else folder / shard.name
        low, high = (int(column.first[w]) * column.row_bytes for w in window)
        try:
            with path.open("rb") as file:
                file.seek(shard.begins[column.site] + low)
                content = file.read(high - low)
        except OSError as error:
            raise ResourceError(f"{path} cannot be read", why=str(error), instead="capture anew in a new folder") from error  # fmt: skip
        if files.digest_of(content) != told:
            raise ResourceError(f"{column.site}, items {window[0]} to {window[1] - 1}: {path} does not hold what was written", why="the digest differs: the file was changed or damaged",
                                instead="take it from a copy, or capture anew in a new folder")  # fmt: skip


def _require_space(folder: Path, needed: int) -> None:
    free = paths.free_bytes(folder)
    if free < needed:
        raise ResourceError(f"these activations need {needed / 1e9:.2f} GB in {folder}; there is {free / 1e9:.2f} GB", why="nothing was written",
                            instead="fewer sites, a single position (@-1), less data, or a folder on a larger disk")  # fmt: skip


def _fresh(path: Path, shard: Shard) -> None:
    with path.open("wb") as file:
        file.write(shard.header)
        file.truncate(shard.size)
    files.disk.fsync(path)


def _write_all(handle: int, content: memoryview, at: int) -> None:
    os.lseek(handle, at, os.SEEK_SET)
    while len(content):
        content = content[os.write(handle, content) :]
