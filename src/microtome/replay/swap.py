"""One site of recorded prompts, given other values, with a gradient: what training an intervention needs.

Every prompt is run once. From then on only the layers above the site are called, on the recorded arguments.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from microtome.errors import SiteError
from microtome.metrics import metric, scoring
from microtome.model.binding import Binding
from microtome.model.tokens import pack
from microtome.points import POINTS
from microtome.replay.base import Base, make_base
from microtome.replay.check import mode_of, tolerance
from microtome.replay.climb import Rows, climb
from microtome.replay.plan import Group, as_stream
from microtome.replay.sources import capture
from microtome.replay.sweep import Bench, groups_of
from microtome.sites import Site
from microtome.trace.grad import frozen
from microtome.trace.run import check_runnable
from microtome.trace.session import Receipt, Write

Place = tuple[int, int]


class _Recorded(NamedTuple):
    group: Group
    base: Base


@dataclass
class Swaps:
    """Recorded prompts, whose activations at one site can be given other values.

    Shapes: values [prompt, pos, d] in the model's dtype, float32 at least, the site at each prompt's places (its heads or neurons side by side);
    unpatched [prompt, column], the logits at the last position as they are; columns [column] vocabulary ids.
    """

    binding: Binding
    site: Site
    places: tuple[Place, ...]
    columns: Tensor
    recorded: list[_Recorded]
    at: list[tuple[int, int]]
    values: Tensor
    unpatched: Tensor
    receipt: Receipt
    planned: int = 0

    @property
    def d(self) -> int:
        """Numbers per position at the site."""
        return int(self.values.shape[-1])

    @property
    def floor(self) -> float:
        """By how much the logits of a replayed prompt may differ from those of its own run."""
        return tolerance(self.recorded[0].base) * max(float(self.unpatched.abs().max()), 1.0)

    def logits(self, prompts: Tensor, new: Tensor, *, live: bool = False) -> Tensor:
        """Logits at the last position with the site set to `new`.

        Shapes: prompts [row] their numbers, new [row, pos, d] -> [row, column]. live: the gradient flows to `new`.
        """
        out = self.unpatched.new_zeros(len(prompts), len(self.columns))
        parts: list[tuple[Tensor, Tensor]] = []
        with ExitStack() as stack:
            if live:
                stack.enter_context(frozen(self.binding.hf))
            where = torch.tensor([self.at[p] for p in prompts.tolist()], dtype=torch.long).reshape(-1, 2)
            for number in where[:, 0].unique().tolist():
                which = (where[:, 0] == number).nonzero()[:, 0]
                made = self._group(
                    self.recorded[number], prompts[which], where[which, 1], new[which.to(new.device)], live
                )
                parts.append((which, made))
            for which, made in parts:
                out = out.index_put((which.to(out.device),), made)
        return out

    def _group(self, recorded: _Recorded, prompts: Tensor, rows: Tensor, new: Tensor, live: bool) -> Tensor:
        group, base = recorded
        layer = self.site.layer
        assert isinstance(layer, int)
        causal = base.mode != "layers"
        low, high = torch.tensor([self.places[p] for p in prompts.tolist()], dtype=torch.long).T
        n = len(rows)
        narrow = causal and POINTS[self.site.point].local and layer < len(self.binding.slots)
        end = group.scored[rows].max(1).values + 1 if causal else torch.full((n,), group.width)
        plan = Rows(
            rows,
            torch.full((n,), layer),
            low if causal else torch.zeros_like(low),
            high,
            end,
            torch.full((n,), narrow),
        )
        writes = [self._write(low, high, new)]
        hidden = climb(base, plan, writes, group.scored, live=live)
        self.planned += len(writes[0].rows)
        return self.binding.unembed(hidden[:, 0], self.columns).to(self.unpatched.dtype)

    def _write(self, low: Tensor, high: Tensor, new: Tensor) -> Write:
        width = int((high - low)[0])
        number = torch.arange(len(low)).repeat_interleave(width)
        cols = (low[:, None] + torch.arange(width)).reshape(-1)
        index = torch.full_like(cols, self.site.index) if isinstance(self.site.index, int) else None
        flat = new.reshape(len(cols), -1)

        def fn(old: Tensor, keep: Tensor | None) -> Tensor:
            mine = flat if keep is None else flat[keep.to(flat.device)]
            return mine.reshape(old.shape).to(old)

        layer = self.site.layer
        assert isinstance(layer, int)
        return Write(self.site.point, layer, number, cols, index, fn, self.receipt)


def record(
    binding: Binding,
    ids: Sequence[Sequence[int]],
    places: Sequence[Place],
    site: Site,
    columns: Tensor,
    *,
    memory: int = 1 << 29,
) -> Swaps:
    """Run prompts once and keep all that a change at `site` needs.

    Parameters
    ----------
    places: per prompt the half-open range of positions to change, all equally wide.
    columns: vocabulary ids whose logits are read, at each prompt's last position.
    memory: bytes that the runs of one group of prompts may hold.

    Raises
    ------
    SiteError: attention scores and patterns, whose width is the prompt's; a point that no layer has; a place from which
        no path leads to the last position.
    """
    check_runnable(binding)
    if POINTS[site.point].square:
        raise SiteError(
            f"{site} has no basis to find",
            why="its last axis counts keys, not dimensions",
            instead="use q, k, v or z",
        )
    stream = as_stream(site, len(binding.slots))
    n_layers = len(binding.slots)
    stays = stream.layer == n_layers or (stream.layer == n_layers - 1 and POINTS[stream.point].local)
    if stays and all(high < len(row) for row, (_, high) in zip(ids, places, strict=True)):
        raise SiteError(
            f"{site} cannot reach the answer",
            why="no later layer carries it to the last position",
            instead=f"{site.bare}@-1",
        )
    question = scoring([((0,),)] * len(ids), [((1,),)] * len(ids))
    bench = Bench(binding, ids, question, (metric("logit_diff"),))
    recorded: list[_Recorded] = []
    at = [(0, 0)] * len(ids)
    values: list[Tensor | None] = [None] * len(ids)
    with torch.inference_mode(False), torch.no_grad():
        for group in groups_of(bench, memory):
            rows = pack([ids[p] for p in group.prompts]).ids
            base = make_base(binding, rows, [], mode=mode_of(binding, rows))
            for row, p in enumerate(group.prompts):
                at[p] = (len(recorded), row)
            recorded.append(_Recorded(group, base))
            for p, value in _values(binding, ids, group, base, places, stream):
                values[p] = value
        made = torch.stack([v for v in values if v is not None])
        made = made.to(torch.promote_types(made.dtype, torch.float32))
        columns = columns.to(made.device)
        swaps = Swaps(binding, stream, tuple(places), columns, recorded, at, made, made.new_zeros(len(ids), len(columns)),
                      Receipt("swap", measured=False))  # fmt: skip
        for group, base in recorded:
            final = base.resid[-1]
            last = final[torch.arange(base.n, device=final.device), group.scored[:, 0].to(final.device)]
            swaps.unpatched[list(group.prompts)] = binding.unembed(last, columns).to(made.dtype)
    return swaps


def _values(
    binding: Binding,
    ids: Sequence[Sequence[int]],
    group: Group,
    base: Base,
    places: Sequence[Place],
    site: Site,
) -> Iterator[tuple[int, Tensor]]:
    """(prompt, its site's values [pos, d]) of a group."""
    assert isinstance(site.layer, int)
    if site.point == "resid_pre":
        whole = base.resid[site.layer]
    else:
        key = (site.point, site.layer)
        whole = capture(binding, [list(ids[p]) for p in group.prompts], {key}, False)[key]
    if isinstance(site.index, int):
        whole = whole[:, :, site.index, None]
    for row, p in enumerate(group.prompts):
        low, high = places[p]
        yield p, whole[row, low:high].reshape(high - low, -1)
