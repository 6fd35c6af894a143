"""From edits and captures to places: which rows, which columns, which heads."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from microtome.errors import EditError
from microtome.model.binding import Binding
from microtome.model.tokens import Tokens
from microtome.sites import At, Site, expand
from microtome.trace.edits import Ablate, BaseEdit, Patch, change
from microtome.trace.session import Receipt, Write

if TYPE_CHECKING:
    from microtome.trace.trace import Trace


@dataclass(frozen=True)
class Places:
    """The (row, column) pairs of a site in a run. Shapes: rows, cols, own [pair]; `own` is the prompt's own position.

    `per_row` is the number of positions in each row edited, `single` True where the site drops the position axis.
    """

    rows: Tensor
    cols: Tensor
    own: Tensor
    per_row: tuple[int, ...]
    single: bool


def places(site: Site, tokens: Tokens, rows: list[int]) -> Places:
    """Resolve a site's position on each row's own tokens.

    Raises
    ------
    SiteError: a position or span that a prompt does not have.
    """
    lengths, starts = tokens.lengths, tokens.starts
    r: list[int] = []
    own: list[int] = []
    counts: list[int] = []
    for row in rows:
        low, high = 0, lengths[row]
        if site.at is not None:
            low, high = site.at.resolve(lengths[row], tokens.spans[row] if tokens.spans else None)
        r += [row] * (high - low)
        own += range(low, high)
        counts.append(high - low)
    rows_t, own_t = torch.tensor(r, dtype=torch.long), torch.tensor(own, dtype=torch.long)
    shift = torch.tensor(starts, dtype=torch.long)[rows_t] if len(r) else own_t
    return Places(rows_t, own_t + shift, own_t, tuple(counts), site.at is not None and site.at.single)


def moved(edit: BaseEdit, site: Site) -> BaseEdit:
    """The same edit at another site (edits are frozen values, so a copy)."""
    out = copy.copy(edit)
    object.__setattr__(out, "site", site)
    return out


@dataclass
class Placer:
    """Places edits in one run.

    `reference(prompts, site)` captures a site over reference prompts under the same numerics.
    """

    binding: Binding
    tokens: Tokens
    numerics: dict[str, str]
    reference: Callable[[Any, Site], Trace]

    def place(self, edit: BaseEdit, rows: list[int], receipt: Receipt) -> list[Write]:
        """The writes of one edit on some rows, one per single site.

        Raises
        ------
        EditError, SiteError: see the edits.
        """
        sites = expand(edit.site, self.binding.facts)
        if len(sites) > 1 and isinstance(edit, Patch) and isinstance(edit.source, Tensor):
            raise EditError(
                f"{edit.site} names {len(sites)} tensors",
                why="a tensor is patched at one site",
                instead="one Patch per site",
            )
        return [self._write(edit, site, rows, receipt) for site in sites]

    def resolve(self, edit: BaseEdit, site: Site, row: int) -> tuple[BaseEdit, int, int]:
        """An edit of one row that no longer depends on lengths or spans: own positions as numbers, sources as tensors.

        Returns (the edit, first own position, last + 1).
        """
        where = places(site, self.tokens, [row])
        low, high = int(where.own[0]), int(where.own[-1]) + 1
        there = replace(site, at=At(low, high))
        keys = None
        if site.source is not None:
            spans = self.tokens.spans[row] if self.tokens.spans else None
            keys = site.source.resolve(self.tokens.lengths[row], spans)
            single = site.source.single
            there = replace(there, source=At(keys[0], single=True) if single else At(*keys))
        values = self._values(edit, site, where, [row])
        if values is None:
            return moved(edit, there), low, high
        square = site.row is not None and site.row.square
        if square and not isinstance(getattr(edit, "source", None), Tensor):
            own = ~torch.isnan(values).flatten(0, -2).all(0)  # what lies past the source's own prompt is NaN
            values = values[..., : int(own.sum())]
            values = values if keys is None else values[..., keys[0] : keys[1]]
        if there.source is not None and there.source.single:
            values = values[..., 0]
        values = values[None]
        return Patch(there, values.transpose(1, 2) if square and not site.unit else values), low, high

    def _write(self, edit: BaseEdit, site: Site, rows: list[int], receipt: Receipt) -> Write:
        where = places(site, self.tokens, rows)
        layer = site.layer if isinstance(site.layer, int) else None
        index = None
        if isinstance(site.index, int):
            index = torch.full_like(where.rows, site.index)
        values = self._values(edit, site, where, rows)
        if site.row is not None and site.row.square:
            fn = self._on_keys(edit, site, where, values)
        else:
            fn = self._function(edit, values)
        return Write(site.point, layer, where.rows, where.cols, index, fn, receipt)

    def _function(self, edit: BaseEdit, values: Tensor | None) -> Callable[[Tensor, Tensor | None], Tensor]:
        if values is None:
            plain = change(edit)
            return lambda old, keep: plain(old)

        def put(old: Tensor, keep: Tensor | None) -> Tensor:
            new = values if keep is None else values[keep]
            if new.shape != old.shape:
                raise _shape(edit, new, old)
            return _same_dtype(edit, new, old)

        return put

    def _values(self, edit: BaseEdit, site: Site, where: Places, rows: list[int]) -> Tensor | None:
        if isinstance(edit, Patch):
            if isinstance(edit.source, Tensor):
                return _flat(edit.source, edit, where, rows)
            edit.source.check_numerics(self.numerics, str(edit))
            return _aligned(edit, site, edit.source.at_places(site, where, self.tokens), where.own)
        if isinstance(edit, Ablate) and edit.by != "zero":
            return _aligned(edit, site, self._reference_values(edit, site, where, rows), where.own)
        return None

    def _reference_values(self, edit: Ablate, site: Site, where: Places, rows: list[int]) -> Tensor:
        trace = self.reference(edit.over, site)
        n = len(trace.tokens)
        found = places(site, trace.tokens, list(range(n)))
        counts = set(found.per_row) | set(where.per_row)
        square = site.row is not None and site.row.square
        if len(counts) != 1 or (square and len(set(trace.tokens.lengths)) != 1):
            raise EditError(
                f"{edit}: reference and edited prompts do not align",
                why=f"the site covers {sorted(counts)} positions in different prompts",
                instead="name a position (for example @-1 or a span of one length), or use prompts of one length",
            )
        width = counts.pop()
        values = trace.at_places(site, found, trace.tokens).reshape(n, width, -1)
        shape = (len(rows) * width, *trace.at_places(site, found, trace.tokens).shape[1:])
        if edit.by == "mean":
            chosen = values.mean(0, keepdim=True).expand(len(rows), -1, -1)
        else:
            # one draw per prompt of the batch, so that a prompt's draw does not depend on which others are edited
            draws = np.random.default_rng(edit.seed).integers(n, size=len(self.tokens))
            chosen = values[torch.from_numpy(draws[rows])]
        return chosen.reshape(shape)

    def _on_keys(
        self, edit: BaseEdit, site: Site, where: Places, values: Tensor | None
    ) -> Callable[[Tensor, Tensor | None], Tensor]:
        """A change of scores or pattern at the named keys, or at all of the prompt's own, that the query sees.

        The key axis of a running tensor counts columns. The edit sees own keys only, as in a run without padding;
        `values` are indexed by own key.
        """
        keys = Site(site.point, site.layer, at=site.source or At())
        found = {row: places(keys, self.tokens, [row]) for row in sorted(set(where.rows.tolist()))}
        plain = change(edit) if values is None else None

        def on_keys(old: Tensor, keep: Tensor | None) -> Tensor:
            which = torch.arange(len(where.rows)) if keep is None else keep.cpu()
            if plain is not None and site.source is None and not self.tokens.padded:
                return seen_only(plain(old), old, where.own[which], torch.arange(old.shape[-1]))
            out = old.clone()
            rows = where.rows[which]
            for row in sorted(set(rows.tolist())):
                mine = (rows == row).nonzero()[:, 0].to(old.device)
                here = found[row].cols < old.shape[-1]
                cols, own = found[row].cols[here].to(old.device), found[row].own[here]
                part = old[mine][..., cols]
                queries = where.own[which[mine.cpu()]]
                if plain is not None:
                    new = seen_only(plain(part), part, queries, own)
                else:
                    assert values is not None
                    if site.source is None and values.shape[-1] > old.shape[-1]:
                        raise _shape(edit, values, old)
                    new = _keys_of(
                        edit, values[which[mine.cpu()]], part, own, queries, narrowed=site.source is not None
                    )
                    if not isinstance(
                        getattr(edit, "source", None), Tensor
                    ):  # a tensor says every key itself
                        _refuse_unseen(edit, new, part, queries, own)
                block = out[mine]
                block[..., cols] = new.to(block.dtype)
                out[mine] = block
            return out

        return on_keys


def seen_only(new: Tensor, old: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """New scores or patterns at the keys that a query sees, the old ones elsewhere: a later token, or one that the mask
    hides, is not attended to because of an edit.

    Shapes: new, old [pair, ..., key]; queries [pair], keys [key] own positions.
    """
    if new.shape != old.shape:
        return new  # refused where shapes are compared
    return torch.where(_seen(old, queries, keys), new.to(old.dtype), old)


def _seen(old: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    earlier = (keys[None] <= queries[:, None]).view(len(queries), *[1] * (old.dim() - 2), len(keys))
    return earlier.to(old.device) & (old > torch.finfo(old.dtype).min / 2)  # masks add the smallest number


def _aligned(edit: BaseEdit, site: Site, values: Tensor, queries: Tensor) -> Tensor:
    """Values of another run, refused where they attend to keys after the query: its positions are not these ones.

    Shapes: values [pair, ..., own key] of scores or pattern, anything of other points; queries [pair] own positions.
    """
    if site.row is not None and site.row.square and site.source is None:
        later = torch.arange(values.shape[-1])[None] > queries[:, None]
        _refuse(edit, values, later.view(len(queries), *[1] * (values.dim() - 2), -1).to(values.device))
    return values


def _refuse_unseen(edit: BaseEdit, new: Tensor, old: Tensor, queries: Tensor, keys: Tensor) -> None:
    """A source must not attend to what the query cannot see, later tokens and those that the mask hides."""
    _refuse(edit, new, ~_seen(old, queries, keys) & (new != old))


def _refuse(edit: BaseEdit, values: Tensor, unseen: Tensor) -> None:
    """Attended to: a pattern above 0, scores above what masks leave."""
    floor = 0.0 if edit.site.point == "pattern" else torch.finfo(values.dtype).min / 2
    if bool(((values > floor) & unseen).any()):
        raise EditError(f"{edit}: the source attends to tokens that the edited query does not see", why="keys after the query, or hidden by the mask",
                        instead="use a source whose positions align with the edited prompt's, or name the keys: pattern@-1<-0:3")  # fmt: skip


def _keys_of(
    edit: BaseEdit, values: Tensor, old: Tensor, own: Tensor, queries: Tensor, *, narrowed: bool
) -> Tensor:
    """Source values at some own keys; keys that the source lacks stay, where they lie after every query (and so are masked).

    Shapes: values [pair, ..., own key, or the named keys only] -> like old [pair, ..., key].
    """
    size = values.shape[-1]
    if narrowed and isinstance(getattr(edit, "source", None), Tensor):
        if values.shape != old.shape:
            raise _shape(edit, values, old)
        return _same_dtype(edit, values, old)
    if values.shape[:-1] != old.shape[:-1] or (size < int(own.max()) + 1 and size <= int(queries.max())):
        raise _shape(edit, values, old)
    shared = own < size
    new = old.clone()
    taken = values[..., own[shared].to(values.device)]
    if bool(torch.isnan(taken).any()):
        raise _shape(edit, values, old)
    new[..., shared.to(old.device)] = _same_dtype(edit, taken, old)
    return new


def _shape(edit: BaseEdit, new: Tensor, old: Tensor) -> EditError:
    return EditError(f"{edit}: the source has shape {tuple(new.shape[1:])}", why=f"the site has {tuple(old.shape[1:])}",
                     instead="give a source of exactly the site's shape")  # fmt: skip


def _same_dtype(edit: BaseEdit, new: Tensor, old: Tensor) -> Tensor:
    """Refuse a tensor of another float type: it was computed with other rounding."""
    if isinstance(getattr(edit, "source", None), Tensor) and new.dtype != old.dtype:
        raise EditError(f"{edit}: the source is {str(new.dtype).removeprefix('torch.')}", why=f"the site is {str(old.dtype).removeprefix('torch.')}",
                        instead="run the source in the same dtype, or convert the tensor yourself")  # fmt: skip
    return new.to(old)


def _flat(source: Tensor, edit: BaseEdit, where: Places, rows: list[int]) -> Tensor:
    """A tensor of the site's shape as [pair, ...]."""
    if len(set(where.per_row)) != 1:
        raise EditError(f"{edit}: a tensor cannot cover spans of different lengths", why=f"lengths {sorted(set(where.per_row))}",
                        instead="patch from a Trace, or one row at a time")  # fmt: skip
    lead = (len(rows),) if where.single else (len(rows), where.per_row[0])
    whole_square = edit.site.row is not None and edit.site.row.square and not edit.site.unit
    got = tuple(source.shape[:: 2 if whole_square and not where.single else 1][: len(lead)])
    if got != lead:
        raise EditError(
            f"{edit}: the tensor has shape {tuple(source.shape)}", why=f"the site begins with {list(lead)} (prompts{'' if where.single else ', positions'})",
            instead="give a tensor of exactly the site's shape",
        )  # fmt: skip
    if whole_square and not where.single:
        source = source.transpose(1, 2)
    if edit.site.source is not None and edit.site.source.single:
        source = source.unsqueeze(-1)
    return source.reshape(len(where.rows), *source.shape[len(lead) :])
