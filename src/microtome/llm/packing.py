"""What a model is given to read: papers, source of the library, the state of a project, within a budget of tokens.

The order is fixed, the budget is kept, what did not fit is listed, a cut is marked, and secrets are never packed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from microtome.errors import ChatError
from microtome.llm.never_sent import secret_file, secret_lines
from microtome.llm.reading import fenced

__all__ = ["Counter", "Left", "Packed", "Piece", "estimate", "library", "pack", "paper", "state"]

Counter = Callable[[str], int]
Kind = Literal["paper", "source", "state"]
PER_LETTER, PER_DIGIT, PER_MARK, MARGIN = 0.26, 1.4, 0.8, 1.25
"""Tokens per ASCII letter, digit and mark (white space is counted within), and how much more it may be. Fitted with SmolLM2's tokenizer
to the 640 files of at least 300 characters among this package's source, tests and pages: the estimate was 0.84 to 1.20 times the
count, in nine of ten files 0.94 to 1.06. A character outside ASCII counts as many tokens as it has bytes, which no byte-level tokenizer
exceeds. Another tokenizer, or other text (columns of blanks, base 64), may differ by more: give `count` where the budget is hard."""
LARGEST = 20_000_000
_TEXT = (".txt", ".md", ".markdown", ".rst", ".tex")
_SENTENCE = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+|\n\s*\n")


@dataclass(frozen=True)
class Piece:
    """Something to be read. priority: larger comes first; of equal ones the kinds come as state, paper, source, then by title."""

    title: str
    text: str
    priority: int = 0
    kind: Kind = "state"


@dataclass(frozen=True)
class Left:
    """What was not packed, or not whole: how many tokens of it are missing (0 where they were not counted), and why."""

    title: str
    tokens: int
    why: str


@dataclass(frozen=True)
class Packed:
    """What goes into a prompt. used: tokens of `text`, by the counter given, or at most so many by estimate (`estimated`: then
    `typical` is the likely number). titles: what is in it, in order; cut: which of them are not whole. left: what is missing."""

    text: str
    used: int
    typical: int
    budget: int
    estimated: bool
    titles: tuple[str, ...]
    cut: tuple[str, ...]
    left: tuple[Left, ...]

    def lines(self) -> tuple[str, ...]:
        """What was packed and what was left out, as lines. Not escaped."""
        how = (
            f"at most {self.used} (likely {self.typical}) by estimate"
            if self.estimated
            else f"{self.used} by the tokenizer"
        )
        out = [f"{len(self.titles)} pieces, {how}, of {self.budget} tokens: {', '.join(self.titles)}"]
        return (
            *out,
            *(f"left out: {x.title}{f', {x.tokens} tokens' if x.tokens else ''}: {x.why}" for x in self.left),
        )


def estimate(text: str) -> tuple[int, int]:
    """(likely, at most) tokens of a text without a tokenizer; see `PER_LETTER` for how it was measured."""
    letters = sum(c.isascii() and c.isalpha() for c in text)
    digits = sum(c.isascii() and c.isdigit() for c in text)
    plain = sum(c.isascii() for c in text)
    marks = sum(c.isascii() and not c.isspace() for c in text) - letters - digits
    other = len(text.encode("utf-8", "surrogatepass")) - plain
    likely = PER_LETTER * letters + PER_DIGIT * digits + PER_MARK * marks
    return math.ceil(likely) + other, math.ceil(likely * MARGIN) + other


def paper(path: str | Path, *, root: str | Path | None = None, priority: int = 0) -> Piece:
    """A paper or note from a text file (.txt, .md, .rst, .tex). root: a folder that it must lie in.

    Raises
    ------
    ChatError: a PDF (make text of it first), a file outside of root, one that may hold secrets, or one that is no UTF-8 text.
    """
    given = Path(path)
    real = given.resolve()
    if root is not None and not real.is_relative_to(Path(root).resolve()):
        raise ChatError(
            f"{given} lies outside of {root}", why="only that folder is read", instead="copy it there"
        )
    if why := secret_file(given) or secret_file(real):
        raise ChatError(f"{given} is not packed", why=why, instead="leave it out")
    if real.suffix.lower() == ".pdf" or _starts(real) == b"%PDF":
        raise ChatError(f"{given} is a PDF", why="its text would have to be guessed from the places of letters", instead=f"pdftotext -layout {given.name} {given.stem}.txt, look at it, and give the .txt")  # fmt: skip
    if real.suffix.lower() not in _TEXT:
        raise ChatError(
            f"{given} is no text by its ending",
            why=f"read are {', '.join(_TEXT)}",
            instead="save it as one of these",
        )
    try:
        if real.stat().st_size > LARGEST:
            raise ChatError(
                f"{given} has {real.stat().st_size:,} bytes",
                why=f"at most {LARGEST:,} are read",
                instead="a part of it",
            )
        text = real.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ChatError(f"{given} cannot be read", why=str(error), instead="a UTF-8 text file") from error
    return Piece(given.name, text, priority, "paper")


def library(modules: Iterable[str], *, priority: int = 0) -> tuple[Piece, ...]:
    """Source of modules of this package ("microtome.methods.patching"), one piece each.

    Raises ChatError for a module that is not there, has no source, or is not of this package.
    """
    from importlib.util import find_spec

    out = []
    for name in modules:
        if not re.fullmatch(r"microtome(\.\w+)*", name):
            raise ChatError(f"{name!r} is no module of this package", why="the library's own source is packed", instead='"microtome.methods.patching"')  # fmt: skip
        try:
            spec = find_spec(name)
        except ModuleNotFoundError:
            spec = None
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            raise ChatError(f"there is no module {name}", why="it is not installed here", instead="the name as it is imported")  # fmt: skip
        out.append(Piece(name, Path(spec.origin).read_text(encoding="utf-8"), priority, "source"))
    return tuple(out)


def state(items: Iterable[tuple[str, str, int]]) -> tuple[Piece, ...]:
    """The state of a project as (title, text, priority)."""
    return tuple(Piece(title, text, priority, "state") for title, text, priority in items)


def pack(pieces: Sequence[Piece], budget: int, *, count: Counter | None = None) -> Packed:
    """As much as fits into `budget` tokens, the most important first.

    A piece that does not fit whole is cut after a sentence (source: after a line), with a mark that says so; pieces after it are
    still tried. count: a tokenizer's count of a text's tokens (`lambda t: len(tokenizer(t)["input_ids"])`); None: the estimate's
    upper end, so that the budget holds. Texts with what looks like a key are left out, and the list says on which line.

    Raises
    ------
    ChatError: a budget under one token, two pieces with one title, or a counter that does not count.
    """
    titles = [p.title for p in pieces]
    if budget < 1 or len(set(titles)) < len(titles):
        twice = sorted({t for t in titles if titles.count(t) > 1})
        raise ChatError(f"budget {budget}, titles {', '.join(twice) or 'as given'}", why="at least one token, and each title once", instead="rename or merge them")  # fmt: skip
    measure = _Measure(count)
    kinds: tuple[Kind, ...] = ("state", "paper", "source")
    parts: list[str] = []
    packed: list[str] = []
    cut: list[str] = []
    left: list[Left] = []
    for piece in sorted(pieces, key=lambda p: (-p.priority, kinds.index(p.kind), p.title)):
        if lines := secret_lines(piece.text):
            left.append(
                Left(piece.title, 0, f"what looks like a key stands on line {', '.join(map(str, lines[:3]))}")
            )
            continue
        if not piece.text.strip():
            left.append(Left(piece.title, 0, "it is empty"))
            continue
        whole = fenced(piece.title, piece.text)
        if measure("\n\n".join([*parts, whole])) <= budget:
            parts.append(whole)
            packed.append(piece.title)
            continue
        shorter, missing = _cut(piece, parts, budget, measure)
        if shorter:
            parts.append(shorter)
            packed.append(piece.title)
            cut.append(piece.title)
        left.append(Left(piece.title, missing, "its end does not fit" if shorter else "it does not fit"))
    text = "\n\n".join(parts)
    used = measure(text)
    return Packed(text, used, estimate(text)[0] if count is None else used, budget, count is None, tuple(packed), tuple(cut), tuple(left))  # fmt: skip


@dataclass(frozen=True)
class _Measure:
    """Tokens of a text, by the counter given or the upper end of the estimate."""

    count: Counter | None

    def __call__(self, text: str) -> int:
        if self.count is None:
            return estimate(text)[1]
        found = self.count(text)
        if not isinstance(found, int) or isinstance(found, bool) or found < 0 or (text.strip() and not found):
            raise ChatError(f"the counter gave {found!r} for a text of {len(text)} characters", why="it counts tokens", instead='lambda t: len(tokenizer(t)["input_ids"])')  # fmt: skip
        return found


def _cut(piece: Piece, parts: Sequence[str], budget: int, measure: _Measure) -> tuple[str, int]:
    """(the piece up to the last sentence that fits, with a mark; tokens left out); "" where not one sentence fits."""
    ends = _ends(piece)
    total = measure(piece.text)

    def shown(end: int) -> str:
        return fenced(
            piece.title, f"{piece.text[:end].rstrip()}\n[cut here: the rest of {piece.title} is left out]"
        )

    low, high = 0, len(ends) - 1  # the last end is the whole text, which does not fit
    while low < high:  # the largest k with the first k ends fitting
        middle = (low + high + 1) // 2
        if measure("\n\n".join([*parts, shown(ends[middle - 1])])) <= budget:
            low = middle
        else:
            high = middle - 1
    if not low:
        return "", total
    return shown(ends[low - 1]), max(total - measure(piece.text[: ends[low - 1]]), 1)


def _ends(piece: Piece) -> list[int]:
    """Where the piece may be cut: after sentences and paragraphs, of source after lines; its end is the last."""
    pattern = re.compile(r"\n") if piece.kind == "source" else _SENTENCE
    ends = [m.end() for m in pattern.finditer(piece.text.rstrip())]
    return [*ends, len(piece.text)]


def _starts(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError:
        return b""
