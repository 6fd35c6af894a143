"""Quotes checked against the text that they are said to come from.

A quote counts as verified when the source holds it word for word: white space, kinds of quotation marks and dashes, ligatures,
soft hyphens and words hyphenated at a line's end aside. Anything else is reported with its nearest passage and never counted.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from microtome.errors import ChatError

__all__ = ["Quote", "QuoteCheck", "check_quoting", "holds", "quotes_in", "verify", "verify_quotes"]

Status = Literal["verified", "altered", "absent", "short"]
MIN_WORDS = 4
"""Shorter quotes stand in any text."""
LONG = 1000
"""Characters of a quote from which likeness is measured by words: by characters it would take long."""
NEAR = 0.8
"""difflib's ratio over characters from which a passage is called the one that was altered."""

_SAME = {
    "‘": "'", "’": "'", "‚": "'", "‛": "'", "′": "'", "“": '"', "”": '"', "„": '"', "‟": '"', "″": '"', "«": '"', "»": '"',
    "‐": "-", "‑": "-", "‒": "-", "–": "-", "—": "-", "―": "-", "−": "-", "…": "...",
    "ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st",
}  # fmt: skip
_NOTHING = frozenset("\u00ad\u200b\u200c\u200d\u2060\ufeff")
_JOINS = frozenset("-‐‑−")  # before a word they belong to it: "non-linear", "-5"
_BREAK = "\x00"  # a hyphen at a line's end, which may belong to the word or to the line
_LINE_END = re.compile(r"(?<=[^\W\d_])[-‐\u00ad][ \t]*\r?\n[ \t]*(?=[^\W\d_])")
_QUOTED = re.compile(r"“([^“”]+)”|«([^«»]+)»|(?<!\w)\"([^\"]+)\"(?!\w)")


@dataclass(frozen=True)
class Quote:
    """A quote and what became of it.

    source, start, end, line: where it stands, in characters of the source as given (line from 1); of an altered quote, where the
    nearest passage stands. ratio: likeness to it (1 for a verified quote). found: the passage. diff: word by word, of an altered
    one: "[-source-]" and "{+quote+}".
    """

    text: str
    status: Status
    source: str = ""
    start: int = -1
    end: int = -1
    line: int = 0
    ratio: float = 0.0
    found: str = ""
    diff: str = ""

    @property
    def verified(self) -> bool:
        """Whether the source holds it word for word."""
        return self.status == "verified"


@dataclass(frozen=True)
class _Plain:
    """A text with its variants of writing made one. at: for each character, its place in the text as given."""

    text: str
    at: tuple[int, ...]
    original: str

    def span(self, start: int, end: int) -> tuple[int, int]:
        return self.at[start], self.at[end - 1] + 1


def _plain(text: str) -> _Plain:
    breaks = {m.start(): m.end() for m in _LINE_END.finditer(text)}
    out: list[str] = []
    at: list[int] = []
    i = 0
    while i < len(text):
        char, step = text[i], 1
        if i in breaks:
            new, step = _BREAK, breaks[i] - i
        elif char in _NOTHING:
            new = ""
        elif char.isspace():
            new = "" if not out or out[-1] == " " else " "
        else:
            new = _SAME.get(char, char)
        out.extend(new)
        at.extend([i] * len(new))
        i += step
    while out and out[-1] == " ":
        out.pop()
        at.pop()
    return _Plain("".join(out), tuple(at), text)


def _pattern(quote: str) -> re.Pattern[str]:
    """The quote, with a line-end hyphen of the source allowed between any two letters, and where the quote has a hyphen."""
    parts = []
    for i, char in enumerate(quote):
        if char == _BREAK:
            parts.append(f"[-{_BREAK}]?")
            continue
        parts.append(f"[-{_BREAK}]" if char == "-" else re.escape(char))
        if char.isalpha() and quote[i + 1 : i + 2].isalpha():
            parts.append(f"{_BREAK}?")
    return re.compile("".join(parts))


def _whole(plain: _Plain, start: int, end: int) -> bool:
    """Whether a passage begins and ends where words and numbers do: "able" is no quote from "unable", "3 heads" none from "0.3 heads"."""
    text = plain.text
    before, after = text[start - 1 : start], text[end : end + 1]
    if text[start].isalnum() and before:
        if before.isalnum() or before in (_BREAK, "_"):
            return False
        joined = plain.original[plain.at[start - 1]] in _JOINS
        if joined and (text[start].isdigit() or text[start - 2 : start - 1].isalnum()):
            return False
        if text[start].isdigit() and before in ".," and text[start - 2 : start - 1].isdigit():
            return False
    if text[end - 1].isalnum() and after:
        if after.isalnum() or after in (_BREAK, "_"):
            return False
        following = text[end + 1 : end + 2]
        if plain.original[plain.at[end]] in _JOINS and following.isalnum():
            return False
        if text[end - 1].isdigit() and after in ".," and following.isdigit():
            return False
    return True


def verify(quote: str, sources: Mapping[str, str] | str) -> Quote:
    """A quote looked up in its sources: names to texts, or one text.

    Status: "verified"; "altered": not there, but a passage is like it (difflib's ratio at least `NEAR`); "absent"; "short": fewer
    than `MIN_WORDS` words, which would be found anywhere. Only "verified" counts. A verified quote says that the words are there,
    not that they support what is said of them, and not what stands before and after them.

    Raises ChatError without a source.
    """
    texts = _sources(sources)
    asked = _plain(quote.strip())
    if _words(asked) < MIN_WORDS:
        return Quote(quote, "short")
    plains = {name: _plain(text) for name, text in texts.items()}
    for name, plain in plains.items():
        if span := _span(asked, plain):
            return _placed(quote, "verified", name, plain, span, 1.0)
    nearest = max((_nearest(asked.text, name, plain) for name, plain in plains.items()), key=lambda n: n[0])
    ratio, name, span = nearest
    return _placed(quote, "altered" if ratio >= NEAR else "absent", name, plains[name], span, ratio)


def holds(source: str, quote: str, least_words: int = MIN_WORDS) -> bool:
    """Whether `verify` finds a quote in a source, without a search for the nearest passage; False under `least_words` words."""
    asked = _plain(quote.strip())
    return _words(asked) >= max(least_words, 1) and _span(asked, _plain(source)) is not None


def _words(plain: _Plain) -> int:
    return len(re.findall(r"[^\W_]+", plain.text))


def _span(asked: _Plain, plain: _Plain) -> tuple[int, int] | None:
    """Where a text has a quote as whole words; None for nowhere."""
    found = (match.span() for match in _pattern(asked.text).finditer(plain.text))
    return next((span for span in found if _whole(plain, *span)), None)


def verify_quotes(quotes: Sequence[str] | str, sources: Mapping[str, str] | str) -> tuple[Quote, ...]:
    """Each quote looked up, in order; of one text, every quote that it holds (see `quotes_in`)."""
    given = quotes_in(quotes) if isinstance(quotes, str) else tuple(quotes)
    return tuple(verify(quote, sources) for quote in given)


def quotes_in(text: str) -> tuple[str, ...]:
    """What a text quotes: whatever stands between quotation marks, and Markdown block quotes (lines that begin with >)."""
    found: list[tuple[int, str]] = []
    block = re.compile(r"(?:^[ \t]*>[^\n]*(?:\n|\Z))+", re.M)
    for match in block.finditer(text):
        lines = [re.sub(r"^[ \t]*>[ \t]?", "", line) for line in match.group().splitlines()]
        found.append((match.start(), "\n".join(lines).strip().strip('"“”')))
    rest = block.sub(lambda m: "\n" * len(m.group()), text)
    for match in _QUOTED.finditer(rest):
        found.append((match.start(), next(g for g in match.groups() if g is not None).strip()))
    return tuple(quote for _, quote in sorted(found) if quote)


def _sources(sources: Mapping[str, str] | str) -> dict[str, str]:
    texts = {"source": sources} if isinstance(sources, str) else dict(sources)
    if not texts or not any(text.strip() for text in texts.values()):
        raise ChatError("no source was given", why="a quote is checked against the text that it is from", instead="sources={'paper': text}")  # fmt: skip
    return texts


def _placed(quote: str, status: Status, name: str, plain: _Plain, span: tuple[int, int], ratio: float) -> Quote:  # fmt: skip
    if span[0] >= span[1]:
        return Quote(quote, status)
    start, end = plain.span(*span)
    found = plain.original[start:end]
    line = plain.original.count("\n", 0, start) + 1
    if status == "absent":
        return Quote(quote, status, ratio=ratio)
    return Quote(quote, status, name, start, end, line, ratio, found, _diff(found, quote) if status == "altered" else "")  # fmt: skip


def _nearest(quote: str, name: str, plain: _Plain) -> tuple[float, str, tuple[int, int]]:
    """(ratio, source, span) of the passage of about the quote's length that shares most words with it, measured by characters."""
    words = [(m.group().lower(), m.start(), m.end()) for m in re.finditer(r"\S+", plain.text)]
    asked = [w.lower() for w in quote.split()]
    if not words:
        return 0.0, name, (0, 0)
    n, known = len(asked), set(asked)
    hits = [word in known for word, _, _ in words]
    starts = range(max(1, len(words) - n + 1))
    total, counts = sum(hits[:n]), []
    for i in starts:
        counts.append(total)
        total += (hits[i + n] if i + n < len(hits) else 0) - hits[i]
    best = (0.0, name, (0, 0))
    for i in sorted(starts, key=lambda i: -counts[i])[:8]:
        for first, last in {
            (max(i + a, 0), min(i + n + b, len(words))) for a in (-1, 0, 1) for b in (-1, 0, 1)
        }:
            if first < last:
                span = (words[first][1], words[last - 1][2])
                ratio = _ratio(plain.text[slice(*span)], quote, best[0])
                best = max(best, (ratio, name, span), key=lambda b: (b[0], -b[2][0]))
    return best


def _ratio(passage: str, quote: str, best: float) -> float:
    """difflib's ratio by characters (of very long quotes by words); 0 where it cannot be larger than the best so far."""
    long = len(quote) > LONG
    matcher: difflib.SequenceMatcher[str] = difflib.SequenceMatcher(None, "", "", autojunk=False)
    matcher.set_seqs(*((passage.split(), quote.split()) if long else (passage, quote)))
    return matcher.ratio() if matcher.real_quick_ratio() > best and matcher.quick_ratio() > best else 0.0


def _diff(found: str, quote: str) -> str:
    a, b = found.split(), quote.split()
    out = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind == "equal":
            out.append(" ".join(a[i:j]))
            continue
        out += [f"[-{' '.join(a[i:j])}-]"] * (i < j) + [f"{{+{' '.join(b[k:m])}+}}"] * (k < m)
    return " ".join(out)


@dataclass(frozen=True)
class QuoteCheck:
    """The check checked. true: sentences of the source in other typography: how many were verified, of how many; fabricated:
    the same with one word changed; foreign: sentences of another text. Of the last two none may be verified."""

    true: tuple[int, int]
    fabricated: tuple[int, int]
    foreign: tuple[int, int]

    @property
    def passed(self) -> bool:
        """All true ones verified, none of the others."""
        return self.true[0] == self.true[1] > 0 and not self.fabricated[0] and not self.foreign[0]


def check_quoting(sources: Mapping[str, str] | str, other: Mapping[str, str] | str, *, n: int = 20, seed: int = 0) -> QuoteCheck:  # fmt: skip
    """The null of quote checking on these very sources: planted true quotes are found, fabrications and foreign sentences are not.

    other: text that is no part of the sources; a sentence that stands in both is left out. n: sentences of either at most.
    Raises ChatError where either holds no sentence of `MIN_WORDS` words and more.
    """
    from microtome.results import seeds

    generator = seeds.rng(seed, "planted quotes")
    own, strange = _sentences(sources), _sentences(other)
    everything = {_plain(s).text for s in own}
    strange = [s for s in strange if _plain(s).text not in everything]
    if not own or not strange:
        raise ChatError("no sentence to plant", why=f"a planted quote has at least {MIN_WORDS} words", instead="longer texts")  # fmt: skip
    own = [own[i] for i in sorted(generator.permutation(len(own))[:n])]
    strange = [strange[i] for i in sorted(generator.permutation(len(strange))[:n])]
    made = [_fabricated(s, int(generator.integers(1 << 30))) for s in own]
    return QuoteCheck(*(_count(q, sources) for q in ([_retyped(s) for s in own], made, strange)))


def _count(quotes: Sequence[str], sources: Mapping[str, str] | str) -> tuple[int, int]:
    return sum(q.verified for q in verify_quotes(quotes, sources)), len(quotes)


def _sentences(sources: Mapping[str, str] | str) -> list[str]:
    found = (s.strip() for text in _sources(sources).values() for s in re.split(r"(?<=[.!?])\s+", text))
    return [s for s in found if _words(_plain(s)) >= MIN_WORDS]


def _retyped(sentence: str) -> str:
    """The same words in other typography: ligatures, curly apostrophes, other line breaks."""
    return (
        _plain(sentence).text.replace(_BREAK, "").replace("fi", "ﬁ").replace("'", "’").replace(" ", "\n", 2)
    )


def _fabricated(sentence: str, draw: int) -> str:
    """One word replaced by one that stands in no text."""
    words = sentence.split()
    words[draw % len(words)] = "quorzle"
    return " ".join(words)
