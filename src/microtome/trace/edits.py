"""Edits as data: what to change and where; resolved to places only when a run knows its prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from microtome.errors import EditError
from microtome.sites import Site, parse

if TYPE_CHECKING:
    from microtome.trace.trace import Trace


@dataclass(frozen=True, init=False)
class BaseEdit:
    """What all edits share: a site, with or without a position.

    Of scores and pattern only keys that the query sees are changed: no edit lets a token attend to a later one or to one
    outside its window, except a Patch with a tensor, which says every key itself.
    """  # fmt: skip

    site: Site

    def _at(self, site: str | Site) -> None:
        parsed = parse(site)
        if parsed.before:
            raise EditError(
                f"{parsed} cannot be edited",
                why="!before names the value as it was",
                instead=f"edit {parsed.bare}",
            )
        if parsed.row is not None and not parsed.row.writable:
            raise EditError(f"{parsed} is read-only", why=parsed.row.meaning, instead="edit a writable point")
        object.__setattr__(self, "site", parsed)

    def __str__(self) -> str:
        return f"{type(self).__name__}({self.site})"


def _set(edit: BaseEdit, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(edit, name, value)


@dataclass(frozen=True, init=False)
class Patch(BaseEdit):
    """Put another run's value, or a given tensor, at a site (activation patching, interchange intervention).

    source: a Trace that captured the same site, prompt i for prompt i, positions aligned; or a tensor of exactly
    the site's shape for the prompts edited: [prompt, pos, ...], without `pos` where the site names one position.
    """

    source: Trace | Tensor

    def __init__(self, site: str | Site, source: Trace | Tensor) -> None:
        self._at(site)
        _set(self, source=source)


@dataclass(frozen=True, init=False)
class Ablate(BaseEdit):
    """Replace by zero, by the mean over reference prompts, or by a random reference prompt's value.

    over: reference prompts (texts, ids, a side of a task): required for "mean" and "resample". Their positions must
    align with the edited ones: give the site a position, or prompts of the same length.
    seed: of the draws; which reference a prompt gets goes by its place in the batch.
    """

    by: Literal["zero", "mean", "resample"]
    over: Any
    seed: int | None

    def __init__(
        self,
        site: str | Site,
        by: Literal["zero", "mean", "resample"] = "zero",
        *,
        over: Any = None,
        seed: int | None = None,
    ) -> None:
        self._at(site)
        if by not in ("zero", "mean", "resample"):
            raise EditError(
                f"by={by!r} is not an ablation",
                why="an ablation needs a reference",
                instead='by "zero", "mean" or "resample"',
            )
        if by != "zero" and over is None:
            raise EditError(
                f"{by} ablation needs over=",
                why="its reference distribution changes the number",
                instead="over=prompts, e.g. task.reference(64, seed=0)",
            )
        if by == "resample" and seed is None:
            raise EditError("resample ablation needs a seed", why="it draws at random", instead="seed=0")
        _set(self, by=by, over=over, seed=seed)


@dataclass(frozen=True, init=False)
class Steer(BaseEdit):
    """Add a direction (activation addition).

    unit: "raw" adds coefficient * direction; "direction_norm" coefficient * unit direction; "resid_norm"
    coefficient * (norm of the value there) * unit direction. Shapes: direction [d] of the site's last axis, or the
    site's whole value shape.
    """

    direction: Tensor
    coefficient: float
    unit: Literal["raw", "direction_norm", "resid_norm"]

    def __init__(self, site: str | Site, direction: Tensor, coefficient: float,
                 unit: Literal["raw", "direction_norm", "resid_norm"] = "raw") -> None:  # fmt: skip
        self._at(site)
        if unit not in ("raw", "direction_norm", "resid_norm"):
            raise EditError(
                f"unit={unit!r} is not a unit",
                why="a coefficient needs one",
                instead='"raw", "direction_norm" or "resid_norm"',
            )
        _nonzero(direction, "direction")
        _set(self, direction=direction, coefficient=float(coefficient), unit=unit)


@dataclass(frozen=True, init=False)
class Remove(BaseEdit):
    """Project a direction out (directional ablation). Shapes: direction [d]."""

    direction: Tensor

    def __init__(self, site: str | Site, direction: Tensor) -> None:
        self._at(site)
        if direction.dim() != 1:
            raise EditError(
                f"a direction of shape {tuple(direction.shape)}",
                why="one direction is removed",
                instead="pass [d], or one Remove per direction",
            )
        _nonzero(direction, "direction")
        _set(self, direction=direction)


@dataclass(frozen=True, init=False)
class Keep(BaseEdit):
    """Keep only the projection on a subspace. Shapes: subspace [k, d], rows spanning it."""

    subspace: Tensor

    def __init__(self, site: str | Site, subspace: Tensor) -> None:
        self._at(site)
        if subspace.dim() != 2:
            raise EditError(
                f"a subspace of shape {tuple(subspace.shape)}",
                why="it is spanned by rows",
                instead="pass [k, d]",
            )
        _nonzero(subspace, "subspace")
        _set(self, subspace=subspace)


@dataclass(frozen=True, init=False)
class Edit(BaseEdit):
    """Any function of the value. It gets [place, ...] (one row per prompt and position) and returns the same shape.

    Marked not re-runnable in records unless the function is importable by name.
    """

    fn: Callable[[Tensor], Tensor]

    def __init__(self, site: str | Site, fn: Callable[[Tensor], Tensor]) -> None:
        self._at(site)
        _set(self, fn=fn)

    @property
    def rerunnable(self) -> bool:
        """True when the function can be imported again by its name."""
        name, home = getattr(self.fn, "__qualname__", "<"), getattr(self.fn, "__module__", "__main__")
        return "<" not in name and home != "__main__"


def _nonzero(direction: Tensor, what: str) -> None:
    if not bool(torch.isfinite(direction).all()) or not bool(direction.any()):
        raise EditError(
            f"the {what} is zero or not finite",
            why="it has no direction",
            instead="pass a finite, non-zero tensor",
        )


Edits = Sequence[BaseEdit] | Sequence[Sequence[BaseEdit]]


def per_row(edits: Edits, n: int) -> list[tuple[BaseEdit, list[int]]]:
    """Each edit with the rows it applies to: one list for every row, or one list per row.

    Raises
    ------
    EditError: lists and edits mixed, or a number of lists other than the number of rows.
    """
    if not len(edits):
        return []
    every: list[Any] = list(edits)
    nested = [isinstance(e, list | tuple) for e in edits]
    if not any(nested):
        for edit in edits:
            _check(edit)
        return [(e, list(range(n))) for e in edits if isinstance(e, BaseEdit)]
    if not all(nested) or len(edits) != n:
        raise EditError(f"{len(edits)} lists of edits for {n} prompts", why="edits are one list for all rows, or one list per row",
                        instead=f"give {n} lists (empty ones are allowed)")  # fmt: skip
    out: list[tuple[BaseEdit, list[int]]] = []
    for row, several in enumerate(every):
        for edit in several:
            _check(edit)
            out.append((edit, [row]))
    return out


def _check(edit: Any) -> None:
    if not isinstance(edit, BaseEdit):
        raise EditError(f"{edit!r} is not an edit", why="edits are Patch, Ablate, Steer, Remove, Keep or Edit",
                        instead='for example mt.Ablate("L5H1.z")')  # fmt: skip


def change(edit: BaseEdit) -> Callable[[Tensor], Tensor]:
    """The function on values [place, ..., d] of an edit that needs no source.

    Raises
    ------
    EditError: a direction of another width.
    """
    match edit:
        case Steer():
            return lambda old: _steer(old, edit)
        case Remove():
            return lambda old: _project(old, edit.direction[None], keep=False)
        case Keep():
            return lambda old: _project(old, edit.subspace, keep=True)
        case Edit():
            return lambda old: _call(old, edit)
        case Ablate() if edit.by == "zero":
            return torch.zeros_like
    raise TypeError(type(edit))


def _steer(old: Tensor, edit: Steer) -> Tensor:
    direction = edit.direction.to(old)
    _width(old, direction, edit.site)
    if edit.unit != "raw":
        direction = direction / direction.norm()
    size = old.norm(dim=-1, keepdim=True) if edit.unit == "resid_norm" else 1.0
    return old + edit.coefficient * size * direction


def _project(old: Tensor, rows: Tensor, *, keep: bool) -> Tensor:
    _width(old, rows[0], None)
    rows = rows.to(old.device, torch.float64)
    if len(rows) == 1:
        basis = (rows / rows.norm()).to(old.dtype)
        inside = (old @ basis.T) @ basis
        return inside if keep else old - inside
    _, sizes, basis = torch.linalg.svd(
        rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-300), full_matrices=False
    )
    basis = basis[sizes > 1e-6 * sizes[0]].to(old.dtype)  # rows that say the same twice span no more
    inside = (old @ basis.T) @ basis
    return inside if keep else old - inside


def _call(old: Tensor, edit: Edit) -> Tensor:
    new = edit.fn(old)
    if not isinstance(new, Tensor) or new.shape != old.shape:
        got = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
        raise EditError(f"the function of {edit} returned {got}", why=f"the value has shape {tuple(old.shape)}: [place, ...]",
                        instead="return a tensor of the same shape")  # fmt: skip
    return new


def _width(old: Tensor, direction: Tensor, site: Site | None) -> None:
    if direction.shape != old.shape[-direction.dim() :]:
        where = f" at {site}" if site is not None else ""
        raise EditError(f"a direction of shape {tuple(direction.shape)}{where}", why=f"values there are {tuple(old.shape[1:])}",
                        instead="pass a direction of the site's last axis")  # fmt: skip
