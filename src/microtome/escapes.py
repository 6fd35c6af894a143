"""Text from models, data and people, shown and not obeyed."""

from __future__ import annotations

__all__ = ["visible"]


def visible(text: object, keep: str = "") -> str:
    """Text with every character that a terminal would obey, or not show, written as an escape. keep: characters left as they are."""
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in str(text))
