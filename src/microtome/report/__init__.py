"""A result as one HTML file that needs nothing but a browser: no network, no server, and no script to be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microtome.lazy import lazily

if TYPE_CHECKING:
    from .page import write_report

__all__ = ["write_report"]

__getattr__, __dir__ = lazily(__name__, {"write_report": "page"})
