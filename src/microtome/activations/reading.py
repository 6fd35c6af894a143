"""`Store`: what was captured, as arrays by address."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int
from torch import Tensor

from microtome.activations import files
from microtome.activations.items import Items, items_of
from microtome.activations.layout import DTYPES, Column, Shard, shards
from microtome.activations.writing import check_piece, raw
from microtome.errors import ResourceError, SiteError
from microtome.results.frozen import FrozenDict, freeze_json
from microtome.sites import Site, parse

if TYPE_CHECKING:
    from microtome.facade import Model

__all__ = ["Store", "columns_of"]


class Store:
    """Activations of a dataset by address; made by `mt.store(...)`, read again by `Store.open(folder)`.

    `store["L3.resid_post@-1"]` is [item, d], `store["L3.resid_post"]` [row, d] over all positions of all items, with
    `store.rows(site)` saying which; heads keep their axes as in a trace. Arrays are read-only and memory-mapped (bfloat16,
    which NumPy lacks, is widened to float32 on reading, and so copied). A site's bytes are compared with their digests
    when it is first read.
    """

    def __init__(
        self,
        manifest: Mapping[str, Any],
        items: Items,
        columns: Sequence[Column],
        *,
        arrays: Mapping[str, Tensor] | None = None,
        folder: Path | None = None,
        temporary: bool = False,
    ) -> None:
        self.manifest: Mapping[str, Any] = FrozenDict(freeze_json(dict(manifest), "manifest"))
        self.items, self.folder, self.temporary = items, folder, temporary
        self._columns = {c.site: c for c in columns}
        self._arrays = arrays
        self._seen: set[str] = set()
        if temporary and folder is not None:
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    @classmethod
    def open(cls, folder: str | Path) -> Store:
        """The store in a folder.

        Raises
        ------
        ResourceError: none there, half-written (how to go on is said), damaged, or of a newer schema.
        """
        place = Path(folder).expanduser()
        if not (place / files.MANIFEST).exists():
            raise _no_store(place)
        manifest = files.read_json(place / files.MANIFEST)
        for name, size in manifest["files"].items():
            there = (place / name).stat().st_size if (place / name).exists() else -1
            if there != size:
                raise ResourceError(f"{place / name} {'is missing' if there < 0 else f'has {there} bytes'}", why=f"the manifest says {size} bytes",
                                    instead="take it from a copy, or capture anew in a new folder")  # fmt: skip
        items = _read_items(place / files.ITEMS, manifest)
        store = cls(manifest, items, columns_of(manifest, items), folder=place)
        for shard in store._shards:
            with (place / shard.name).open("rb") as file:
                if file.read(len(shard.header)) != shard.header:
                    raise ResourceError(f"{place / shard.name} is not the file that was written", why="its header differs",
                                        instead="take it from a copy, or capture anew in a new folder")  # fmt: skip
        return store

    @property
    def sites(self) -> tuple[str, ...]:
        """The addresses stored, one tensor each, in the order asked for."""
        return tuple(self._columns)

    @property
    def documents(self) -> tuple[Any, ...]:
        """Which document each item is from, [item]; () where the data did not say."""
        return self.items.documents

    def __query__(self) -> dict[str, Any]:
        """What records say of it: the model and data it was made of, and the sites."""
        return {
            "store": {
                "model": self.manifest["model"],
                "data": self.manifest["data"],
                "sites": list(self.sites),
            }
        }

    def __len__(self) -> int:
        return len(self.items)

    def __contains__(self, site: str | Site) -> bool:
        return str(parse(site)) in self._columns

    def __repr__(self) -> str:
        where = "in memory" if self.folder is None else f"in {self.folder}"
        size = sum(c.size for c in self._columns.values())
        return f"<Store: {len(self._columns)} sites of {len(self)} items, {size / 1e6:.1f} MB {where}>"

    def __getitem__(self, site: str | Site) -> np.ndarray:
        """The values at an address (see the class), read-only.

        Raises
        ------
        SiteError: not in this store. ResourceError: the bytes are not what was written.
        """
        column = self._column(site)
        bits = self.raw(site)
        return _widened(bits) if column.dtype == "BF16" else bits

    def raw(self, site: str | Site) -> np.ndarray:
        """As stored: for bfloat16 its bits as uint16. Shapes as the values'.

        Raises
        ------
        SiteError, ResourceError: as for the values.
        """
        column = self._column(site)
        shape, dtype = (column.rows, *column.shape), DTYPES[column.dtype][1]
        if self._arrays is not None:
            out: np.ndarray = raw(self._arrays[column.site]).view(dtype).reshape(shape)
            out.flags.writeable = False
            return out
        assert self.folder is not None
        self._check(column)
        shard = next(s for s in self._shards if column.site in s.begins)
        if not column.size:
            return np.zeros(shape, dtype)
        return np.memmap(self.folder / shard.name, dtype, "r", shard.begins[column.site], shape)

    def chunks(self, site: str | Site, size: int = 8192) -> Iterator[np.ndarray]:
        """The rows in order, `size` at a time, without ever holding all of them. Shapes: [up to size, ...]."""
        column, bits = self._column(site), self.raw(site)
        for start in range(0, len(bits), size):
            part = bits[start : start + size]
            yield _widened(part) if column.dtype == "BF16" else part

    def rows(self, site: str | Site) -> tuple[Int[np.ndarray, " row"], Int[np.ndarray, " row"]]:
        """(item, position) of each row; positions count the item's own tokens, 0 is the first."""
        column = self._column(site)
        counts = column.high - column.low
        item = np.repeat(np.arange(len(self)), counts)
        return item, np.arange(column.rows) - column.first[item] + column.low[item]

    def check(self, model: Model | None = None, data: Any = None) -> None:
        """Refuse a store of another model, tokenizer or data.

        Raises
        ------
        ResourceError: which of them differs.
        """
        from microtome.activations.capturing import same, tokenizer_hash

        asked: dict[str, Any] = {}
        if model is not None:
            asked = {"model": model.hash, "tokenizer": tokenizer_hash(model.tokenizer)}
            if data is not None:
                sites = [parse(s) for s in self.sites]
                asked["data"] = items_of(model, data, sites, self.manifest["long"]).hash
        same(asked, self.manifest, self.folder)

    @cached_property
    def _shards(self) -> list[Shard]:
        return shards(list(self._columns.values()), self.manifest["shards"])

    def _check(self, column: Column) -> None:
        """Compare a site's bytes with their digests, once."""
        if column.site in self._seen or self.folder is None:
            return
        columns = list(self._columns.values())
        for window, digests in zip(self.manifest["windows"], self.manifest["pieces"], strict=True):
            check_piece(self.folder, columns, self._shards, window, digests, [column.site])
        self._seen.add(column.site)

    def _column(self, site: str | Site) -> Column:
        name = str(parse(site))
        if name not in self._columns:
            near = [s for s in self._columns if parse(s).point == parse(site).point] or list(self._columns)
            raise SiteError(f"{name} is not in this store", why=f"it has {len(self._columns)} sites", instead=f"for example {', '.join(near[:3])}")  # fmt: skip
        return self._columns[name]


def columns_of(manifest: Mapping[str, Any], items: Items) -> list[Column]:
    """The columns that a manifest names."""
    found = []
    for entry in manifest["columns"]:
        low, high = items.ranges(parse(entry["site"]))
        found.append(Column.of(entry["site"], entry["shape"], entry["dtype"], low, high))
    return found


def _widened(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits as float32. Shapes: any -> same."""
    out = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    out.flags.writeable = False
    return out


def _read_items(path: Path, manifest: Mapping[str, Any]) -> Items:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ResourceError(f"{path} cannot be read", why=str(error), instead="take it from a copy, or capture anew in a new folder") from error  # fmt: skip
    spans = {k: tuple(None if s is None else (s[0], s[1]) for s in v) for k, v in manifest["spans"].items()}
    cut = tuple((a, b, c) for a, b, c in manifest["cut"])
    items = Items(found["ids"], found["starts"], spans, tuple(manifest["documents"]), manifest["about"], cut)
    if items.hash != manifest["data"]:
        raise ResourceError(f"{path} does not hold the tokens that were run", why="their hash is not the manifest's",
                            instead="take it from a copy, or capture anew in a new folder")  # fmt: skip
    return items


def _no_store(place: Path) -> ResourceError:
    if (place / files.CURSOR).exists():
        told = files.read_json(place / files.CURSOR)
        return ResourceError(f"the store in {place} is half-written: {len(told['pieces'])} of {len(told['windows'])} parts", why="its capture was interrupted",
                             instead="call mt.store again with the same model, data, sites and folder: it goes on where it was")  # fmt: skip
    why = "it has no manifest" if place.is_dir() else "there is no such folder"
    return ResourceError(f"no store in {place}", why=why, instead="give a folder that mt.store wrote")
