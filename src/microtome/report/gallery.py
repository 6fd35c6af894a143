"""Figures in a page: a static picture for every reader, data for the interactive one, and the Python that draws it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MicrotomeError
from ..figures import pictures_of, static_svg
from ..figures.colours import BAND, GRID, INK, MUTED, SERIES
from ..figures.snippet import python
from .markup import Html, fold, join, tag

if TYPE_CHECKING:
    from ..figures.panels import Picture
    from ..results.result import Result

# The colours of text and lines follow the page's; those of data do not.
THEME = {
    "paper": "none",
    INK: "currentColor",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    BAND: "var(--band)",
}
THEME |= {colour: f"var(--s{i})" for i, colour in enumerate(SERIES)}


@dataclass
class Gallery:
    """Draws figures until the page is full; then says so instead, with the Python that draws the rest.

    folder: where the result was saved, for the snippets; room: bytes left for figures.
    """

    folder: str | Path
    room: int
    drawn: int = 0
    left_out: list[str] = field(default_factory=list)

    def of(self, result: Result, path: tuple[int, ...], stage: str) -> Html:
        """All pictures of one result; those that few readers want are folded away."""
        try:
            pictures = pictures_of(result)
        except MicrotomeError as error:
            return _no_picture("figures", error)
        main = [self._figure(p, path, stage) for p in pictures if not p.secondary]
        more = [self._figure(p, path, stage) for p in pictures if p.secondary]
        name = f"{len(more)} more figure{'s' if len(more) > 1 else ''}"
        return join(_columns(main), fold(name, _columns(more), cls="more") if more else None)

    def _figure(self, picture: Picture, path: tuple[int, ...], stage: str) -> tuple[Html, int]:
        """The figure and about how many pixels high it is."""
        code = python(picture.call, folder=self.folder, path=path)
        name = f"figure-{stage}-{self.drawn + len(self.left_out) + 1}"
        try:
            figure = picture.draw()
            still = Html(static_svg(figure, theme=THEME))
        except MicrotomeError as error:
            return _no_picture(picture.name, error), 40
        data = island(figure)
        size = len(data.encode()) + len(still.encode()) + 2000
        if size > self.room:
            self.left_out.append(f"{stage}: {picture.name}")
            body = tag(
                "p", "Left out: the file would become too large. The Python below draws it.", cls="absent"
            )
            caption = tag("figcaption", tag("p", picture.caption), _python(code, name))
            return tag("figure", body, caption, cls="fig", id=name), 160
        self.room -= size
        self.drawn += 1
        height = int(figure.layout.height or 450)
        plot = tag("div", still, cls="plot", style=f"--height:{height}px", data_title=_plain_title(figure))
        made = tag(
            "figure",
            plot,
            tag("script", data, type="application/json", cls="plot-data"),
            tag("figcaption", tag("p", picture.caption), _python(code, name)),
            cls="fig",
            id=name,
            aria_label=picture.name,
        )
        return made, height + 130


def _columns(figures: Sequence[tuple[Html, int]]) -> Html | None:
    """Figures in two columns of about the same height; on a narrow screen the second follows the first."""
    if not figures:
        return None
    sides: tuple[list[Html], list[Html]] = ([], [])
    heights = [0, 0]
    for made, height in figures:
        side = 0 if heights[0] <= heights[1] else 1
        sides[side].append(made)
        heights[side] += height
    return tag("div", [tag("div", side, cls="column") for side in sides if side], cls="figures")


def island(figure: Any) -> Html:
    """A figure's data and layout as JSON for a <script> of type application/json.

    Every character that could end the element, open a comment or break a line is written as an escape.
    """
    figure.update_layout(meta=None)  # the snippet stands beside the figure already
    text = figure.to_json()
    for char in ("<", ">", "&", "\u2028", "\u2029"):
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Html(text)


def _python(code: str, name: str) -> Html:
    button = tag("button", "Copy as Python", type="button", cls="copy", data_for=f"{name}-python")
    said = tag("span", role="status", cls="said")
    shown = fold("Python", tag("pre", tag("code", code), id=f"{name}-python", tabindex="0"), cls="python")
    return tag("div", button, said, shown, cls="actions")


def _plain_title(figure: Any) -> str:
    from ..figures.static.pen import lines_of

    return " ".join(line for line, _ in lines_of(figure.layout.title.text or ""))


def _no_picture(name: str, error: MicrotomeError) -> Html:
    return tag(
        "p", f"No picture of {name}: {error.what}" + (f" ({error.why})" if error.why else ""), cls="absent"
    )
