"""What distributed alignment search needs before it trains: the site, the parts of the task, their recorded prompts."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from microtome.errors import SiteError, TaskError
from microtome.methods.rotation import Data, data_of
from microtome.methods.setting import shares, split_by
from microtome.replay.swap import record
from microtome.results.arguments import ArgumentError
from microtome.sites import At, Site, expand
from microtome.tasks.alignment import positions
from microtome.tasks.interchange import Interchanges, Rows, interchanges
from microtome.tasks.pairs import PairTask, Side

if TYPE_CHECKING:
    from microtome.facade import Model

TRAINING = "training"
PARTS = ("entity", "template")
HELD_OUT = 1 / 3
SOURCES, SOURCES_MEASURED = 16, 4
"""Sources that every base prompt is trained with, and measured with."""
ENOUGH = 11
"""Clusters from which a sign-flip test can reach p = .001."""


@dataclass(frozen=True)
class Part:
    """Prompts of one part with the interchanges between them. clusters [row]: by the base prompt; `by` says of what."""

    name: str
    exchange: Interchanges
    data: Data
    clusters: tuple[str, ...]
    by: str


@dataclass(frozen=True)
class Search:
    """A model, a site, and the training and held-out parts recorded there."""

    model: Model
    site: Site
    training: Part
    held_out: tuple[Part, ...]

    @property
    def parts(self) -> tuple[Part, ...]:
        """The training part, then the held-out ones."""
        return (self.training, *self.held_out)

    @property
    def clusters(self) -> tuple[str, ...]:
        """Clusters of all held-out rows, part after part."""
        return tuple(f"{p.name}/{c}" for p in self.held_out for c in p.clusters)


def one_site(model: Model, site: str) -> Site:
    """The site with its position.

    Raises
    ------
    SiteError: several sites, or an address that this model lacks.
    """
    found = expand(site, model.facts)
    if len(found) != 1:
        raise SiteError(
            f"{site} names {len(found)} sites",
            why="a subspace is found at one site",
            instead=f"for example {found[0]}",
        )
    if found[0].source is not None:
        raise SiteError(
            f"{site} has no basis to find", why="its last axis counts keys", instead="use q, k, v or z"
        )
    return found[0]


def counting(name: str, value: object, least: int) -> int:
    """An argument that counts; ArgumentError otherwise."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or operator.index(value) < least:
        raise ArgumentError(f"{name} is {value!r}", why="it counts", instead=f"{name}={least} or more")
    return operator.index(value)


def split(task: PairTask, held_out: PairTask | Sequence[PairTask] | None, seed: int) -> dict[str, PairTask]:
    """The training pairs under "training"; those with new entities and with new templates under these names.

    Raises
    ------
    TaskError: held-out pairs that share a pair or a cluster with the training pairs, or two parts of one kind.
    """
    if held_out is None:
        kept, parts = task, {}
        for by in PARTS:
            if len(set(kept.groups.get(by, ()))) > 1:
                kept, parts[by] = kept.split(by, HELD_OUT, seed=seed)
        if not parts:
            raise TaskError("nothing can be held out of these pairs", why="they are one template and one entity, or have no groups",
                            instead="give held_out= pairs of other entities or templates")  # fmt: skip
        return {TRAINING: kept, **parts}
    given = [held_out] if isinstance(held_out, PairTask) else list(held_out)
    if not given:
        raise TaskError(
            "held_out has no pairs",
            why="accuracy on what was trained on says little",
            instead="leave it out: the task is then split",
        )
    out = {TRAINING: task}
    for other in given:
        if leak := shares(task, other):
            raise TaskError(
                "the held-out pairs are not held out",
                why=leak,
                instead='train, held_out = task.split("entity", seed=0)',
            )
        by = split_by(other)
        if by in out:
            raise TaskError(
                f"two held-out parts are split by {by}",
                why="each is measured by itself",
                instead="give one by entity and one by template",
            )
        out[by] = other
    return out


def search(model: Model, tasks: Mapping[str, PairTask], variable: str, site: Site, seed: int) -> Search:
    """Record every part at the site.

    Raises
    ------
    TaskError, SiteError: no such variable, no exchange that changes the answer, or a position that prompts lack.
    """
    exchanges = {name: interchanges(task, variable) for name, task in tasks.items()}
    places = _places([e.prompts for e in exchanges.values()], site)
    rows = {
        name: e.rows(SOURCES if name == TRAINING else SOURCES_MEASURED, seed, f"das/{name}")
        for name, e in exchanges.items()
    }
    columns = torch.tensor(sorted({t for e in exchanges.values() for c in e.candidates for t in c}))
    parts = []
    for (name, exchange), where in zip(exchanges.items(), places, strict=True):
        swaps = record(model.binding, exchange.prompts.ids, where, site, columns)
        data = data_of(swaps, rows[name], exchange.candidates)
        labels, by = _clusters(exchange, name)
        parts.append(Part(name, exchange, data, tuple(labels[b] for b in rows[name].base.tolist()), by))
    return Search(model, site, parts[0], tuple(parts[1:]))


def elsewhere(found: Search, model: Model) -> Search:
    """The same prompts and interchanges recorded in another model of the same shape."""
    parts = []
    for p in found.parts:
        swaps = record(
            model.binding, p.exchange.prompts.ids, p.data.swaps.places, found.site, p.data.swaps.columns.cpu()
        )
        parts.append(
            Part(
                p.name,
                p.exchange,
                Data(swaps, p.data.allowed, p.data.base, p.data.source, p.data.label),
                p.clusters,
                p.by,
            )
        )
    return Search(model, found.site, parts[0], tuple(parts[1:]))


def _clusters(exchange: Interchanges, name: str) -> tuple[tuple[str, ...], str]:
    """What was held out, where there are enough of it for a test; else the other grouping, else every pair by itself."""
    known = {by: labels for by in (name, *PARTS) if (labels := exchange.groups(by))}
    counts = {by: len(set(labels)) for by, labels in known.items()}
    if not known:
        return tuple(f"pair-{i}" for i in exchange.pair), "pair"
    first = next(iter(known))
    by = first if counts[first] >= ENOUGH else max(counts, key=lambda b: counts[b])
    return known[by], by


def _places(sides: list[Side], site: Site) -> list[tuple[tuple[int, int], ...]]:
    at = site.at
    lengths = sorted({n for side in sides for n in side.lengths})
    assert at is None or isinstance(at, At)
    from_end = at is not None and at.single and at.start is not None and at.start < 0
    if len(lengths) > 1 and not (at is not None and (at.span or from_end)):
        raise TaskError(
            f"{site} is no one place in these prompts",
            why=f"they have {lengths[0]} to {lengths[-1]} tokens, and a subspace is exchanged place by place",
            instead=f"say where: {site.bare}@-1, or a span: {', '.join(sides[0].spans) or 'these prompts have none'}",
        )
    places = [tuple((0, n) for n in side.lengths) if at is None else positions(side, at) for side in sides]
    widths = sorted({high - low for side in places for low, high in side})
    if len(widths) > 1:
        raise TaskError(
            f"{site} has {widths[0]} to {widths[-1]} tokens",
            why="the source's value is put token by token in the place of the base's",
            instead=f"pick one token: {site.bare}@{at.span if at is not None else ''}[-1]",
        )
    return places


def label_values(part: Part, name: str) -> list[str]:
    """The source's value of a variable or surface slot in each row."""
    column = part.exchange.column(name)
    return [column[s] for s in part.data.source.tolist()]


def recurring(found: Search) -> str:
    """The inert variable or slot whose held-out values were most often seen in training, then with the most values; ""."""
    names = [set(p.exchange.inert(_rows(p))) for p in found.parts]
    common = sorted(set.intersection(*names)) if names else []
    if not common:
        return ""

    def seen(name: str) -> tuple[float, int]:
        known = set(label_values(found.training, name))
        held = [v for p in found.held_out for v in label_values(p, name)]
        return (round(float(np.mean([v in known for v in held])), 2), len(known))

    return max(common, key=seen)


def _rows(part: Part) -> Rows:
    return Rows(part.data.base.cpu().numpy(), part.data.source.cpu().numpy(), part.data.label.cpu().numpy())
