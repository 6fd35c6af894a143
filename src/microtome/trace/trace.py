"""What a run returns: logits, captures by address, and a receipt for every edit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.errors import EditError, SiteError
from microtome.model.facts import Facts
from microtome.model.tokens import Tokens
from microtome.sites import Site, expand, parse
from microtome.trace.place import Places, places
from microtome.trace.session import Read, Receipt

Key = tuple[str, int | None, bool]


@dataclass(frozen=True)
class Trace:
    """One run of the model.

    `t["L9.z"]` is [prompt, pos, head, d_head]; `t["L9H6.z@-1"]` [prompt, d_head]; `t["L9.pattern"]` [prompt, head,
    query, key]. A slice or span keeps its axis, ragged spans are filled with NaN. Reads at pads are NaN.
    """

    tokens: Tokens
    facts: Facts
    numerics: Mapping[str, str]
    receipts: tuple[Receipt, ...]
    reads: Mapping[Key, Read] = field(repr=False)
    raw_logits: Tensor | None = field(repr=False, default=None)

    def __repr__(self) -> str:
        disk = f", {len(self.files)} of them on disk in {self.files[0].parent}" if self.files else ""
        edits = f", {len(self.receipts)} edits" if self.receipts else ""
        return f"Trace({len(self.tokens)} prompts, {len(self.reads)} captures{disk}{edits}, {self.numerics['dtype']}, {self.numerics['attention']})"

    @property
    def logits(self) -> Float[Tensor, "prompt pos d_vocab"]:
        """Logits at every position ("all") or at each prompt's last own token ("last", pos of size 1). NaN at pads.

        Raises
        ------
        SiteError: the run was asked for no logits.
        """
        if self.raw_logits is None:
            raise SiteError(
                "this run kept no logits", why="it ran with logits=None", instead='logits="all" or "last"'
            )
        if self.raw_logits.shape[1] == 1 and self.tokens.ids.shape[1] != 1:
            return self.raw_logits
        return _blank(self.raw_logits, self.mask)

    @property
    def files(self) -> tuple[Path, ...]:
        """The safetensors files that hold captures beyond the run's memory budget."""
        spills = {id(r.spill): r.spill for r in self.reads.values() if r.spill is not None}
        return tuple(path for spill in spills.values() for path in spill.files)

    @property
    def mask(self) -> Bool[Tensor, "prompt pos"]:
        """True at a prompt's own tokens."""
        return self.tokens.mask

    @property
    def positions(self) -> Int[Tensor, "prompt pos"]:
        """Each column's position in its own prompt; -1 at pads."""
        own = self.mask.long().cumsum(-1) - 1
        return torch.where(self.mask, own, -1)

    def __contains__(self, site: str | Site) -> bool:
        parsed = parse(site)
        layer = parsed.layer if isinstance(parsed.layer, int) else None
        return (parsed.point, layer, parsed.before) in self.reads

    def __getitem__(self, site: str | Site) -> Tensor:
        """The value at an address (see the class for shapes).

        Raises
        ------
        SiteError: several tensors named, not captured, or not in this model.
        """
        single = self._single(site)
        rows = list(range(len(self.tokens)))
        if single.at is None:
            read = self._read(single)
            if read.value is not None and read.rows is None:
                return self._whole(read, single)
        where = places(single, self.tokens, rows)
        values = self._keys(self._gather(single, where.rows, where.cols), single)
        if single.row is not None and single.row.square:
            values = self._blank_keys(values, where.rows)
        if single.row is not None and single.row.square and not single.unit:
            return _shaped(values, where).transpose(1, 2) if not where.single else values
        return _shaped(values, where)

    def at_places(self, site: Site, where: Places, tokens: Tokens) -> Tensor:
        """Values for another run's places, position by position. Shapes: [pair, ...].

        Raises
        ------
        EditError: another number of prompts, or positions that do not align.
        """
        if len(self.tokens) != len(tokens):
            raise EditError(f"the source trace has {len(self.tokens)} prompts, the run {len(tokens)}", why="prompt i is patched from prompt i",
                            instead="run the source on as many prompts")  # fmt: skip
        rows = sorted(set(where.rows.tolist()))
        mine = places(site, self.tokens, rows)
        if tuple(n for n in mine.per_row) != tuple(n for n in where.per_row if n):
            raise EditError(f"{site}: source and edited prompts do not align", why=f"positions per prompt: {mine.per_row} against {where.per_row}",
                            instead="use prompts of equal length, or a position or span that both have")  # fmt: skip
        values = self._gather(self._single(site), mine.rows, mine.cols)
        return self._own_keys(values, mine.rows) if site.row is not None and site.row.square else values

    def _own_keys(self, values: Tensor, rows: Tensor) -> Tensor:
        """Key columns as own positions, NaN past a prompt's end. Shapes: [pair, ..., key column] -> [pair, ..., own key]."""
        if not self.tokens.padded:
            return values
        starts, lengths = torch.tensor(self.tokens.starts)[rows], torch.tensor(self.tokens.lengths)[rows]
        own = torch.arange(values.shape[-1])
        cols = (own + starts[:, None]).clamp_max(values.shape[-1] - 1).to(values.device)
        shape = (len(rows), *[1] * (values.dim() - 2), values.shape[-1])
        out = values.gather(-1, cols.view(shape).expand_as(values))
        return out.masked_fill((own >= lengths[:, None]).to(values.device).view(shape), float("nan"))

    def check_numerics(self, numerics: Mapping[str, str], what: str) -> None:
        """Refuse to mix kernels or dtypes.

        Raises
        ------
        EditError: the trace was made with another dtype or attention implementation.
        """
        for name in ("dtype", "attention"):
            if self.numerics[name] != numerics[name]:
                raise EditError(
                    f"{what}: the source ran with {name} {self.numerics[name]}, this run with {numerics[name]}",
                    why="base, donor and patched runs must share kernel and dtype, or their difference is noise",
                    instead='make both runs alike: model.run(..., attention="eager") sets it for one run',
                )

    def _single(self, site: str | Site) -> Site:
        found = expand(site, self.facts)
        if len(found) != 1:
            raise SiteError(
                f'"{site}" names {len(found)} tensors',
                why="a trace is indexed by one",
                instead=f'for example t["{found[0]}"]',
            )
        return found[0]

    def _read(self, site: Site) -> Read:
        layer = site.layer if isinstance(site.layer, int) else None
        read = self.reads.get((site.point, layer, site.before))
        if read is None or read.value is None:
            known = ", ".join(
                sorted({f"L{key[1]}.{key[0]}" if key[1] is not None else key[0] for key in self.reads})[:6]
            )
            raise SiteError(
                f"{site} was not captured",
                why=f"this run captured: {known or 'nothing'}",
                instead=f'capture=["{site.bare}"]',
            )
        return read

    def _whole(self, read: Read, site: Site) -> Tensor:
        value = read.value
        assert value is not None
        value = _blank(value, self.mask)
        if isinstance(site.index, int):
            value = value[:, :, _slot(read, site)]
            if site.row is not None and site.row.square:
                return self._blank_keys(value)
            return value
        if site.row is not None and site.row.square:
            return self._blank_keys(value.transpose(1, 2))
        return value

    def _blank_keys(self, value: Tensor, rows: Tensor | None = None) -> Tensor:
        """NaN at keys that are pads. Shapes: [prompt, ..., key], or [pair, ..., key] with the prompt of each pair."""
        if not self.tokens.padded:
            return value
        mask = (self.mask if rows is None else self.mask[rows]).to(value.device)
        return value.masked_fill(~mask.view(len(mask), *[1] * (value.dim() - 2), -1), float("nan"))

    def _gather(self, site: Site, rows: Tensor, cols: Tensor) -> Tensor:
        read = self._read(site)
        value = read.value
        assert value is not None
        if read.rows is not None and read.cols is not None:
            value = value[_lookup(read, rows, cols, site)]
        else:
            value = value[rows, cols]
        if isinstance(site.index, int):
            value = value[:, _slot(read, site)]
        return value

    def _keys(self, values: Tensor, site: Site) -> Tensor:
        """Narrow the key axis of a pattern read to its source position."""
        if site.source is None:
            return values
        if self.tokens.padded or site.source.span:
            raise SiteError(f"{site}: keys by span or in padded prompts are read one prompt at a time", why="they differ between prompts",
                            instead="read the whole pattern and index its key axis")  # fmt: skip
        low, high = site.source.resolve(self.tokens.ids.shape[1])
        return values[..., low] if site.source.single else values[..., low:high]


def _slot(read: Read, site: Site) -> int:
    assert isinstance(site.index, int)
    if read.heads is None:
        return site.index
    found = (read.heads == site.index).nonzero()
    if not len(found):
        raise SiteError(
            f"{site} was not captured",
            why=f"the run captured only {read.heads.tolist()}",
            instead=f'capture=["{site.bare}"]',
        )
    return int(found[0, 0])


def _lookup(read: Read, rows: Tensor, cols: Tensor, site: Site) -> Tensor:
    assert read.rows is not None and read.cols is not None
    kept = {
        pair: place for place, pair in enumerate(zip(read.rows.tolist(), read.cols.tolist(), strict=True))
    }
    try:
        return torch.tensor(
            [kept[pair] for pair in zip(rows.tolist(), cols.tolist(), strict=True)], dtype=torch.long
        )
    except KeyError:
        raise SiteError(f"{site} was not captured at that position", why="the run captured the point at other positions only",
                        instead=f'capture=["{site}"] or the whole point') from None  # fmt: skip


def _blank(value: Tensor, mask: Tensor) -> Tensor:
    if bool(mask.all()):
        return value
    fill = (~mask).to(value.device).view(*mask.shape, *[1] * (value.dim() - 2))
    return value.masked_fill(fill, float("nan")) if value.is_floating_point() else value


def _shaped(values: Tensor, where: Places) -> Tensor:
    """[pair, ...] -> [prompt, ...] or [prompt, position, ...], ragged filled with NaN."""
    n = len(where.per_row)
    if where.single:
        return values
    width = max(where.per_row)
    if set(where.per_row) == {width}:
        return values.reshape(n, width, *values.shape[1:])
    out = values.new_full((n, width, *values.shape[1:]), float("nan"))
    start = 0
    for row, count in enumerate(where.per_row):
        out[row, :count] = values[start : start + count]
        start += count
    return out
