"""The author's own words: a little Markdown (paragraphs, lists, **bold**, *emphasis*, `code`) as HTML, and made harmless as Markdown."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from microtome.report.markup import Html

__all__ = ["as_html", "as_markdown", "escape"]

_BULLET = re.compile(r"\s*(?:[-*]|\d{1,3}[.)])\s+")
_NUMBERED = re.compile(r"\s*\d{1,3}[.)]\s+")
_INLINE = re.compile(r"(`[^`\n]+`|\*\*[^*\n]+\*\*|(?<![\w*])\*[^*\s][^*\n]*\*(?![\w*]))")
_SPECIAL = re.compile(r"([\\`*_\[\]|~#!])")
_HEADING = re.compile(r"#{1,6}\s+")


def as_html(text: str) -> Html:
    """Paragraphs and lists; everything that is no such mark is shown as text, HTML too."""
    from microtome.report.markup import join, tag

    made = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = [line for line in block.split("\n") if line.strip()]
        if not lines:
            continue
        if _BULLET.match(lines[0]):
            name = "ol" if _NUMBERED.match(lines[0]) else "ul"
            made.append(tag(name, [tag("li", _inline(item)) for item in _items(lines)], cls="prose"))
        elif _HEADING.match(lines[0]):
            made.append(tag("h4", _inline(_HEADING.sub("", lines[0]))))
            if lines[1:]:
                made.append(tag("p", _inline(" ".join(x.strip() for x in lines[1:])), cls="prose"))
        else:
            made.append(tag("p", _inline(" ".join(x.strip() for x in lines)), cls="prose"))
    return join(made)


def _items(lines: list[str]) -> list[str]:
    items: list[str] = []
    for line in lines:
        found = _BULLET.match(line)
        if found or not items:
            items.append(line[found.end() if found else 0 :].strip())
        else:
            items[-1] += f" {line.strip()}"
    return items


def _inline(text: str) -> Html:
    from microtome.report.markup import join, tag

    made: list[object] = []
    for part in _INLINE.split(text):
        if part.startswith("`") and len(part) > 2:
            made.append(tag("code", part[1:-1]))
        elif part.startswith("**") and len(part) > 4:
            made.append(tag("strong", part[2:-2]))
        elif part.startswith("*") and part.endswith("*") and len(part) > 2:
            made.append(tag("em", part[1:-1]))
        else:
            made.append(part)
    return join(made)


def as_markdown(text: str) -> str:
    """The author's Markdown without HTML in it, and without characters that a terminal obeys."""
    safe = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text.replace("\t", "    "))
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", safe).strip()


def escape(text: object, most: int = 4000) -> str:
    """Text from anywhere as one line of Markdown that shows exactly these characters."""
    from microtome.figures.text import visible

    shown = visible(text, most=most, prose=True)
    shown = shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    shown = _SPECIAL.sub(r"\\\1", shown)
    shown = re.sub(r"^(\s*\d*)([-+.)])(?=\s)", r"\1\\\2", shown)  # no list, where it begins a line
    return re.sub(r"(?i)(https?|ftp)://", r"\1&#58;//", shown).replace("www.", "www&#46;")  # no link
