"""Writing SVG: elements with escaped attributes, text in lines, colours. No ids, no links, no scripts."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_RGB = re.compile(r"rgba?\(\s*([\d.]+)\s*,\s*([\d.]+)\s*,\s*([\d.]+)\s*(?:,\s*([\d.]+)\s*)?\)")
_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_TAG = re.compile(r"</?(?:b|i|em|strong|sub|sup|span|u|s)(?:\s[^<>]*)?>", re.IGNORECASE)
_DASHES = {"dash": "6 4", "dot": "2 3", "longdash": "10 4", "dashdot": "6 3 2 3"}


def clean(text: object) -> str:
    """Escaped for XML, without characters that XML cannot hold."""
    return html.escape(_ILLEGAL.sub("\ufffd", str(text)), quote=True)


def lines_of(text: object) -> list[tuple[str, bool]]:
    """Plotly's label text as plain lines, each with whether it is bold; other marks are dropped."""
    return [(html.unescape(_TAG.sub("", part)), "<b>" in part.lower()) for part in _BREAK.split(str(text))]


def width_of(text: str, size: float) -> float:
    """About how many pixels a line takes."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return size * (0.56 * (len(text) - wide) + wide)


def rgb(colour: str) -> tuple[float, float, float]:
    """Red, green and blue in 0..255 of "#rrggbb" or "rgb(...)"; a middle grey for anything else."""
    found = _RGB.fullmatch(colour.strip())
    if found:
        r, g, b = (float(found[i]) for i in (1, 2, 3))
        return r, g, b
    if re.fullmatch("#[0-9a-fA-F]{6}", colour):
        return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
    return 128.0, 128.0, 128.0


class Pen:
    """Collects elements. theme: colours to exchange (a page may want "currentColor" for the ink)."""

    def __init__(self, theme: Mapping[str, str] | None = None) -> None:
        self.theme = dict(theme or {})
        self.parts: list[str] = []

    def paint(self, name: str, colour: object, opacity: float = 1.0) -> dict[str, Any]:
        """Attributes for a fill or stroke; rgba() becomes a colour and an opacity."""
        text = str(colour) if colour is not None else "none"
        text = self.theme.get(text, text)
        found = _RGB.fullmatch(text)
        if found:
            opacity *= float(found[4]) if found[4] else 1.0
            text = "#" + "".join(f"{round(float(found[i])):02x}" for i in (1, 2, 3))
        made: dict[str, Any] = {name: text}
        if opacity < 1:
            made[f"{name}-opacity"] = round(opacity, 3)
        return made

    def element(self, name: str, content: str | None = None, **attributes: object) -> None:
        """One element. Underscores in attribute names become hyphens; numbers are rounded to a tenth."""
        self.parts.append(self.text_of(name, content, **attributes))

    def open(self, name: str, **attributes: object) -> None:
        """A start tag; `close` ends it."""
        self.parts.append(self.text_of(name, None, **attributes).removesuffix("/>") + ">")

    def close(self, name: str) -> None:
        """The end tag."""
        self.parts.append(f"</{name}>")

    @staticmethod
    def text_of(name: str, content: str | None = None, **attributes: object) -> str:
        """The element as text; `content` is taken as it is and must be clean."""
        given = "".join(
            f' {key.replace("_", "-")}="{clean(_short(v))}"' for key, v in attributes.items() if v is not None
        )
        return f"<{name}{given}/>" if content is None else f"<{name}{given}>{content}</{name}>"

    def rect(self, box: tuple[float, float, float, float], fill: object, opacity: float = 1.0) -> None:
        """A filled rectangle (x0, y0, x1, y1) in pixels."""
        x0, y0, x1, y1 = box
        self.element(
            "rect",
            x=min(x0, x1),
            y=min(y0, y1),
            width=abs(x1 - x0),
            height=abs(y1 - y0),
            **self.paint("fill", fill, opacity),
        )

    def path(
        self,
        points: Sequence[tuple[float, float]],
        stroke: object,
        width: float,
        dash: str | None = None,
        opacity: float = 1.0,
    ) -> None:
        """A line through points; ones that are not finite break it."""
        steps, fresh = [], True
        for x, y in points:
            if x != x or y != y:
                fresh = True
                continue
            steps.append(f"{'M' if fresh else 'L'}{x:.1f} {y:.1f}")
            fresh = False
        if steps:
            dashes = _DASHES.get(dash or "", dash if dash and dash[0].isdigit() else None)
            self.element(
                "path",
                d="".join(steps),
                fill="none",
                stroke_width=width,
                stroke_dasharray=dashes,
                **self.paint("stroke", stroke, opacity),
            )

    def area(self, points: Sequence[tuple[float, float]], fill: object, opacity: float = 1.0) -> None:
        """A filled outline."""
        steps = " ".join(f"{x:.1f},{y:.1f}" for x, y in points if x == x and y == y)
        self.element("polygon", points=steps, **self.paint("fill", fill, opacity))

    def label(
        self,
        at: tuple[float, float],
        text: object,
        *,
        size: float,
        colour: object,
        anchor: str = "start",
        turn: float = 0.0,
        down: bool = True,
    ) -> None:
        """Lines of text. at: the first line's top (down) or the last line's bottom, at the anchor's side."""
        x, y = at
        lines = lines_of(text)
        step = 1.3 * size
        top = y + size if down else y - step * (len(lines) - 1) - 0.25 * size
        for i, (line, bold) in enumerate(lines):
            if line.strip():
                turned = f"rotate({turn:g} {x:.1f} {y:.1f})" if turn else None
                self.element(
                    "text",
                    clean(line),
                    x=x,
                    y=top + i * step,
                    font_size=size,
                    text_anchor=anchor if anchor != "start" else None,
                    font_weight="600" if bold else None,
                    transform=turned,
                    **self.paint("fill", colour),
                )

    def svg(self) -> str:
        """All that was drawn."""
        return "".join(self.parts)


def _short(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.1f}".rstrip("0").rstrip(".") if abs(value) >= 0.1 else f"{value:.3g}"
    return value
