"""Columns over which token attributions of several prompts may be averaged: places where aligned, spans otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from microtome.replay.bench import Bench


@dataclass(frozen=True)
class TokenColumn:
    """label: a position or a span's name, or "rest"; places: per prompt the positions in it."""

    label: int | str
    places: tuple[tuple[int, ...], ...]


def token_columns(bench: Bench, places: Sequence[Sequence[int]]) -> list[TokenColumn]:
    """Every position where all prompts have one length and one layout of spans, else the spans that all have, and the rest.

    A token in several spans counts for the first of them, so that columns add up.
    """
    spans = [dict(s) for s in bench.spans] or [{} for _ in bench.ids]
    if len({tuple(at) for at in places}) == 1 and all(s == spans[0] for s in spans):
        return [TokenColumn(p, tuple((p,) for _ in places)) for p in places[0]]
    common = [n for n in spans[0] if all(s.get(n) is not None for s in spans)]
    left = [set(at) for at in places]
    out = []
    for name in common:
        here = []
        for i, own in enumerate(spans):
            low, high = own[name] or (0, 0)
            inside = tuple(p for p in range(low, high) if p in left[i])
            left[i] -= set(inside)
            here.append(inside)
        if all(here):
            out.append(TokenColumn(name, tuple(here)))
        else:  # a span that lies inside another is no column of its own
            for i, inside in enumerate(here):
                left[i] |= set(inside)
    rest = tuple(tuple(sorted(s)) for s in left)
    if any(rest):
        out.append(TokenColumn("rest", rest))
    return out
