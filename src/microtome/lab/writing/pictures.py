"""The pictures of a result as SVG, for a page that follows light and dark, and for files that do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from microtome.errors import MicrotomeError

if TYPE_CHECKING:
    from microtome.results import Result

__all__ = ["Drawn", "drawn", "pictures"]

MOST = 2
"""Pictures of one experiment: the rest are in its own report."""
LARGEST = 1_500_000
"""Characters of one picture."""


@dataclass(frozen=True)
class Drawn:
    """A picture. themed: SVG whose colours follow the page; light: the same by itself. absent: why there is none, "" else."""

    name: str
    caption: str
    themed: str = ""
    light: str = ""
    absent: str = ""


def pictures(result: Result) -> tuple[Drawn, ...]:
    """The pictures that stand for a result, at most two that could be drawn."""
    return tuple(one for one in drawn(result) if not one.absent)


def drawn(result: Result) -> tuple[Drawn, ...]:
    """The same, with those that could not be drawn and why."""
    from microtome.figures import pictures_of

    try:
        found = [p for p in pictures_of(result) if not p.secondary][:MOST]
    except MicrotomeError as error:
        return (Drawn("figures", "", absent=error.what),)
    return tuple(_draw(p.name, p.caption, p.draw) for p in found)


def _draw(name: str, caption: str, draw: Any) -> Drawn:
    from microtome.figures import static_svg
    from microtome.report.gallery import THEME

    try:
        figure = draw()
        themed, light = str(static_svg(figure, theme=THEME)), str(static_svg(figure))
    except MicrotomeError as error:
        return Drawn(name, caption, absent=error.what)
    if len(themed) > LARGEST:
        return Drawn(name, caption, absent=f"it has {len(themed)} characters, and {LARGEST} are shown at most")  # fmt: skip
    return Drawn(name, caption, themed, light)


def curve(score: Any, who: str) -> Drawn:
    """The calibration curve of forecasts."""
    from microtome.figures.forecasts import draw

    return _draw("calibration", f"Calibration of {who}", lambda: draw(score, who))
