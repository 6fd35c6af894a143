"""The cells of a result by what their labels mean: `L9H6.z@-1` is the row of site L9H6.z at position -1.

Techniques label rows in more than one way: the head in the address or in a column, the position in either, and
cells that are no site at all ("final_bias", "set of 5", "tone: polite - rude").
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from ..errors import LabError, SiteError
from ..sites import Several, Site, parse

__all__ = ["Place", "check_label", "place", "same_label"]

_ADDRESS = re.compile(r"L[\d*]")
_ARROW = re.compile(r"\s*(?<!<)->\s*")


@dataclass(frozen=True)
class Place:
    """A cell, or in a question several. site: where the label is an address; text: the label otherwise, edges included,
    "" for none. layer, head: None where nothing says. position: as text, "" where nothing says."""

    site: Site | None
    text: str
    layer: int | None
    head: int | None
    position: str

    def covers(self, row: Place) -> bool:
        """Whether all that this place says is true of a row."""
        if self.text and self.text != row.text:
            return False
        if self.site is not None and (row.site is None or not _covers(self.site, row.site)):
            return False
        agree = ((self.layer, row.layer), (self.head, row.head), (self.position or None, row.position))
        return all(asked is None or asked == found for asked, found in agree)


def place(site: str | None, layer: int | None, head: int | None, position: int | str | None) -> Place:
    """The meaning of a row's labels, or of what was asked. Text that is no address stays text."""
    at = "" if position is None else str(position)
    found = _read(site) if site is not None else None
    if found is None:
        return Place(None, _text(site), layer, head, at)
    bare = found.bare
    if isinstance(bare.layer, Several) and layer is not None:
        bare = replace(bare, layer=layer)
    if not bare.unit and head is not None and bare.row is not None and "H" in bare.row.letters:
        bare = replace(bare, unit="H", index=head)
    written = (
        "" if found.at is None else str(found.at) + ("" if found.source is None else f"<-{found.source}")
    )
    if not bare.single:
        layer, head = (None if isinstance(bare.layer, Several) else layer), None
    else:
        layer = bare.layer if isinstance(bare.layer, int) else layer
        head = bare.index if bare.unit == "H" and isinstance(bare.index, int) else head
    return Place(replace(bare, before=found.before), "", layer, head, at or written)


def same_label(asked: str, found: str) -> bool:
    """Whether a label means what was asked: the same address, one that it covers, or the same text."""
    return place(asked, None, None, None).covers(place(found, None, None, None))


def check_label(site: str, layer: int | None, head: int | None, position: int | str | None) -> None:
    """Raises SiteError for text that begins as an address and is none, LabError where the site and the other labels
    contradict each other."""
    for end in _ARROW.split(site.strip()):
        if _ADDRESS.match(end) and _read(end) is None and not end.endswith(".attn_bias"):
            parse(end)
    alone = place(site, None, None, None)
    for name, given, found in (
        ("layer", layer, alone.layer),
        ("head", head, alone.head),
        ("position", None if position is None else str(position), alone.position or None),
    ):
        if given is not None and found is not None and given != found:
            raise LabError(f"the site is {site} and {name} is {given}", why=f"the address says {name} {found}", instead=f"leave {name}= out")  # fmt: skip


@lru_cache(maxsize=4096)
def _read(label: str) -> Site | None:
    try:
        return parse(label)
    except SiteError:
        return None


def _text(label: str | None) -> str:
    """The label as it is; an edge with each end as the grammar writes it."""
    if label is None:
        return ""
    ends = _ARROW.split(label.strip())
    if len(ends) > 1:
        return "->".join(str(_read(end) or end) for end in ends)
    return label


def _covers(asked: Site, row: Site) -> bool:
    return (
        asked.point == row.point
        and asked.unit == row.unit
        and asked.before == row.before
        and _holds(asked.layer, row.layer)
        and _holds(asked.index, row.index)
    )


def _holds(asked: int | Several | None, found: int | Several | None) -> bool:
    if isinstance(asked, Several) and isinstance(found, int):
        if asked.kind == "all":
            return True
        values = asked.values
        return values[0] <= found < values[1] if asked.kind == "range" else found in values
    return asked == found
