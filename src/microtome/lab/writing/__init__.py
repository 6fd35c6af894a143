"""From claims and runs to a write-up that somebody else can check: HTML, PDF, Markdown, and an archive that runs again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microtome.lazy import lazily

if TYPE_CHECKING:
    from .archive import pack
    from .collecting import Words, collect
    from .drafting import draft, read_draft
    from .html import write_html
    from .markdown import write_markdown
    from .pdf import write_pdf
    from .reproducing import reproduce
    from .values import WriteUp

_HOME = {"WriteUp": "values", "Words": "collecting", "collect": "collecting", "draft": "drafting", "pack": "archive", "read_draft": "drafting",
         "reproduce": "reproducing", "write_html": "html", "write_markdown": "markdown", "write_pdf": "pdf"}  # fmt: skip

__all__ = [
    "Words",
    "WriteUp",
    "collect",
    "draft",
    "pack",
    "read_draft",
    "reproduce",
    "write_html",
    "write_markdown",
    "write_pdf",
]

__getattr__, __dir__ = lazily(__name__, _HOME)
