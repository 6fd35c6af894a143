"""From cells (what to change, where) to rows and writes, with everything that cannot matter left out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from microtome.errors import SiteError
from microtome.model.binding import Binding
from microtome.points import POINTS
from microtome.replay.climb import Rows
from microtome.sites import At, Site
from microtome.trace.place import seen_only
from microtome.trace.session import Write

Values = Callable[[str, int, Tensor, Tensor, Tensor | None], Tensor]
"""(point, layer, prompts [pair], columns [pair], heads [pair] or None) -> values [pair, ...]."""


@dataclass(frozen=True)
class Change:
    """One site of a cell, at a position (None: every position of the prompt), from a named source.

    `optional` lets prompts without that span be left as they are.
    """

    site: Site
    at: At | None = None
    source: str = "donor"
    optional: bool = False


@dataclass(frozen=True)
class Cell:
    """Changes made together. `label` names the cell in results."""

    changes: tuple[Change, ...]
    label: str = ""


@dataclass(frozen=True)
class Source:
    """Where values come from.

    agree[i]: the first own position at which prompt i's source may differ from the base; cells before it are exact
    zeros in a causal model. 0 where nothing is known.
    """

    values: Values
    agree: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Prompts that are recorded together, shorter ones padded behind their end, and their recorded rows.

    prompts: their numbers in the task; lengths: their tokens. rows_of[i]: the base rows (teacher-forced tails) of the
    group's prompt i. scored [base row, step]: the columns whose logits are read. `spans[i]` are prompt i's spans.
    """

    prompts: tuple[int, ...]
    lengths: tuple[int, ...]
    rows_of: tuple[tuple[int, ...], ...]
    scored: Tensor
    last_scored: tuple[int, ...]
    spans: tuple[Mapping[str, tuple[int, int] | None], ...]

    @property
    def width(self) -> int:
        """Columns of the recorded rows."""
        return int(self.scored.max()) + 1


@dataclass(frozen=True)
class Planned:
    """Rows and writes for some cells of one group. Shapes [row]: cell, prompt (in the group)."""

    rows: Rows
    cell: Tensor
    prompt: Tensor
    writes: list[Write]
    zero: Tensor


@dataclass
class _Place:
    site: Site
    source: str
    low: int
    high: int


def plan(
    binding: Binding,
    group: Group,
    cells: Sequence[Cell],
    sources: Mapping[str, Source],
    *,
    causal: bool,
    skip: bool = True,
) -> Planned:
    """Resolve cells against a group of prompts.

    `zero` [cell, prompt] marks cells that cannot change the metric: an exact zero, not computed.

    Raises
    ------
    SiteError: a position or span that a prompt lacks, or a point that sweeps do not cover.
    """
    n_layers = len(binding.slots)
    zero = torch.zeros((len(cells), len(group.prompts)), dtype=torch.bool)
    ranges: dict[tuple[str, int, str, bool], list[tuple[int, int, int, int, int]]] = defaultdict(list)
    fields: list[tuple[int, int, int, int, bool]] = []
    owner: list[tuple[int, int, int]] = []
    ends = [e + 1 if causal else group.width for e in group.scored.max(1).values.tolist()]
    layouts = [_layout(group, sources, p) for p in range(len(group.prompts))]
    for c, cell in enumerate(cells):
        names = sorted(
            {change.at.span for change in cell.changes if change.at is not None and change.at.span}
        )
        known: dict[object, list[_Place]] = {}
        for p in range(len(group.prompts)):
            alike = (layouts[p], tuple(group.spans[p].get(name) for name in names))
            if (
                alike not in known
            ):  # many prompts have the same layout, and a cell may have hundreds of changes
                known[alike] = _live(cell, sources, group, p, n_layers, skip and causal)
            live = known[alike]
            if not live:
                zero[c, p] = True
                continue
            entry, start, stop, narrow = _shape(live, n_layers, causal)
            for base_row in group.rows_of[p]:
                number = len(owner)
                owner.append((c, p, base_row))
                fields.append((entry, start, stop, ends[base_row], narrow))
                for q in live:
                    head = q.site.index if isinstance(q.site.index, int) else -1
                    layer = q.site.layer if isinstance(q.site.layer, int) else 0
                    key = (q.site.point, layer, q.source, head >= 0)
                    ranges[key].append((number, p, q.low, q.high, head))
    rows = _rows(owner, fields)
    writes = [_write(key, found, sources) for key, found in sorted(ranges.items(), key=lambda kv: kv[0][1])]
    table = torch.tensor(owner, dtype=torch.long).reshape(-1, 3)
    return Planned(rows, table[:, 0], table[:, 1], writes, zero)


def _rows(owner: list[tuple[int, int, int]], fields: list[tuple[int, int, int, int, bool]]) -> Rows:
    table = torch.tensor(owner, dtype=torch.long).reshape(-1, 3)
    entry, start, stop, end, narrow = (
        torch.tensor(side, dtype=torch.long) for side in (zip(*fields, strict=True) if fields else ((),) * 5)
    )
    return Rows(table[:, 2], entry, start, stop, end, narrow.bool())


def _layout(group: Group, sources: Mapping[str, Source], prompt: int) -> object:
    """All of a prompt, but for its spans, on which the places of a cell depend."""
    scored = {int(col) for row in group.rows_of[prompt] for col in group.scored[row].tolist()}
    return group.lengths[prompt], frozenset(scored), tuple(s.agree[prompt] for s in sources.values())


def _live(
    cell: Cell, sources: Mapping[str, Source], group: Group, prompt: int, n_layers: int, skip: bool
) -> list[_Place]:
    placed = [q for change in cell.changes if (q := _place(change, group, prompt, n_layers)) is not None]
    return _alive(placed, sources, group, prompt, n_layers) if skip else placed


def _place(change: Change, group: Group, prompt: int, n_layers: int) -> _Place | None:
    if change.optional and change.at is not None and group.spans[prompt].get(change.at.span) is None:
        return None
    site = as_stream(change.site, n_layers)
    low, high = 0, group.lengths[prompt]
    if change.at is not None:
        low, high = change.at.resolve(high, group.spans[prompt])
    return _Place(site, change.source, low, high)


def as_stream(site: Site, n_layers: int) -> Site:
    """The stream between two layers has two names; sweeps use the later layer's."""
    match site.point:
        case "resid_post":
            assert isinstance(site.layer, int)
            return replace(site, point="resid_pre", layer=site.layer + 1)
        case "embed":
            return replace(site, point="resid_pre", layer=0)
        case "final_resid":
            return replace(site, point="resid_pre", layer=n_layers)
    if site.layer is None or site.point not in POINTS:
        raise SiteError(
            f"{site} cannot be swept",
            why="sweeps replay layers",
            instead="use a point of a layer, embed or final_resid",
        )
    return site


def _alive(
    placed: list[_Place], sources: Mapping[str, Source], group: Group, prompt: int, n_layers: int
) -> list[_Place]:
    """What can change the metric, from the first position at which any change writes another value than the base's.

    Before it every change writes back what is there; behind it even a value equal to the base's may undo another change.
    """
    starts = [max(q.low, sources[q.source].agree[prompt]) for q in placed]
    first = min((start for start, q in zip(starts, placed, strict=True) if start < q.high), default=None)
    if first is None:
        return []
    out = [_Place(q.site, q.source, max(q.low, first), q.high) for q in placed if first < q.high]
    return [q for q in out if not _dead(q, group, prompt, n_layers)]


def _dead(q: _Place, group: Group, prompt: int, n_layers: int) -> bool:
    """True when the change cannot reach the metric, decided from tokens and structure, never from tensors."""
    if q.low > group.last_scored[prompt]:
        return True
    layer = q.site.layer
    stays = layer == n_layers or (layer == n_layers - 1 and POINTS[q.site.point].local)
    if stays:
        cols = {int(col) for row in group.rows_of[prompt] for col in group.scored[row].tolist()}
        return not any(q.low <= col < q.high for col in cols)
    return False


def _shape(live: list[_Place], n_layers: int, causal: bool) -> tuple[int, int, int, bool]:
    """(entry, start, stop, narrow) of one row."""
    entry = min(q.site.layer for q in live if isinstance(q.site.layer, int))
    start, stop = min(q.low for q in live), max(q.high for q in live)
    same = all(q.site.layer == entry and POINTS[q.site.point].local for q in live)
    if not causal:
        start, same = 0, False
    return entry, start, stop, same and entry < n_layers


def _write(
    key: tuple[str, int, str, bool],
    found: list[tuple[int, int, int, int, int]],
    sources: Mapping[str, Source],
) -> Write:
    point, layer, source, headed = key
    number, prompt, low, high, head = torch.tensor(found, dtype=torch.long).T
    width = high - low
    first = torch.repeat_interleave(low - (width.cumsum(0) - width), width)
    col = torch.arange(int(width.sum())) + first
    number, prompt, head = (x.repeat_interleave(width) for x in (number, prompt, head))
    index = head if headed else None
    values = sources[source].values

    def fn(old: Tensor, keep: Tensor | None) -> Tensor:
        which = slice(None) if keep is None else keep.cpu()
        new = _fit(
            values(point, layer, prompt[which], col[which], None if index is None else index[which]), old
        )
        if not POINTS[point].square:
            return new
        return seen_only(new, old, col[which], torch.arange(old.shape[-1]))

    return Write(point, layer, number, col, index, fn)


def _fit(new: Tensor, old: Tensor) -> Tensor:
    """Patterns of a shorter donor end earlier: keys after its last token are never attended to."""
    new = new.to(old)
    if new.shape != old.shape and new.shape[:-1] == old.shape[:-1]:
        out = torch.zeros_like(old)
        out[..., : new.shape[-1]] = new[..., : old.shape[-1]]
        return out
    return new
