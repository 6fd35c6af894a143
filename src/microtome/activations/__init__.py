"""Activations of a whole dataset, captured once and read by everything that needs them.

`mt.store(model, data, sites, folder)` captures; `Store.open(folder)` reads again. The package is not called as the function, so
that importing one never hides the other.
"""

from __future__ import annotations

from microtome.activations.capturing import capture
from microtome.activations.items import Items, items_of
from microtome.activations.reading import Store

__all__ = ["Items", "Store", "capture", "items_of"]
