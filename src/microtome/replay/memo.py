"""Recorded runs kept for the length of one method call, within a budget."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from microtome.replay.base import Base


class Memo:
    """Base runs by what was run. A method's sweeps and controls ask for the same runs again and again.

    A memo must not outlive the method call that made it: it would not notice a change of the weights.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, tuple[Base, int]] = OrderedDict()

    def base(self, key: Hashable, make: Callable[[], Base], budget: int) -> Base:
        """The run of this key, made if it is not there. Kept within `budget` bytes; the longest unused goes first."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][0]
        made = make()
        size = made.nbytes()
        while self._kept and size + sum(s for _, s in self._kept.values()) > budget:
            self._kept.popitem(last=False)
        if size <= budget:
            self._kept[key] = (made, size)
        return made
