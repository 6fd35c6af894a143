"""A Plotly figure as SVG without a browser, a script or a network: for notebooks, and under the pictures of a report."""

from __future__ import annotations

from .render import static_svg

__all__ = ["static_svg"]
