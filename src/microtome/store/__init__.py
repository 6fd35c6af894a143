"""Activations of a whole dataset, captured once and read by everything that needs them.

The module is the function: `mt.store(model, data, sites, folder)` captures, `mt.store.Store.open(folder)` reads again.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from microtome.store.capturing import capture
from microtome.store.items import Items, items_of
from microtome.store.reading import Store

__all__ = ["Items", "Store", "capture", "items_of"]


class _Callable(ModuleType):
    """`microtome.store` is a package and `mt.store(...)` a call; a module of this class is both."""

    def __call__(self, *args: Any, **kwargs: Any) -> Store:
        return capture(*args, **kwargs)


_Callable.__call__.__doc__ = capture.__doc__
sys.modules[__name__].__class__ = _Callable
