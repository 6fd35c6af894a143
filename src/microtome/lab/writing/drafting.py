"""The file in which the author writes: places for words, between blocks that are computed and not to be edited.

    ---
    microtome: "write-up 1"
    title: "..."
    ---
    <!-- yours summary -->
    ... the author's words ...
    <!-- end -->
    <!-- computed claim 1 0123456789abcdef -->
    ... generated: the mark has its digest, so that an edit shows ...
    <!-- end -->

Drafting again keeps the author's words and makes the computed blocks anew from the record.
"""  # fmt: skip

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microtome.errors import LabError
from microtome.lab.writing.collecting import Words
from microtome.lab.writing.markdown import sections
from microtome.lab.writing.whole import write_whole
from microtome.results.frozen import digest

if TYPE_CHECKING:
    from microtome.lab.writing.values import WriteUp

__all__ = ["Draft", "draft", "read_draft", "write_draft"]

FORMAT = "write-up 1"
LARGEST = 4_000_000
"""Characters of a draft."""
_COMPUTED = re.compile(r"<!-- computed (.{1,200}) ([0-9a-f]{16}) -->")
_YOURS = re.compile(r"<!-- yours (.{1,200}) -->")
_END = "<!-- end -->"
_HINTS = {
    "summary": "<!-- what somebody who reads nothing else must know: question, what was found, how far to believe it; at most 600 words -->",
    "limitations": "<!-- what you know of its limits that the record does not -->",
    "verified": "<!-- what you verified by hand, and how: prompts read, code read, numbers made again elsewhere -->",
    "why": "<!-- why does this bear on the claim? what would it have looked like if the claim were wrong? -->",
}
_HEAD = ("microtome", "title", "authors", "claims", "seed")


@dataclass(frozen=True)
class Draft:
    """A draft read back: the words, the numbers of the claims, the seed, the names of its computed blocks."""

    words: Words
    claims: tuple[int, ...]
    seed: int
    blocks: tuple[str, ...]


def draft(write_up: WriteUp) -> str:
    """The text of the draft of a write-up."""
    head = {"microtome": FORMAT, "title": write_up.title, "authors": list(write_up.authors),
            "claims": [p.claim.number for p in write_up.claims], "seed": write_up.seed}  # fmt: skip
    lines = ["---", *(f"{k}: {json.dumps(v, ensure_ascii=True)}" for k, v in head.items()), "---", ""]
    lines += ["<!-- Write between the marks called yours. What is computed is made anew from the record; edits there are refused. -->", ""]  # fmt: skip
    for section in sections(write_up):
        if section.computed:
            lines += [f"<!-- computed {section.name} {_digest(section.text)} -->", section.text, _END, ""]
        else:
            hint = _HINTS[section.name.partition(" ")[0]]
            lines += [f"<!-- yours {section.name} -->", section.text.strip() or hint, _END, ""]
    return "\n".join(lines)


def write_draft(write_up: WriteUp, path: str | Path) -> Path:
    """Write the draft; its absolute path. Raises ResourceError when it cannot be written."""
    return write_whole(path, draft(write_up).encode("utf-8"))


def read_draft(path: str | Path) -> Draft:
    """The author's words of a draft.

    Raises LabError: a file that cannot be read or is no draft, a computed block that was edited (it names it), words outside of the
    places for them, a mark without its end, or one place twice.
    """
    place = Path(path).expanduser()
    try:
        text = place.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LabError(f"{place} cannot be read", why=str(error), instead="microtome report draft makes a new one") from error  # fmt: skip
    if len(text) > LARGEST:
        raise LabError(f"{place} has {len(text)} characters", why=f"at most {LARGEST} are read", instead="shorten it")  # fmt: skip
    return parse_draft(text, str(place))


def parse_draft(text: str, name: str) -> Draft:
    """As `read_draft`, of the text. Raises LabError."""
    lines = text.replace("\r\n", "\n").split("\n")
    head, at = _head(lines, name)
    words: dict[str, str] = {}
    blocks: list[str] = []
    hints = set(_HINTS.values())
    while at < len(lines):
        line = lines[at].strip()
        computed, yours = _COMPUTED.fullmatch(line), _YOURS.fullmatch(line)
        if computed is None and yours is None:
            if line and not (line.startswith("<!-- Write between") and line.endswith("-->")):
                raise _bad(name, f"line {at + 1} stands outside of the places for your words", "move it between <!-- yours ... --> and <!-- end -->")  # fmt: skip
            at += 1
            continue
        end = next((i for i in range(at + 1, len(lines)) if lines[i].strip() == _END), None)
        found = computed or yours
        assert found is not None
        label = found.group(1)
        if end is None or any(_COMPUTED.fullmatch(x.strip()) or _YOURS.fullmatch(x.strip()) for x in lines[at + 1 : end]):  # fmt: skip
            raise _bad(name, f"the block {label!r} of line {at + 1} has no end", f"{_END} after it")
        body = "\n".join(lines[at + 1 : end])
        if label in words or label in blocks:
            raise _bad(name, f"the block {label!r} is there twice", "remove one of them")
        if yours is not None:
            words[label] = "\n".join(x for x in body.split("\n") if x.strip() not in hints).strip()
        else:
            assert computed is not None
            if _digest(body) != computed.group(2):
                raise _bad(name, f"the computed block {label!r} of line {at + 1} was edited", "take the edit back, or remove the block with its marks and draft again; your own words belong into the places called yours")  # fmt: skip
            blocks.append(label)
        at = end + 1
    return _made(head, words, tuple(blocks), name)


def _head(lines: list[str], name: str) -> tuple[dict[str, Any], int]:
    """(the values of the head, the line after it)."""
    if not lines or lines[0].strip() != "---" or "---" not in (x.strip() for x in lines[1:40]):
        raise _bad(name, "it has no head", "microtome report draft")
    end = next(i for i in range(1, 40) if lines[i].strip() == "---")
    head: dict[str, Any] = {}
    for i, line in enumerate(lines[1:end], 2):
        key, colon, value = line.partition(":")
        key = key.strip()
        if not line.strip():
            continue
        try:
            if not colon or key not in _HEAD or key in head:
                raise ValueError(f"{key!r} is none of {', '.join(_HEAD)}, or is there twice")
            head[key] = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise _bad(name, f"line {i}: {error}", 'values are JSON: title: "..."') from error
    if head.get("microtome") != FORMAT:
        raise _bad(name, f"its format is {head.get('microtome')!r}, this Microtome reads {FORMAT!r}", "update Microtome, or draft again")  # fmt: skip
    return head, end + 1


def _made(head: dict[str, Any], words: dict[str, str], blocks: tuple[str, ...], name: str) -> Draft:
    title, authors, claims, seed = (head.get(k) for k in ("title", "authors", "claims", "seed"))
    whole = isinstance(claims, list) and all(type(n) is int and n > 0 for n in claims)
    named = isinstance(authors, list) and all(isinstance(a, str) for a in authors)
    if not isinstance(title, str) or not named or not whole or type(seed) is not int or seed < 0:
        raise _bad(name, "its head does not say title, authors, claims and seed", 'title: "...", authors: ["..."], claims: [1], seed: 0')  # fmt: skip
    assert isinstance(claims, list) and isinstance(authors, list)
    why = {label.partition(" ")[2]: text for label, text in words.items() if label.startswith("why ")}
    unknown = [label for label in words if not label.startswith("why ") and label not in _HINTS]
    if unknown:
        raise _bad(name, f"nobody reads the place {unknown[0]!r}", "write in one that the draft has")
    made = Words(title.strip(), tuple(a.strip() for a in authors if a.strip()), words.get("summary", ""),
                 words.get("limitations", ""), words.get("verified", ""), why)  # fmt: skip
    return Draft(made, tuple(claims), seed, blocks)


def check_words(words: Words, write_up: WriteUp) -> None:
    """Raise LabError where the author's words have no place in the write-up, or there is no summary."""
    known = {f"{p.claim.number}.{e.row.number}" for p in write_up.claims for e in p.experiments}
    for key, text in words.why.items():
        if text.strip() and key not in known:
            claim, _, run = key.partition(".")
            raise LabError(
                f"your words on run {run} for claim {claim} have no place",
                why="that run is not among the experiments of that claim (any more)",
                instead="move them, or empty the place; microtome report draft makes the places anew",
            )
    if not write_up.summary:
        raise LabError(
            "the summary is empty",
            why="it is all that most readers read",
            instead="write it in the draft, or --summary FILE",
        )


def _digest(text: str) -> str:
    """Of a block's text, blanks around it and at the ends of its lines aside: editors trim them."""
    return digest("\n".join(line.rstrip() for line in text.strip().split("\n")))[:16]


def _bad(name: str, what: str, instead: str) -> LabError:
    return LabError(f"{name}: {what}", why="a draft is read by its marks", instead=instead)
