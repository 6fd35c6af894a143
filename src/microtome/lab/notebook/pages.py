"""A page: front matter and text, as a value; from bytes, and to bytes.

    ---
    kind: belief                       one of `KINDS`; a folder's name says it where it is missing
    title: L9H6 moves names
    date: 2026-11-28
    anything: else                     kept as it is
    ---

    Free text.

Reading forgives what editors and people do (a byte-order mark, CRLF, tabs, no front matter, a value with a colon in it) and
says so in `problems`; it never changes the file.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from microtome.errors import LabError
from microtome.lab.notebook import front
from microtome.results.frozen import digest

__all__ = ["KINDS", "Page", "decode", "parse", "render", "slug"]

KINDS: Mapping[str, str] = {
    "log": "log",
    "highlights": "highlights.md",
    "belief": "beliefs",
    "decision": "decisions",
    "idea": "ideas",
    "ratings": "ratings",
    "questions": "questions.md",
    "goals": "goals.md",
    "plan": "plan.md",
    "stage": "stages",
    "review": "reviews",
    "post-mortem": "postmortems",
    "note": "notes",
}
"""Kind -> the folder of its pages, or the one page that there is of it."""
_OF_PLACE = {place.removesuffix(".md"): kind for kind, place in KINDS.items()}
_HEAD = ("kind", "title", "date")
_MOST = 40
_LONGEST = 65536
_DEVICES = {"con", "prn", "aux", "nul", *(f"{n}{i}" for n in ("com", "lpt") for i in range(10))}


@dataclass(frozen=True)
class Page:
    """One page of a notebook.

    kind: one of `KINDS` (a person may write another; it is kept). title, date ("2026-11-28", or ""): as in the front matter;
    where that has none, the first heading or the file's name, and the date at its front.
    fields: the rest of the front matter. body: what stands under it, untouched.
    path: relative to the notebook, with "/". digest: BLAKE2b-128 of the file's bytes, "" for a page that was not read.
    problems: what is odd about the file, a sentence each.

    Raises
    ------
    LabError: fields that front matter cannot hold.
    """

    kind: str
    title: str
    date: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    body: str = ""
    path: str = ""
    digest: str = field(default="", compare=False)
    problems: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        taken = [key for key in _HEAD if key in self.fields]
        if taken:
            raise LabError(f'a field is called "{taken[0]}"', why="a page says that by itself", instead=f"Page({taken[0]}=...)")  # fmt: skip
        for name in _HEAD:
            front.freeze(getattr(self, name), f"the {name} of a page")
        object.__setattr__(self, "fields", front.freeze(dict(self.fields), "the front matter"))


def decode(data: bytes, path: str) -> str:
    """The text of a page's bytes, without a byte-order mark.

    Raises
    ------
    LabError: not UTF-8; the file and the line are named.
    """
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise LabError(
            f"{path or 'the page'} line {line} is not UTF-8",
            why=f"byte {data[error.start]:#04x} stands where a character should begin",
            instead="save the file as UTF-8 in your editor",
        ) from error


def parse(data: bytes, path: str = "") -> Page:
    """The page that a file holds.

    path: relative to the notebook; it says the kind, title and date that the front matter does not.

    Raises
    ------
    LabError: not UTF-8.
    """
    text = decode(data, path)
    head, body, problems = _split(text)
    values: dict[str, Any] = {}
    written: dict[str, str] = {}
    if head is not None:
        values, written, odd = _front(head)
        problems += odd
    told = {name: _plain(name, values, written, problems) for name in _HEAD}
    place = PurePosixPath(path)
    kind = told["kind"] if told["kind"] is not None else _kind_of(place)
    title = told["title"] if told["title"] is not None else _title_of(body, place)
    date = told["date"] if told["date"] is not None else _date_of(place)
    if date and not re.fullmatch(r"\d{4}-\d\d-\d\d", date):
        problems.append(f'the date "{date}" is not written as 2026-11-28')
    rest = {key: value for key, value in values.items() if key not in _HEAD}
    return Page(
        front.shown(kind),
        front.shown(title),
        front.shown(date),
        _cleaned(rest),
        body,
        path,
        digest(data),
        tuple(problems),
    )


def _split(text: str) -> tuple[str | None, str, list[str]]:
    """Front matter (None without one), body, problems. The body keeps every character."""
    lines = [line for line in re.split(r"(?<=\n)", text) if line]
    if not lines or lines[0].rstrip() != "---":
        return None, text, []
    size = 0
    for i, line in enumerate(lines[1:], start=1):
        size += len(line)
        if size > _LONGEST:
            return (
                None,
                text,
                [f"line 1 opens front matter of more than {_LONGEST} characters; all of it is read as text"],
            )
        if line.rstrip() in ("---", "...") and not line[0].isspace():
            rest = lines[i + 1 :]
            if rest and rest[0] in ("\n", "\r\n"):  # the line that `render` puts between
                rest = rest[1:]
            return "".join(lines[1:i]).replace("\r\n", "\n"), "".join(rest), []
    return None, text, ["line 1 opens front matter that no line --- closes; all of it is read as text"]


def _front(head: str) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    odd = []
    plain = re.sub(r"^[ \t]*\t[ \t]*", lambda m: m[0].replace("\t", "  "), head, flags=re.M)
    plain = re.sub(r"^([\w -]+:)\t+", r"\1 ", plain, flags=re.M)
    if plain != head:
        odd.append("the front matter has tabs; they are read as spaces")
    try:
        values, written, more = front.load(plain)
    except front.Raw as error:
        found = front.salvage(plain)
        said = f"line {error.line + 1}: the front matter is no YAML ({error.why})"
        odd.append(f"{said}; its lines are read as text. Put quotes around values with : or # in them")
        return dict(found), found, odd
    return (
        values,
        written,
        odd + [re.sub(r"^line (\d+)", lambda m: f"line {int(m[1]) + 1}", one) for one in more],
    )


def _plain(
    name: str, values: Mapping[str, Any], written: Mapping[str, str], problems: list[str]
) -> str | None:
    """A value of the front matter as it is written; None where there is none."""
    if values.get(name) is None:
        return None
    if name not in written:
        problems.append(f"{name} is a list or a mapping; it is not read")
        return None
    return written[name]


def _kind_of(place: PurePosixPath) -> str:
    first = place.parts[0] if len(place.parts) > 1 else place.stem
    return _OF_PLACE.get(first, "note")


def _title_of(body: str, place: PurePosixPath) -> str:
    heading = re.search(r"^#[ \t]+(\S.*)$", body, flags=re.M)
    return heading[1].rstrip(" \t\r#") if heading else place.stem


def _date_of(place: PurePosixPath) -> str:
    match = re.match(r"\d{4}-\d\d-\d\d(?!\d)", place.stem)
    return match[0] if match else ""


def _cleaned(value: Any) -> Any:
    """What any file may hold, as what a value may."""
    if isinstance(value, str):
        return front.shown(value)
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    if isinstance(value, dict):
        return {front.shown(key): _cleaned(item) for key, item in value.items()}
    return value


def render(page: Page) -> bytes:
    """The bytes of a page; `parse` gives the page back (without its problems, which are those of a file).

    Raises
    ------
    LabError: text that is not Unicode (a lone surrogate).
    """
    dated = page.date or _date_of(PurePosixPath(page.path))  # an empty date is said where the name has one
    head = {"kind": page.kind, "title": page.title, **({"date": page.date} if dated else {}), **page.fields}
    try:
        return f"---\n{front.dump(head)}---\n\n{page.body}".encode()
    except UnicodeEncodeError as error:
        raise LabError(
            "the text of a page is not Unicode",
            why=f"character {error.start} is half of a pair",
            instead="remove it",
        ) from error


def slug(title: str) -> str:
    """A file's name (without ending) for a title: letters, digits and dashes, at most 40; never a path, never empty.

    Where signs are lost that may carry the meaning ("a > b", "a < b"), or the end is cut off, six digits of a hash keep two
    titles apart. A slug is its own slug.
    """
    plain = " ".join(unicodedata.normalize("NFKC", title).casefold().split())
    words = re.sub(r"[.,;:!?'\"()]+", "", plain)
    name = re.sub(r"[\W_]+", "-", words).strip("-")
    if not name or len(name) > _MOST or name in _DEVICES or re.search(r"[^\w\s-]|(?<!\w)-|-(?!\w)", words):
        name = f"{name[: _MOST - 7].strip('-') or 'page'}-{digest(plain, size=3)}"
    return name
