"""What can have max-activating examples: neurons, heads' outputs, directions; how each is read, what it writes, and its null."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from microtome.controls.directions import isotropic
from microtome.directions.direction import Direction
from microtome.errors import EditError, SiteError
from microtome.model.tokens import pack
from microtome.sites import Site, expand_all
from microtome.trace.frame import Frame
from microtome.trace.run import forward, prepare
from microtome.trace.session import Read

if TYPE_CHECKING:
    from microtome.facade import Model

__all__ = ["Units", "Watch", "units_of"]

_STREAM = ("embed", "resid_pre", "resid_mid", "resid_post", "final_resid", "attn_out", "mlp_out", "head_out")
Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Units:
    """Units of one point of one layer.

    site: the point read. names: one per unit. read: the point [prompt, pos, ...] -> activations [prompt, pos, unit].
    width, heads: of the vectors in which a random direction is drawn. writes: what each unit adds to the stream per unit of
    activation, [unit, d_model], or None where that is not one direction; `why` then says so.
    """

    site: Site
    names: tuple[str, ...]
    read: Function
    width: int
    heads: tuple[int, ...] = ()
    norms: bool = False
    writes: Tensor | None = None
    why: str = ""

    def null(self, draws: int, seed: int) -> Function:
        """Random directions of the same space, read the same way: [prompt, pos, ...] -> [prompt, pos, draw].

        Isotropic, of length 1. Of heads' norms: the size of the output along a random direction, the heads in turn.
        """
        random = torch.from_numpy(isotropic(self.width, np.ones(draws), seed=seed, name=f"units/{self.site}"))
        if not self.heads:
            return lambda view: view.float() @ random.to(view.device, torch.float32).T
        home = torch.tensor([self.heads[k % len(self.heads)] for k in range(draws)])

        def along(view: Tensor) -> Tensor:
            vectors = random.to(view.device, torch.float32)
            out = view.new_empty((*view.shape[:2], draws), dtype=torch.float32)
            for head in sorted(set(self.heads)):
                mine = (home == head).nonzero()[:, 0].to(view.device)
                out[..., mine] = view[:, :, head].float() @ vectors[mine].T
            return out.abs() if self.norms else out

        return along


def units_of(model: Model, of: Any, directions: Tensor | None = None) -> Units:
    """The units that an address, a `Direction`, several, or a tensor of directions at an address name.

    of: "L12.neurons" (all of a layer), "L12N5,9.neurons", "L3.head_out" or "L3H2.z" (the norm of each head's vector), a
    Direction or several of one site; with `directions` [unit, d] the address of the site that they live at.

    Raises
    ------
    SiteError: units of several points or layers, an address with a position, or one without units of its own.
    EditError: directions of another width, of another model or of several sites.
    """
    if isinstance(of, Direction):
        of = [of]
    if isinstance(of, list | tuple) and of and all(isinstance(d, Direction) for d in of):
        sites = {str(d.site) for d in of}
        if len(sites) > 1:
            raise EditError(f"directions at {', '.join(sorted(sites))}", why="one pass reads one site", instead="one call per site")  # fmt: skip
        site = _one(model, of[0].site)
        for direction in of:
            direction.check(model.hash, _width(model, site))
        names = tuple(d.name for d in of)
        if len(set(names)) < len(names):
            raise EditError(f"two directions are called {next(n for n in names if names.count(n) > 1)!r}", why="a unit is found by its name",
                            instead="dataclasses.replace(direction, name=...)")  # fmt: skip
        return _along(model, site, torch.stack([d.unit for d in of]), names)
    if directions is not None:
        site = _one(model, of)
        rows = torch.as_tensor(directions).detach().to("cpu", torch.float32)
        rows = rows[None] if rows.dim() == 1 else rows
        wide = _width(model, site)
        if rows.dim() != 2 or rows.shape[1] != wide or not bool(torch.isfinite(rows).all()) or not bool(rows.norm(dim=1).all()):  # fmt: skip
            raise EditError(f"directions of shape {tuple(rows.shape)}, or one that is zero or not finite", why=f"values at {site} have {wide} components",
                            instead=f"[unit, {wide}]")  # fmt: skip
        return _along(model, site, rows / rows.norm(dim=1, keepdim=True), tuple(f"{site}[{i}]" for i in range(len(rows))))  # fmt: skip
    return _addressed(model, of)


def _one(model: Model, of: Any) -> Site:
    found = expand_all(of, model.facts)
    if len(found) != 1:
        raise SiteError(f"{of} names {len(found)} tensors", why="directions live at one site", instead=f"for example {found[0]}")  # fmt: skip
    return _bare(found[0])


def _bare(site: Site) -> Site:
    if site.at is not None or site.before:
        raise SiteError(f"{site} names a position", why="examples are looked for at every position", instead=str(site.bare))  # fmt: skip
    if site.row is not None and site.row.square:
        raise SiteError(f"{site} has a number for every pair of positions", why="an example is one position", instead="L3.head_out, or L3.z")  # fmt: skip
    return site


class Watch(Read):
    """A read that keeps what a function makes of the point, and not the point."""

    fn: Function

    def take(self, view: Tensor, frame: Frame) -> None:
        """Keep fn of the point. Shapes: view [prompt, pos, ...]."""
        if view.shape[0] != frame.batch:
            view = view.expand(frame.batch, *view.shape[1:])
        self.value = self.fn(view)


def watch(site: Site, fn: Function) -> Watch:
    """A read of a site through a function."""
    made = Watch(site.point, site.layer if isinstance(site.layer, int) else None)
    made.fn = fn
    return made


def _shape(model: Model, site: Site) -> tuple[int, ...]:
    """Axes of the point after prompt and position, as a run of one token shows them."""
    tokens = pack([[0]])
    plan = prepare(model.binding, tokens, capture=[site.whole], edits=(), attention=None)
    seen = watch(site, lambda view: torch.tensor(view.shape[2:]))
    forward(model.binding, tokens, [seen], [], logits=None, attention=plan.attention)
    assert seen.value is not None
    return tuple(int(n) for n in seen.value)


def _width(model: Model, site: Site) -> int:
    shape = _shape(model, site)
    if len(shape) == 2 and not isinstance(site.index, int):
        raise SiteError(f"{site} has {shape[0]} vectors at a position", why="a direction is read in one of them",
                        instead=f"for example L{site.layer}{(site.row.letters if site.row else ('H',))[0]}0.{site.point}")  # fmt: skip
    return shape[-1]


def _along(model: Model, site: Site, rows: Tensor, names: tuple[str, ...]) -> Units:
    """Units that are lengths along unit vectors [unit, d]."""
    headed = site.unit in ("H", "KV") and isinstance(site.index, int)
    head = site.index if isinstance(site.index, int) and headed else None

    def read(view: Tensor) -> Tensor:
        view = view if head is None else view[:, :, head]
        return view.float() @ rows.to(view.device).T

    writes, why = _written(model, site, rows)
    return Units(site, names, read, rows.shape[1], () if head is None else (head,), False, writes, why)


def _written(model: Model, site: Site, rows: Tensor) -> tuple[Tensor | None, str]:
    assert isinstance(site.layer, int) or site.layer is None
    if site.point in _STREAM:
        return rows, ""
    if site.point == "neurons" and site.layer is not None:
        return rows @ model.weights.W_out(site.layer).detach().float().cpu(), ""
    if site.point == "z" and site.layer is not None and isinstance(site.index, int):
        return rows @ model.weights.W_O(site.layer)[site.index].detach().float().cpu(), ""
    return None, f"{site.point} is not added to the stream by a fixed matrix"


def _addressed(model: Model, of: str | Site | Sequence[str | Site]) -> Units:
    found = [_bare(s) for s in expand_all(of, model.facts)]
    if len({(s.point, s.layer) for s in found}) > 1:
        raise SiteError(f"{len({(s.point, s.layer) for s in found})} points or layers at once", why="one pass reads one point of one layer",
                        instead=f"one call each, for example {found[0].whole}")  # fmt: skip
    site = found[0]
    shape = _shape(model, site)
    axis = site.row.axes[2] if site.row is not None and len(site.row.axes) > 2 else ""
    if axis not in ("neuron", "head", "kv_head"):
        raise SiteError(f"{site} has no units of its own", why="no basis of it is privileged",
                        instead=f'a Direction there, or directions=[unit, {shape[-1]}]')  # fmt: skip
    letter = {"neuron": "N", "head": "H", "kv_head": "KV"}[axis]
    which = [s.index for s in found if isinstance(s.index, int)] or list(range(shape[0]))
    names = tuple(f"L{site.layer}{letter}{i}.{site.point}" for i in which)
    whole = site.whole
    if axis != "neuron":
        return Units(whole, names, lambda view: view[:, :, which].float().norm(dim=-1), shape[1], tuple(which), True, None, "a norm has no direction")  # fmt: skip
    writes, why = None, f"{site.point} passes a nonlinearity before it is added to the stream"
    if site.point == "neurons" and isinstance(site.layer, int):
        writes, why = model.weights.W_out(site.layer).detach().float().cpu()[which], ""
    picked = None if which == list(range(shape[0])) else which
    return Units(whole, names, lambda view: (view if picked is None else view[..., picked]).float(), shape[0], (), False, writes, why)  # fmt: skip
