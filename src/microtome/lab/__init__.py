"""The lab: research that records itself. Above the methods, which know nothing of it (docs/decisions/0020)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microtome.lazy import lazily

if TYPE_CHECKING:
    from .claiming import Link as Link
    from .reading import Record as Record
    from .reading import open_record as open_record
    from .study import Study as Study

__all__ = ["Link", "Record", "Study", "open_record"]

_HOME = {
    "Link": "claiming",
    "Record": "reading",
    "Study": "study",
    "open_record": "reading",
}

__getattr__, __dir__ = lazily(__name__, _HOME)
