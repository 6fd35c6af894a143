"""Addresses: one string names one tensor.

    site      = [ where "." ] point [ "!before" ] [ "@" position [ "<-" position ] ]
    edge      = endpoint "->" endpoint            endpoint = a site without position
    where     = "L" several [ unit several ]
    unit      = "H" | "KV" | "N" | "F"
    several   = "*" | number { "," number } | number ":" number          (half-open)
    position  = integer | [ integer ] ":" [ integer ] | span [ "[" ( integer | range ) "]" ]
    span      = letter { letter | digit | "_" }

`@` is only ever a position and counts the prompt's own tokens: 0 is the first (BOS where present) and
-1 the last, whatever the padding side. `parse(str(site)) == site`. TransformerLens's names are read too
(`blocks.5.attn.hook_z` is `L5.z`): hook_names.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from microtome.errors import SiteError
from microtome.hook_names import is_hook_name, translate
from microtome.points import LAYER, POINTS, Point, point

if TYPE_CHECKING:
    from microtome.model.facts import Facts

__all__ = ["At", "Edge", "Several", "Site", "expand", "parse", "parse_edge"]

_WHERE = re.compile(r"^L(?P<layers>[\d,:*]+)(?:(?P<unit>KV|H|N|F)(?P<index>[\d,:*]+))?$")
_SPAN = re.compile(r"^(?P<span>[A-Za-z_]\w*)(?:\[(?P<sub>[^\]]*)\])?$")
_RESERVED_WHERE = re.compile(r"^(enc\.|L\d+E\d+)")


@dataclass(frozen=True)
class Several:
    """A choice of layers, heads or neurons: all, a half-open range, or a list."""

    kind: str
    values: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.kind == "all":
            return "*"
        return (":" if self.kind == "range" else ",").join(str(v) for v in self.values)

    def pick(self, size: int, what: str) -> list[int]:
        """The chosen indices among `size`; out of range is refused, never clipped."""
        if self.kind == "all":
            return list(range(size))
        chosen = list(range(*self.values)) if self.kind == "range" else list(self.values)
        for index in chosen:
            _in_range(index, size, what)
        return chosen


@dataclass(frozen=True)
class At:
    """A position: an index (drops the axis), a half-open slice (keeps it), or a span of the task (ragged)."""

    start: int | None = None
    stop: int | None = None
    single: bool = False
    span: str = ""

    def __str__(self) -> str:
        inner = "" if self._whole else self._numbers()
        if not self.span:
            return inner or ":"
        return self.span + (f"[{inner}]" if inner else "")

    @property
    def _whole(self) -> bool:
        return self.start is None and self.stop is None and not self.single

    def _numbers(self) -> str:
        if self.single:
            return str(self.start)
        left = "" if self.start is None else str(self.start)
        return f"{left}:{'' if self.stop is None else self.stop}"

    def resolve(
        self, length: int, spans: Mapping[str, tuple[int, int] | None] | None = None
    ) -> tuple[int, int]:
        """The half-open range of token positions in one prompt of `length` tokens.

        Raises
        ------
        SiteError: the position or span is not in this prompt.
        """
        low, high = 0, length
        if self.span:
            found = (spans or {}).get(self.span)
            if found is None:
                known = ", ".join(sorted(spans or ())) or "none: plain prompts have no spans"
                raise SiteError(
                    f'there is no span "{self.span}" in this prompt',
                    why="a span is named by the task that made the prompt",
                    instead=f"spans here: {known}",
                )
            low, high = found
        size = high - low
        if self.single:
            index = self.start if self.start is not None else 0
            if not -size <= index < size:
                where = f'span "{self.span}"' if self.span else "prompt"
                raise SiteError(
                    f"position {index} is outside a {where} of {size} tokens",
                    why="positions count the prompt's own tokens, BOS included, padding never",
                    instead=f"use a position from {-size} to {size - 1}",
                )
            index += low + (size if index < 0 else 0)
            return index, index + 1
        ends = []
        for end, default in ((self.start, 0), (self.stop, size)):
            value = default if end is None else end + size if end < 0 else end
            if not 0 <= value <= size:
                raise SiteError(
                    f"the range {self} reaches outside {size} tokens",
                    why="ranges are half-open and never clipped",
                    instead=f"use ends from {-size} to {size}",
                )
            ends.append(value)
        if ends[0] >= ends[1]:
            raise SiteError(
                f"the range {self} is empty in a prompt of {size} tokens",
                why="a half-open range needs start < stop",
                instead="widen the range",
            )
        return low + ends[0], low + ends[1]


@dataclass(frozen=True)
class Site:
    """One address, or several when a `Several` is inside.

    `unit` is the letter that narrows ("" | "H" | "KV" | "N" | "F") and `index` what it picks; `source` is
    the key position of `pattern` and `scores`; `before` asks for the value before any edit at the site.
    """

    point: str
    layer: int | Several | None = None
    unit: str = ""
    index: int | Several | None = None
    before: bool = False
    at: At | None = None
    source: At | None = None

    def __str__(self) -> str:
        where = "" if self.layer is None else f"L{self.layer}"
        if self.unit:
            where += f"{self.unit}{self.index}"
        text = f"{where}.{self.point}" if where else self.point
        if self.before:
            text += "!before"
        if self.at is not None:
            text += f"@{self.at}"
            if self.source is not None:
                text += f"<-{self.source}"
        return text

    @property
    def row(self) -> Point | None:
        """The row of the table of points; None for a dictionary."""
        return POINTS.get(self.point)

    @property
    def single(self) -> bool:
        """True when the address names exactly one tensor."""
        return not (isinstance(self.layer, Several) or isinstance(self.index, Several))

    @property
    def bare(self) -> Site:
        """The same site without position and `!before`."""
        return replace(self, at=None, source=None, before=False)

    @property
    def whole(self) -> Site:
        """The whole point at this layer: no head, no position."""
        return Site(self.point, self.layer)

    def with_at(self, at: At | int | str | None) -> Site:
        """The same site at another position."""
        if isinstance(at, int):
            at = At(start=at, single=True)
        elif isinstance(at, str):
            at = _position(at, at)
        return replace(self, at=at)


@dataclass(frozen=True)
class Edge:
    """A sender and a receiver: `L5H3.z->L9KV2.k`."""

    sender: Site
    receiver: Site

    def __str__(self) -> str:
        return f"{self.sender}->{self.receiver}"


def parse(text: str | Site) -> Site:
    """Read an address.

    Raises
    ------
    SiteError: not an address; says which part and suggests the nearest names.
    """
    if isinstance(text, Site):
        return text
    if not isinstance(text, str) or not text.strip():
        raise SiteError(
            f"{text!r} is not an address", why="an address is a string", instead='for example "L9H6.z@-1"'
        )
    if "->" in text.replace("<-", ""):
        raise SiteError(
            f'"{text}" is an edge',
            why="an edge names two sites",
            instead="use parse_edge, or one of its sites",
        )
    if _RESERVED_WHERE.match(text):
        raise SiteError(f'"{text}" is a reserved address', why="encoders and single experts are not addressed yet",
                        instead="read the layer's mlp_out")  # fmt: skip
    body, at_sign, tail = text.strip().partition("@")
    body, bang, flag = body.partition("!")
    if is_hook_name(body):
        body = translate(body)
    if bang and flag != "before":
        raise _bad(text, f'"!{flag}" is not a flag', 'the only flag is "!before"')
    where, dot, name = body.rpartition(".")
    site = _located(text, where if dot else "", name, before=bool(bang))
    if not at_sign:
        return site
    query, arrow, key = tail.partition("<-")
    row = site.row
    if arrow and (row is None or not row.square):
        raise _bad(text, f"{name} has one position axis", 'write it without "<-"')
    return replace(site, at=_position(query, text), source=_position(key, text) if arrow else None)


def parse_edge(text: str) -> Edge:
    """Read an edge, `sender->receiver`.

    Raises
    ------
    SiteError: not an edge, or an end carries a position.
    """
    left, arrow, right = text.partition("->")
    if not arrow:
        raise _bad(text, "an edge needs an arrow", "for example L5H3.z->L9KV2.k")
    ends = [parse(left), parse(right)]
    for end in ends:
        if end.at is not None or end.before:
            raise _bad(text, f"the end {end} carries a position or flag", "name the bare sites")
    return Edge(ends[0], ends[1])


def expand(site: str | Site, facts: Facts) -> list[Site]:
    """Every single site that an address names in a model with these facts, in model order.

    A `*` skips layers that lack the point; a layer named by number is refused where it does.

    Raises
    ------
    SiteError: out of range, a point this family lacks, or a query head asked of a grouped key.
    """
    if isinstance(site, str) and is_hook_name(name := re.split("[@!]", site, maxsplit=1)[0]):
        site = translate(name, facts) + site[len(name) :]
    site = parse(site)
    if site.row is None:
        raise SiteError(
            f'there is no dictionary "{site.point}" on this model',
            why="a dictionary is a point once it is attached to the model",
            instead=f"read a point of the table, for example L{site.layer}.resid_post",
        )
    if site.row.scope != LAYER:
        _refuse_lacking(site, facts.lacks.get(site.point))
        return [site]
    everywhere = isinstance(site.layer, Several) and site.layer.kind == "all"
    if isinstance(site.layer, Several):
        layers = site.layer.pick(facts.n_layers, "layer")
    else:
        assert site.layer is not None  # the parser requires it
        layers = [_in_range(site.layer, facts.n_layers, "layer")]
    found: list[Site] = []
    for layer in layers:
        reason = facts.layers[layer].lacks.get(site.point)
        if reason is not None and everywhere:
            continue
        _refuse_lacking(replace(site, layer=layer), reason)
        found.extend(_units(replace(site, layer=layer), facts))
    if not found:
        reason = facts.layers[0].lacks.get(site.point, "")
        raise SiteError(
            f"no layer of this model has {site.point}", why=reason, instead="see `microtome models check`"
        )
    return found


def expand_all(sites: str | Site | Sequence[str | Site], facts: Facts) -> list[Site]:
    """`expand` over one or several addresses, duplicates removed, order kept."""
    many = [sites] if isinstance(sites, str | Site) else list(sites)
    if not many:
        raise SiteError("no sites were given", why="the list is empty", instead='for example "L*.resid_pre"')
    return list(dict.fromkeys(one for site in many for one in expand(site, facts)))


def _units(site: Site, facts: Facts) -> list[Site]:
    if not site.unit:
        return [site]
    assert isinstance(site.layer, int)
    row = POINTS[site.point]
    layer = facts.layers[site.layer]
    sizes = {"H": layer.n_heads, "KV": layer.n_kv_heads, "N": layer.d_mlp}
    unit = site.unit
    if unit not in row.letters:
        if unit in ("H", "KV") and layer.n_heads == layer.n_kv_heads and set(row.letters) & {"H", "KV"}:
            unit = "KV" if unit == "H" else "H"
        else:
            raise _wrong_unit(site, row, layer.n_heads, layer.n_kv_heads)
    size = sizes[unit] or 0
    what = {"H": "head", "KV": "key/value head", "N": "neuron"}[unit]
    if isinstance(site.index, Several):
        chosen = site.index.pick(size, what)
    else:
        assert site.index is not None
        chosen = [_in_range(site.index, size, what)]
    return [replace(site, unit=unit, index=i) for i in chosen]


def _wrong_unit(site: Site, row: Point, n_heads: int, n_kv: int) -> SiteError:
    name = f"L{site.layer}{site.unit}{site.index}.{site.point}"
    if site.unit == "H" and "KV" in row.letters and isinstance(site.index, int) and site.index < n_heads:
        group = n_heads // n_kv
        kv = site.index // group
        others = [f"H{h}" for h in range(kv * group, (kv + 1) * group) if h != site.index]
        shared = " and ".join(others)
        return SiteError(
            f"{name}: H{site.index} reads KV{kv}, shared with {shared}",
            why=f"this model groups {n_heads} query heads over {n_kv} key/value heads",
            instead=f"say L{site.layer}KV{kv}.{site.point}",
        )
    if site.unit == "KV" and "H" in row.letters and isinstance(site.index, int) and n_kv:
        group = n_heads // n_kv
        heads = ",".join(str(h) for h in range(site.index * group, (site.index + 1) * group))
        return SiteError(f"{name}: {site.point} is per query head", why=f"KV{site.index} is read by heads {heads}",
                         instead=f"say L{site.layer}H{heads}.{site.point}")  # fmt: skip
    allowed = (
        ", ".join(f"L{site.layer}{u}0.{site.point}" for u in row.letters) or f"L{site.layer}.{site.point}"
    )
    return SiteError(f"{name}: {site.point} has no {site.unit} axis", why=f"its axes are {', '.join(row.axes)}",
                     instead=f"for example {allowed}")  # fmt: skip


def _refuse_lacking(site: Site, reason: str | None) -> None:
    if reason is not None:
        raise SiteError(
            f"this model has no {site.bare}", why=reason, instead="`microtome models check` lists what it has"
        )


def _located(text: str, where: str, name: str, *, before: bool) -> Site:
    if not where:
        row = point(name)
        if row.scope == LAYER:
            raise _bad(text, f"{name} is a point of a layer", f"say L5.{name}, or L*.{name} for every layer")
        return Site(name, before=before)
    match = _WHERE.match(where)
    if match is None:
        raise _bad(
            text, f'"{where}" does not say where', "for example L5, L*, L0:12, L0,3,7, L9H6, L9KV2, L3N1021"
        )
    unit = match["unit"] or ""
    if unit != "F":
        row = point(name)
        if row.scope != LAYER:
            raise _bad(text, f"{name} belongs to no layer", f'say "{name}"')
    elif name in POINTS:
        raise _bad(
            text, f"F picks a feature of a dictionary, and {name} is not one", "say L5F77.name_of_dictionary"
        )
    layers = _several(match["layers"], text)
    return Site(name, layers, unit, _several(match["index"], text) if unit else None, before)


def _several(text: str, whole: str) -> int | Several:
    if text == "*":
        return Several("all")
    if re.fullmatch(r"\d+", text):
        return int(text)
    if re.fullmatch(r"\d+:\d+", text):
        low, high = (int(part) for part in text.split(":"))
        if low >= high:
            raise _bad(
                whole, f"the range {text} is reversed or empty", "ranges are half-open: 0:12 is 0 to 11"
            )
        return Several("range", (low, high))
    if re.fullmatch(r"\d+(,\d+)+", text):
        values = tuple(int(part) for part in text.split(","))
        if len(set(values)) != len(values):
            raise _bad(whole, f"{text} names something twice", "name each once")
        return Several("list", values)
    raise _bad(whole, f'"{text}" is not a choice', "use *, 3, 0,3,7 or 0:12")


def _position(text: str, whole: str) -> At:
    if re.fullmatch(r"-?\d+", text):
        return At(start=int(text), single=True)
    if re.fullmatch(r"(-?\d+)?:(-?\d+)?", text):
        low, high = (int(part) if part else None for part in text.split(":"))
        if low is not None and high is not None and (low < 0) == (high < 0) and low >= high:
            raise _bad(whole, f"the range {text} is reversed or empty", "ranges are half-open: 3:8 is 3 to 7")
        return At(start=low, stop=high)
    match = _SPAN.match(text)
    if match is None:
        raise _bad(whole, f'"{text}" is not a position', "use @-1, @3, @3:8, @subject or @subject[-1]")
    if match["sub"] is None:
        return At(span=match["span"])
    inside = _position(match["sub"], whole)
    if inside.span:
        raise _bad(
            whole,
            f'"{match["sub"]}" does not count tokens',
            "inside a span use @subject[-1] or @subject[0:2]",
        )
    return replace(inside, span=match["span"])


def _in_range(index: int, size: int, what: str) -> int:
    if not 0 <= index < size:
        raise SiteError(
            f"there is no {what} {index}", why=f"this model has {size}", instead=f"use 0 to {size - 1}"
        )
    return index


def _bad(text: str, why: str, instead: str) -> SiteError:
    return SiteError(f'"{text}" is not an address', why=why, instead=instead)
