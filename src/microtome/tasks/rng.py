"""Random numbers by name: the same seed and name give the same draws, whatever was drawn before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from microtome.results.seeds import child, rng

if TYPE_CHECKING:
    import numpy as np

__all__ = ["child", "choose", "rng", "shuffled", "spread"]

T = TypeVar("T")


def shuffled(items: Sequence[T], seed: int, name: str) -> list[T]:
    """The items in the order that seed and name give."""
    return [items[int(i)] for i in rng(seed, name).permutation(len(items))]


def spread(items: Sequence[T], i: int, seed: int, name: str) -> T:
    """The item for draw `i`: every item once in each round of len(items) draws, each round in an order of its own.

    Rounds are shuffled afresh so that two lists spread over the same draws are not tied to each other.
    """
    turn, place = divmod(i, len(items))
    return shuffled(items, seed, f"{name}/{turn}")[place]


def choose(items: Sequence[T], source: np.random.Generator) -> T:
    """One item, each equally likely."""
    return items[int(source.integers(len(items)))]
