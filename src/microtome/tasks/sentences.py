"""A text cut into sentences, such that joining them gives it back exactly.

White space belongs to the sentence that it precedes, as in most tokenizers: a text that ends after a sentence ends where a token
does. A line break always cuts; a fenced block of code is one piece.
"""

from __future__ import annotations

import re

__all__ = ["split_sentences"]

_ABBREVIATIONS = frozenset(
    [
        "mr",
        "mrs",
        "ms",
        "dr",
        "prof",
        "st",
        "sr",
        "jr",
        "vs",
        "etc",
        "e.g",
        "i.e",
        "cf",
        "al",
        "fig",
        "eq",
        "eqs",
        "sec",
        "no",
        "nos",
        "vol",
        "pp",
        "approx",
        "dept",
        "est",
        "inc",
        "ltd",
        "co",
        "corp",
        "gen",
        "gov",
        "sen",
        "rep",
        "jan",
        "feb",
        "mar",
        "apr",
        "jun",
        "jul",
        "aug",
        "sep",
        "sept",
        "oct",
        "nov",
        "dec",
        "u.s",
        "u.k",
        "a.m",
        "p.m",
        "ph.d",
    ]
)
_ALWAYS = frozenset(
    ["mr", "mrs", "ms", "dr", "prof", "st", "e.g", "i.e", "cf", "vs", "fig", "eq", "eqs", "al", "approx"]
)
"""Abbreviations that go on whatever follows; the others may end a sentence before a capital letter."""
_END = re.compile(r"""(?:[.!?…]+|[。！？]+)["'”’)\]}*_]*""")
_FENCE = re.compile(r"^[ \t]*(```+|~~~+)", re.M)


def split_sentences(text: str) -> tuple[str, ...]:
    """The sentences of a text, in order; "".join of them is the text. Empty for a text of white space only.

    A full stop does not end a sentence in a number (3.5), after a known abbreviation, a single initial or the number of a list
    item, or where no white space follows. Formulas and code in single backticks are not cut.
    """
    if not text.strip():
        return ()
    cuts = sorted({0, *_cuts(text), len(text)})
    pieces = [text[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    out: list[str] = []
    lead = ""
    for piece in pieces:
        if piece.strip():
            out.append(lead + piece)
            lead = ""
        else:  # blank stretches go in front of what follows
            lead += piece
    if lead:
        out[-1] += lead
    return tuple(out)


def _cuts(text: str) -> list[int]:
    found: list[int] = []
    fences = _fences(text)
    spans = [*fences, *(m.span() for m in re.finditer(r"`[^`\n]+`|\$[^$\n]+\$", text))]
    for low, high in fences:
        found += [low, high]
    for m in re.finditer(r"\n", text):
        if not _inside(m.start(), fences):
            found.append(m.start())
    for m in _END.finditer(text):
        after = m.end()
        if after < len(text) and not text[after].isspace() and m.group()[0] not in "。！？":
            continue
        if _inside(m.start(), spans) or _goes_on(text, m):
            continue
        found.append(after)
    return found


def _fences(text: str) -> list[tuple[int, int]]:
    """Fenced blocks; one that is never closed goes to the end."""
    marks = list(_FENCE.finditer(text))
    out, k = [], 0
    while k < len(marks):
        kind = marks[k].group(1)[:3]
        close = next((j for j in range(k + 1, len(marks)) if marks[j].group(1).startswith(kind)), None)
        high = len(text)
        if close is not None:
            line = text.find("\n", marks[close].end())
            high = len(text) if line < 0 else line
        out.append((marks[k].start(), high))
        k = len(marks) if close is None else close + 1
    return out


def _inside(at: int, spans: list[tuple[int, int]]) -> bool:
    return any(low < at < high or (low == at and high > at + 1) for low, high in spans)


def _goes_on(text: str, end: re.Match[str]) -> bool:
    """Whether a single full stop belongs to an abbreviation, an initial or a list number."""
    if end.group() != ".":
        return False
    before = text[: end.start()]
    word = re.search(r"[\w.]*$", before)
    token = "" if word is None else word.group().casefold().lstrip(".")
    line = before[before.rfind("\n") + 1 :]
    if re.fullmatch(r"\s*(?:[-*+>]\s*)?(?:\(?\d{1,3}|[a-zA-Z])", line):
        return True  # "1." at the head of a line
    rest = text[end.end() :].lstrip()
    if len(token) == 1 and token.isalpha() and token != "i" and before[-1:].isupper():
        return bool(rest) and rest[0].isupper()  # an initial: "J. Smith"
    if token not in _ABBREVIATIONS:
        return False
    return token in _ALWAYS or not rest[:1].isupper()
