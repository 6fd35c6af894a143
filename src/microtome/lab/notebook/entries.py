"""Entries: what is appended to a page, and how it is read again.

    ## 2026-11-28 10:15 +00:00 Head 6 copies names

    - goal: see whether L9H6 reads the subject
      and not only the object
    - runs: run 17, run:0fa3b2c4

A heading of the second order with a date and a time begins an entry; items "- name: text" under it are its fields, lines
indented by two go on with the item above. Everything else is free text and belongs to the entry above it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone

from microtome.errors import LabError
from microtome.lab.notebook import front
from microtome.lab.notebook.pages import Page
from microtome.results.frozen import FrozenDict

__all__ = ["Entry", "aware", "entries", "links", "write"]

_HEADING = re.compile(
    r"##[ \t]+(?:(?P<day>\d{4}-\d\d-\d\d)[ \t]+)?(?P<time>\d\d?:\d\d)(?:[ \t]*(?P<zone>[-+]\d\d:?\d\d|Z))?(?:[ \t]+(?P<title>.*))?"
)
_FIELD = re.compile(r"- ([A-Za-z][\w -]*?):(?:[ \t]+(.*))?")
_LINK = re.compile(r"\brun(?:\s+(\d+)|:([0-9a-f]{4,64}))\b")
_FENCE = re.compile(r" ?(`{3,}|~{3,})([^`]*)")
_CLOSES = re.compile(r"(---|\.\.\.)\s*")  # would close front matter that somebody left open


@dataclass(frozen=True)
class Entry:
    """One entry of a page.

    at: when, with its offset from UTC, to the minute. title: one line. fields: name -> text, in order; empty ones are left
    out. text: free text under them.

    Raises
    ------
    LabError: a time without an offset, a title of several lines, a name of a field that would not be read again.
    """

    at: datetime
    title: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    text: str = ""

    def __post_init__(self) -> None:
        put = object.__setattr__
        at = aware(self.at, "the time of an entry").replace(second=0, microsecond=0)
        offset = timedelta(minutes=round((at.utcoffset() or timedelta()).total_seconds() / 60))
        put(self, "at", at.replace(tzinfo=timezone(offset) if offset else UTC))
        put(self, "title", _one_line(self.title))
        for name in self.fields:
            if not re.fullmatch(r"[A-Za-z](?:[\w -]*\w)?", name):
                raise LabError(f"a field of an entry is called {name!r}", why="a name has letters, digits, spaces and dashes", instead="another name")  # fmt: skip
        kept = {name: _lines(text.strip()) for name, text in self.fields.items()}
        put(self, "fields", FrozenDict({name: text for name, text in kept.items() if text}))
        put(self, "text", _lines(self.text))


def aware(at: datetime, what: str) -> datetime:
    """The same moment with a fixed offset from UTC: times of one zone with summer time would be subtracted by the wall clock.

    Raises
    ------
    LabError: the time says no offset: it would mean another moment on another machine.
    """
    offset = at.utcoffset()
    if offset is None:
        raise LabError(f"{what} is {at}", why="without an offset from UTC it means another moment on another machine",
                       instead="datetime.now().astimezone()")  # fmt: skip
    return at.replace(tzinfo=timezone(offset), fold=0)


def _one_line(text: str) -> str:
    """A title: line breaks and runs of blanks are one blank, control characters are shown as escapes."""
    return front.shown(" ".join(text.split()))


def _lines(text: str) -> str:
    """Text without trailing blanks and blank lines at either end; control characters are shown as escapes."""
    lines = [front.shown(line).replace("\t", "    ").rstrip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    while lines and not lines[0]:
        lines.pop(0)
    return "\n".join(lines)


def write(entry: Entry) -> str:
    """The entry as Markdown. Its text can neither begin another entry nor become a field."""
    zone = entry.at.strftime("%z")
    lines = [f"## {entry.at:%Y-%m-%d %H:%M} {zone[:3]}:{zone[3:5]} {entry.title}".rstrip(), ""]
    for name, text in entry.fields.items():
        first, *rest = text.split("\n")
        lines += [f"- {name}: {first}", *(f"  {line}".rstrip() for line in rest)]
    if entry.fields and entry.text:
        lines.append("")
    free = entry.text.split("\n") if entry.text else []
    lines += [f"> {line}".rstrip() for line in free] if _misread(free) else free
    return "\n".join(lines).rstrip("\n") + "\n"


def _misread(text: list[str]) -> bool:
    """Whether free text would be read as an entry, a field or a quote of ours: then it is written as a quote."""
    signs = (_HEADING.fullmatch, _FIELD.fullmatch, _FENCE.match, _CLOSES.fullmatch)
    return (
        any(sign(line) for line in text for sign in signs)
        or any(line.startswith("  ") for line in text[:1])
        or all(line.startswith(">") for line in text if line)
    )


def _fenced(lines: list[str]) -> set[int]:
    """Lines within ``` or ~~~ that is closed again; a fence that nobody closes hides nothing."""
    inside: set[int] = set()
    opened, mark = -1, ""
    for i, line in enumerate(lines):
        match = _FENCE.fullmatch(line)
        if match and opened < 0:
            opened, mark = i, match[1]
        elif match and match[1].startswith(mark) and not match[2].strip():
            inside |= set(range(opened, i + 1))
            opened = -1
    return inside


def entries(page: Page, zone: timezone = UTC) -> tuple[Entry, ...]:
    """The entries of a page, in the order of the file.

    zone: what a person's heading without an offset means. A heading with a time but no day takes the page's date; one for
    which there is none, or which is no time ("## 25:00"), is text.
    """
    found: list[Entry] = []
    begun: tuple[datetime, str] | None = None
    lines: list[str] = []
    every = page.body.replace("\r\n", "\n").split("\n")
    fenced = _fenced(every)
    for i, line in enumerate(every):
        match = None if i in fenced else _HEADING.fullmatch(line.rstrip())
        at = _time(match, page.date, zone) if match else None
        if match and at:
            found += [_read(*begun, lines)] if begun else []
            begun, lines = (at, match["title"] or ""), []
        else:
            lines.append(line)
    return tuple(found + ([_read(*begun, lines)] if begun else []))


def _time(match: re.Match[str], date: str, zone: timezone) -> datetime | None:
    try:
        naive = datetime.fromisoformat(f"{match['day'] or date}T{match['time'].zfill(5)}")
        if match["zone"] is None:
            return naive.replace(tzinfo=zone)
        said = "+00:00" if match["zone"] == "Z" else match["zone"]
        return datetime.fromisoformat(f"{naive:%Y-%m-%dT%H:%M}{said}")
    except ValueError:
        return None


def _read(at: datetime, title: str, lines: list[str]) -> Entry:
    fields: dict[str, str] = {}
    rest: list[str] = []
    name = ""
    for line in lines:
        match = _FIELD.fullmatch(line)
        if match and not any(rest):
            name = match[1]
            fields[name] = f"{fields[name]}\n{match[2] or ''}" if name in fields else match[2] or ""
        elif name and (line.startswith("  ") or not line.strip()) and not any(rest):
            fields[name] += f"\n{line[2:]}"
        else:
            rest.append(line)
    quoted = [line for line in rest if line.strip()]
    if quoted and all(line.startswith(">") for line in quoted):
        rest = [line[2:] if line.startswith("> ") else line[1:] for line in rest]
    return Entry(at, title, fields, "\n".join(rest))


def links(text: str) -> tuple[str, ...]:
    """The runs that a text names, in order and once each: "run 17" gives "17", "run:0fa3" gives "0fa3"."""
    return tuple(dict.fromkeys(match[1] or match[2] for match in _LINK.finditer(text)))
