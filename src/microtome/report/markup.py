"""HTML from Python values, in which forgetting to escape is not possible: text is escaped unless it is `Html`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..figures.text import visible
from ..results.html import escaped

_VOID = frozenset({"br", "hr", "img", "meta", "link", "wbr"})

Content = object  # text, Html, None, or any nesting of lists of them


class Html(str):
    """Text that is HTML already."""


def escape(text: object) -> Html:
    """Text for element content or a quoted attribute.

    What UTF-8 cannot hold, and controls that do not print or reorder the text beside them, are written out.
    """
    return Html(escaped(text))


def join(*content: Content) -> Html:
    """Content one after the other."""
    return Html("".join(_flat(content)))


def tag(name: str, /, *content: Content, **attributes: object) -> Html:
    """An element. Attributes: `cls` is class, underscores are hyphens, None and False are left out, True is bare."""
    given = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = "class" if key == "cls" else key.rstrip("_").replace("_", "-")
        given.append(f" {key}" if value is True else f' {key}="{escape(value)}"')
    start = f"<{name}{''.join(given)}>"
    return Html(start if name in _VOID else f"{start}{join(*content)}</{name}>")


def token(text: object, *, most: int = 40) -> Html:
    """A token, its blanks and controls visible, kept apart from the direction of the text around it."""
    return tag("bdi", visible(text, most=most), cls="token")


def token_strip(tokens: Sequence[object], strengths: Sequence[float] = (), *, most: int = 400) -> Html:
    """A prompt token by token; a very long one says how many are hidden.

    strengths: one number a token, from -1 to 1, shown as an underline as thick as it is large: blue above 0, brown below.
    """
    if len(strengths) != len(tokens):
        strengths = [float("nan")] * len(tokens)
    shown = [
        tag("span", token(t), tag("sub", i), **_strength(s))
        for i, (t, s) in enumerate(zip(tokens[:most], strengths, strict=False))
    ]
    hidden = len(tokens) - len(shown)
    return tag("p", shown, tag("span", f" … {hidden} more tokens") if hidden else None, cls="strip")


def _strength(value: float) -> dict[str, str]:
    if value != value:
        return {"cls": "tok"}
    return {"cls": "tok up" if value >= 0 else "tok down", "style": f"--share:{min(1.0, abs(value)):.3f}"}


def table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[Content]],
    *,
    cls: str = "",
    numeric: Sequence[int] = (),
) -> Html:
    """A table that scrolls by itself where it is too wide and reads as cards on a phone (class "cards")."""
    names = tag(
        "tr", [tag("th", h, scope="col", cls="num" if i in numeric else None) for i, h in enumerate(head)]
    )
    lines = []
    for row in rows:
        cells = [
            tag("td", c, data_label=head[i] if i < len(head) else None, cls="num" if i in numeric else None)
            for i, c in enumerate(row)
        ]
        lines.append(tag("tr", cells))
    made = tag("table", tag("caption", caption), tag("thead", names), tag("tbody", lines), cls=cls or None)
    return tag("div", made, cls="scroll", tabindex="0", role="region", aria_label=caption)


def fold(summary: Content, *content: Content, open_: bool = False, cls: str | None = None) -> Html:
    """A part that opens when asked."""
    return tag("details", tag("summary", summary), *content, open=open_, cls=cls)


def _flat(content: Iterable[Content]) -> Iterable[str]:
    for item in content:
        if item is None or item is False:
            continue
        if isinstance(item, Html):
            yield item
        elif isinstance(item, (list, tuple)):
            yield from _flat(item)
        else:
            yield escape(item)
