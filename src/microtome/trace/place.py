"""From edits and captures to places: which rows, which columns, which heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from microtome.errors import EditError
from microtome.model.binding import Binding
from microtome.model.tokens import Tokens
from microtome.sites import Site, expand
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
    r, own, counts = [], [], []
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

    def _write(self, edit: BaseEdit, site: Site, rows: list[int], receipt: Receipt) -> Write:
        where = places(site, self.tokens, rows)
        layer = site.layer if isinstance(site.layer, int) else None
        index = None
        if isinstance(site.index, int):
            index = torch.full_like(where.rows, site.index)
        values = self._values(edit, site, where, rows)
        fn = self._function(edit, values)
        if site.source is not None or (site.row is not None and site.row.square):
            fn = self._keys_only(fn, site, where)
        return Write(site.point, layer, where.rows, where.cols, index, fn, receipt)

    def _function(self, edit: BaseEdit, values: Tensor | None) -> Callable[[Tensor, Tensor | None], Tensor]:
        if values is None:
            plain = change(edit)
            return lambda old, keep: plain(old)

        def put(old: Tensor, keep: Tensor | None) -> Tensor:
            new = values if keep is None else values[keep]
            if new.shape != old.shape:
                raise EditError(f"{edit}: the source has shape {tuple(new.shape[1:])}", why=f"the site has {tuple(old.shape[1:])}",
                                instead="give a source of exactly the site's shape")  # fmt: skip
            return new.to(old)

        return put

    def _values(self, edit: BaseEdit, site: Site, where: Places, rows: list[int]) -> Tensor | None:
        if isinstance(edit, Patch):
            if isinstance(edit.source, Tensor):
                return _flat(edit.source, edit, where, rows)
            edit.source.check_numerics(self.numerics, str(edit))
            return edit.source.at_places(site, where, self.tokens)
        if isinstance(edit, Ablate) and edit.by != "zero":
            return self._reference_values(edit, site, where, rows)
        return None

    def _reference_values(self, edit: Ablate, site: Site, where: Places, rows: list[int]) -> Tensor:
        trace = self.reference(edit.over, site)
        n = len(trace.tokens)
        found = places(site, trace.tokens, list(range(n)))
        counts = set(found.per_row) | set(where.per_row)
        if len(counts) != 1:
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
            chosen = values[torch.from_numpy(np.random.default_rng(edit.seed).integers(n, size=len(rows)))]
        return chosen.reshape(shape)

    def _keys_only(
        self, fn: Callable[[Tensor, Tensor | None], Tensor], site: Site, where: Places
    ) -> Callable[[Tensor, Tensor | None], Tensor]:
        """Restrict a change of pattern or scores to the named key positions."""
        if site.source is None:
            return fn
        keys = Site(site.point, site.layer, at=site.source)
        spans = {row: places(keys, self.tokens, [row]).cols for row in sorted(set(where.rows.tolist()))}

        def masked(old: Tensor, keep: Tensor | None) -> Tensor:
            rows = where.rows if keep is None else where.rows[keep]
            mask = torch.zeros((old.shape[0], old.shape[-1]), dtype=torch.bool, device=old.device)
            for place, row in enumerate(rows.tolist()):
                cols = spans[row]
                mask[place, cols[cols < old.shape[-1]]] = True
            mask = mask if old.dim() == 2 else mask[:, None, :]
            return torch.where(mask, fn(old, keep), old)

        return masked


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
    return source.reshape(len(where.rows), *source.shape[len(lead) :])
