"""What an agent may use: the instruments and the record, through the Model Context Protocol.

`serve_stdio` and `serve_http` run the server of a project; `microtome mcp` calls them. An agent works under the rules
that bind a person (its runs are recorded, predictions precede results, claims carry their caps), and under some that do
not: it cannot switch controls off or loosen a significance level, and it reaches nothing outside the project's folder.
"""  # fmt: skip

from __future__ import annotations

from typing import TYPE_CHECKING

from microtome.lazy import lazily

if TYPE_CHECKING:
    from .server import serve_stdio
    from .settings import Settings
    from .web import serve_http

__all__ = ["Settings", "serve_http", "serve_stdio"]

_HOME = {"Settings": "settings", "serve_http": "web", "serve_stdio": "server"}

__getattr__, __dir__ = lazily(__name__, _HOME)
