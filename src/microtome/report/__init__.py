"""A result as one HTML file that needs nothing but a browser: no network, no server, and no script to be read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .page import write_report

__all__ = ["write_report"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .page import write_report

    globals()[name] = write_report
    return write_report


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
