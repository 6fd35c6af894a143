"""Pictures of results: pure functions from a Result to a Plotly figure, and a static renderer for notebooks.

One module per family of picture, each with `draw(result)`. `pictures_of(result)` lists all that a result has,
`static_svg(figure)` turns a figure into SVG without a browser or a script.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microtome.lazy import lazily

if TYPE_CHECKING:
    from .panels import Picture, pictures_of
    from .static import static_svg

__all__ = ["Picture", "pictures_of", "static_svg"]

_HOME = {"Picture": "panels", "pictures_of": "panels", "static_svg": "static"}

__getattr__, __dir__ = lazily(__name__, _HOME)
