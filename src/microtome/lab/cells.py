"""What a run found at the very sites that a claim names: a sweep is supported by its strongest cell, which may be another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from microtome.lab.evidence import CAUSAL, KINDS
from microtome.lab.overlap import addresses
from microtome.results.verdicts import SUPPORTED

if TYPE_CHECKING:
    from microtome.results import Result

__all__ = ["AtSites", "Overlaps", "at_sites"]

Overlaps = Callable[[Sequence[str], Sequence[str]], Sequence[str]]
"""What two lists of addresses share; nothing where they share nothing. An empty list is not known, and shares anything."""
_FOUND, _UNTESTED, _NOTHING, _UNKNOWN = range(4)  # the best that any stage says counts


@dataclass(frozen=True)
class AtSites:
    """Of the sites that a claim names. nothing: no cell there lies outside its null band. untested: one does, and controls
    with other donors ran on other cells only. A site of which the result says nothing is in neither."""

    nothing: tuple[str, ...] = ()
    untested: tuple[str, ...] = ()


def at_sites(result: Result, sites: Sequence[str], overlaps: Overlaps) -> AtSites:
    """Compare the cells of a result (or of its supported stages that change something) with their nulls at some sites."""
    kind = KINDS.get(result.kind)
    parts = [result]
    if kind is not None and kind.children:
        parts = [c for c in result.children if c.verdict == SUPPORTED and c.kind in KINDS and KINDS[c.kind].level == CAUSAL]  # fmt: skip
    found = {site: min((_one(part, site, overlaps) for part in parts), default=_UNKNOWN) for site in sites}
    return AtSites(
        tuple(s for s, k in found.items() if k == _NOTHING),
        tuple(s for s, k in found.items() if k == _UNTESTED),
    )


def _one(result: Result, site: str, overlaps: Overlaps) -> int:
    outside, inside, tested = _cells(result)
    if outside and overlaps((site,), outside):
        return _UNTESTED if tested and not overlaps((site,), tested) else _FOUND
    return _NOTHING if inside and overlaps((site,), inside) else _UNKNOWN


def _cells(result: Result) -> tuple[list[str], list[str], list[str]]:
    """Addresses of (cells outside their null band, cells inside, cells on which controls with other donors ran)."""
    if result.effects is None and "cells" not in result.tables:
        return [], [], []
    frame = result.frame().dropna(subset=["site", "value", "null_low", "null_high"])
    out = (frame["value"] < frame["null_low"]) | (frame["value"] > frame["null_high"])
    outside = set(frame["site"][out])
    tested: set[str] = set()
    if "donors" in result.tables:
        donors = result.tables["donors"]
        if {"donor", "site"} <= set(donors.columns):
            tested = set(donors["site"][donors["donor"] == "real"])
    named = (outside, set(frame["site"]) - outside, tested)
    one, two, three = (sorted(addresses(labels)) for labels in named)  # results also label cells "set of 5"
    return one, two, three
