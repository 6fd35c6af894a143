"""Texts that are equal, or nearly so."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from microtome.tasks.checks import quote

if TYPE_CHECKING:
    from microtome.tasks.labelled import LabelledText
    from microtome.tasks.lint import Finding

__all__ = ["NEAR", "find", "words"]

NEAR = 0.8  # weighted Jaccard from which on two texts are near duplicates
_OFTEN = 20  # one text in so many has a word that counts in full
_LEAST = 3  # distinct words that a text must have, and texts that a template must have to be known as one
_KEYS = 3  # rarest words of a text by which its neighbours are looked up
_COMMON = 64  # a word that more texts have finds no neighbours
_SHOWN = 3

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def words(text: str) -> list[str]:
    """The words of a text without case, width or punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def find(
    data: LabelledText, parts: Mapping[str, Sequence[int]], spelled: Sequence[Sequence[str]]
) -> list[Finding]:
    """Equal and nearly equal texts in different parts; without a split, anywhere. spelled: the `words` of each text."""
    home = {i: part for part, members in parts.items() for i in members}
    keys = [" ".join(w) or t.strip() for w, t in zip(spelled, data.texts, strict=True)]
    by: dict[str, list[int]] = {}
    for i, key in enumerate(keys):
        by.setdefault(key, []).append(i)
    equal = [(m[0], j) for m in by.values() for j in m[1:]]
    crossing = [
        (i, j) for m in by.values() if len(m) > 1 for i, j in _crossing(m, home)
    ] if parts else equal  # fmt: skip
    split = [(i, j) for i, j in equal if data.labels[i] != data.labels[j]]
    near = [
        (i, j)
        for i, j in _near(_without_template(spelled, data.groups.get("template")))
        if keys[i] != keys[j]
    ]
    if parts:
        near = [(i, j) for i, j in near if i in home and j in home and home[i] != home[j]]
    return [
        *_finding(data, "duplicate", "error", split, "pairs of equal texts have different labels"),
        *_finding(data, "duplicate", "error" if parts else "warning", crossing, "texts are copies of one in another part of the split" if parts else "texts are copies of another"),
        *_finding(data, "near_duplicate", "warning" if parts else "note", near, f"pairs of texts {'in different parts of the split ' if parts else ''}share at least {NEAR:.0%} of their words, those of a template counting less"),
    ]  # fmt: skip


def _crossing(members: Sequence[int], home: Mapping[int, str]) -> Iterator[tuple[int, int]]:
    """Per copy in another part than the first: the two."""
    inside = [i for i in members if i in home]
    for j in inside[1:]:
        if home[j] != home[inside[0]]:
            yield inside[0], j


def _without_template(spelled: Sequence[Sequence[str]], template: Sequence[str] | None) -> list[list[str]]:
    """Texts without the words that half or more of their template's texts have: those are the template's, not theirs."""
    if template is None:
        return [list(w) for w in spelled]
    often: dict[str, Counter[str]] = {}
    size = Counter(template)
    for w, name in zip(spelled, template, strict=True):
        often.setdefault(name, Counter()).update(set(w))
    return [
        [x for x in w if size[t] < _LEAST or 2 * often[t][x] < size[t]]
        for w, t in zip(spelled, template, strict=True)
    ]


def _near(spelled: Sequence[Sequence[str]]) -> Iterator[tuple[int, int]]:
    """Pairs whose sets of words are alike. A word counts 1 that at most one text in 20 has, less the more have it: 0 if all do."""
    sets = [frozenset(w) for w in spelled]
    df = Counter(w for s in sets for w in s)
    n = len(sets)
    weight = {w: min(1.0, math.log((n + 1) / c) / math.log(_OFTEN)) for w, c in df.items()}
    total = [sum(weight[w] for w in s) for s in sets]
    index: dict[str, list[int]] = {}
    for i, s in enumerate(sets):
        if len(s) < _LEAST:
            continue
        rare = sorted((w for w in s if df[w] <= _COMMON), key=lambda w: (df[w], w))[:_KEYS]
        seen = {j for w in rare for j in index.get(w, ())}
        for j in sorted(seen):
            both = sum(weight[w] for w in s & sets[j])
            if both >= NEAR * (total[i] + total[j] - both):
                yield j, i
        for w in rare:
            index.setdefault(w, []).append(i)


def _finding(data: LabelledText, kind: str, severity: str, pairs: Sequence[tuple[int, int]], what: str) -> list[Finding]:  # fmt: skip
    from microtome.tasks.lint import Finding

    if not pairs:
        return []
    shown = tuple(f"{i}: {quote(data.texts[i])} / {j}: {quote(data.texts[j])}" for i, j in pairs[:_SHOWN])
    return [Finding(kind, severity, f"{len(pairs)} {what}", shown, float(len(pairs)))]
