"""Models whose mechanism is known, and the calibration of every method on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from microtome.zoo.catalog import build, entries
    from microtome.zoo.decoys import Decoys
    from microtome.zoo.mechanism import Mechanism, Variable
    from microtome.zoo.specimen import Specimen

_HOME = {"build": "catalog", "entries": "catalog", "Specimen": "specimen", "Decoys": "decoys", "Mechanism": "mechanism", "Variable": "mechanism"}  # fmt: skip
__all__ = ["Decoys", "Mechanism", "Specimen", "Variable", "build", "entries"]


def __getattr__(name: str) -> Any:
    """`build` and the kinds of values that it returns, loaded when asked for: they need torch."""
    import importlib

    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
