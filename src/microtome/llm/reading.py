"""Reading what a model answered, without guessing: points of a list, a number that was asked for, a refusal.

What cannot be read is counted as such by every caller; it is never replaced by a middle value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from microtome.errors import ChatError
from microtome.llm.chat import Chat, Message, Reply, Sampling

__all__ = [
    "GREEDY",
    "RULE",
    "Group",
    "ask",
    "chance_matches",
    "fenced",
    "group",
    "need_text",
    "number_after",
    "points_of",
    "refused",
    "same_point",
    "word_after",
]

GREEDY = Sampling()
"""The most repeatable answer that a server gives."""
SHARED_WORDS, SHARED_SHARE = 2, 0.5
RULE = (
    f"two points are the same when they share at least {SHARED_WORDS} content words (letters and digits, lower case, "
    f"first six characters, function words left out), these are at least {SHARED_SHARE:.0%} of the shorter point's, and both or "
    "neither hold a word that denies"
)
_ITEM = re.compile(r"^\s{0,3}(?:[-*•]|\d{1,2}[.)])\s+(?P<text>\S.*)$")
_COMMON = frozenset(re.findall(
    r"[a-z]+",
    "a about above after again all also an and any are as at be because been being both but by can could did do does each for from had "
    "has have here how if in into is it its just like made make may might more most much must no nor not of on one only or other our "
    "out over same should so some such than that the their them then there these they this those through to too under up very was we "
    "were what when where which while who why will with would you your text claim author says said point",
))  # fmt: skip
_NEGATIONS = re.compile(r"\b(?:no|not|never|none|nor|without|cannot|lacks?|fails?)\b|n['’]t\b", re.I)
_REFUSALS = (
    "i can't", "i cannot", "i can not", "i'm sorry", "i am sorry", "i won't", "i will not", "i'm unable", "i am unable",
    "i'm not able", "i am not able", "as an ai",
)  # fmt: skip


def ask(chat: Chat, system: str, user: str, sampling: Sampling) -> Reply:
    """One question in a context of its own. Raises ChatError as the chat does."""
    messages = [Message("system", system)] if system else []
    return chat.ask([*messages, Message("user", user)], sampling)


def fenced(name: str, text: str) -> str:
    """Material between two lines that say where it begins and ends; a line of the text that looks like one of them is indented.

    What stands inside is material, and the prompts say so; a model may still obey it, so nothing of an answer is ever run.
    """
    name = " ".join(name.split())
    mark = re.compile(rf"^(?=(?:BEGIN|END) {re.escape(name)}$)", re.MULTILINE)
    return f"BEGIN {name}\n{mark.sub('  ', text.strip())}\nEND {name}"


def points_of(text: str) -> tuple[str, ...]:
    """The points of an answer: lines that begin with a bullet or a number; a line that goes on with a point is joined to it.

    Prose without a list has no points: nothing is cut out of it.
    """
    points: list[str] = []
    open_ = False
    for line in text.splitlines():
        found = _ITEM.match(line)
        if found:
            points.append(found["text"].strip())
            open_ = True
        elif open_ and line.startswith((" ", "\t")) and line.strip():
            points[-1] += " " + line.strip()
        else:
            open_ = False
    return tuple(points)


def _said(text: str, name: str) -> str | None:
    """What stands after "NAME:"; None where no line begins so, or several say different things. Markdown's marks are taken off."""
    lines = re.findall(rf"^[ \t>#*_-]*{re.escape(name)}[*_ ]*:(.*)$", text, re.M | re.I)
    said = {line.strip(" \t\r*_.").lower() for line in lines}
    return said.pop() if len(said) == 1 else None


def number_after(text: str, name: str, low: float, high: float) -> float | None:
    """The number in the one line "NAME: number" ("7", "7/10"); None for no such line, several that differ, or one out of range."""
    found = re.fullmatch(r"(-?\d+(?:\.\d+)?)(?: ?(?:/|out of) ?\d+)?", _said(text, name) or "", re.ASCII)
    value = float(found[1]) if found else math.nan
    return value if low <= value <= high else None


def word_after(text: str, name: str, allowed: Sequence[str]) -> str | None:
    """The word in the one line "NAME: word", as `allowed` spells it; None for none, another word, or several that differ."""
    return {word.lower(): word for word in allowed}.get(_said(text, name) or "")


def refused(text: str) -> bool:
    """Whether the answer begins as a refusal does: a list of phrases within its first 80 characters."""
    start = text.strip().lower().replace("’", "'")[:80]
    return any(phrase in start for phrase in _REFUSALS)


@lru_cache(maxsize=4096)
def content_words(text: str) -> frozenset[str]:
    """Words of a point that carry meaning, cut to six characters so that "sample" and "samples" are one."""
    words = re.findall(r"[^\W_]+", text.lower())
    return frozenset(w[:6] for w in words if w not in _COMMON and (len(w) > 1 or w.isdigit()))


def same_point(a: str, b: str) -> bool:
    """Whether two points say the same, by `RULE`: crude on purpose, so that a reader can redo it."""
    if bool(_NEGATIONS.search(a)) != bool(_NEGATIONS.search(b)):
        return False
    one, other = content_words(a), content_words(b)
    shared = len(one & other)
    return shared >= SHARED_WORDS and shared >= SHARED_SHARE * min(len(one), len(other))


@dataclass(frozen=True)
class Group:
    """Points that are the same by `RULE`. text: the first of them. by: who made it, in the order asked."""

    text: str
    by: tuple[str, ...]
    points: tuple[tuple[str, str], ...]


def group(points: Sequence[tuple[str, str]]) -> tuple[Group, ...]:
    """Pairs (who, point) as groups: a point joins the first group whose first point is the same, else begins one.

    Two points of one speaker may land in one group; they then count once. Order: most speakers first, then as given.
    """
    groups: list[list[tuple[str, str]]] = []
    for who, point in points:
        home = next((g for g in groups if same_point(g[0][1], point)), None)
        if home is None:
            groups.append([(who, point)])
        else:
            home.append((who, point))
    made = [Group(g[0][1], tuple(dict.fromkeys(who for who, _ in g)), tuple(g)) for g in groups]
    return tuple(sorted(made, key=lambda g: -len(g.by)))


def chance_matches(points: Sequence[tuple[str, str]]) -> tuple[int, int]:
    """(matches, pairs) among points of one and the same speaker: how often the rule calls different points the same.

    A speaker asked for distinct points made them, so these matches are the rule's false ones: the null of "several agree".
    """
    matches = pairs = 0
    for i, (who, point) in enumerate(points):
        for other, another in points[i + 1 :]:
            if who == other:
                pairs += 1
                matches += same_point(point, another)
    return matches, pairs


def need_text(text: object, what: str) -> str:
    """Text that is not empty. Raises ChatError."""
    if not isinstance(text, str) or not text.strip():
        raise ChatError(f"{what} is empty", why="there is nothing to ask about", instead="give the text itself")  # fmt: skip
    return text
