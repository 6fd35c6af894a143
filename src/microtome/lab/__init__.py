"""The lab: research that records itself. Above the methods, which know nothing of it (docs/decisions/0020)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
