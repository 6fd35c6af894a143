"""Recorded runs kept for the length of one method call, within a budget."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from microtome.replay.base import Base

BUDGET = 1 << 29


class Memo:
    """Base runs by what was run. A method's sweeps and controls ask for the same runs again and again.

    budget: bytes; the longest unused run goes first. A memo must not outlive the method call that made it: it would
    not notice a change of the weights.
    """

    def __init__(self, budget: int = BUDGET) -> None:
        self.budget = budget
        self._kept: OrderedDict[Hashable, tuple[Base, int]] = OrderedDict()

    def base(self, key: Hashable, make: Callable[[], Base]) -> Base:
        """The run of this key, made if it is not there."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][0]
        made = make()
        size = made.nbytes()
        if size <= self.budget:
            while self._kept and size + sum(s for _, s in self._kept.values()) > self.budget:
                self._kept.popitem(last=False)
            self._kept[key] = (made, size)
        return made
