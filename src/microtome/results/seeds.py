"""Child seeds by name: adding a draw somewhere changes no other draw."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from ..errors import ResultError

if TYPE_CHECKING:
    import numpy as np


def child(seed: int, name: str) -> int:
    """The seed of the draw called `name` under `seed`, in [0, 2**63).

    It depends on the two alone, never on the order of calls, the process or the platform.
    Raises ResultError for a seed that is no integer >= 0 and for an empty name.
    """
    import operator

    if isinstance(seed, bool) or not hasattr(seed, "__index__") or operator.index(seed) < 0:
        raise ResultError(f"seed is {seed!r}", why="a seed is an integer from 0 on", instead="seed=0")
    if not isinstance(name, str) or not name:
        raise ResultError(
            f"a child seed called {name!r}",
            why="child seeds derive by name",
            instead="child(seed, 'sign_flip')",
        )
    content = f"microtome.seed/{operator.index(seed)}/{name}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1


def rng(seed: int, name: str) -> np.random.Generator:
    """A NumPy generator seeded with `child(seed, name)`. Raises as `child`."""
    import numpy as np

    return np.random.default_rng(child(seed, name))
