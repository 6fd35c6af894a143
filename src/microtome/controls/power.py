"""What a design can show at best: the smallest p within its reach, decided before any effect is seen."""

from __future__ import annotations

import math
from dataclasses import dataclass

from microtome.errors import ControlError


def smallest_p(n_clusters: int, draws: int | None = None) -> float:
    """Smallest two-sided p of a sign-flip over `n_clusters` whole clusters.

    There are 2^(n-1) distinct flips (a flip of all signs changes nothing in |t|); with random draws the observed
    arrangement counts as one more draw. `draws=None` means exact.
    """
    _at_least("n_clusters", n_clusters, 1)
    exact = 2.0 ** (1 - n_clusters)
    return exact if draws is None else max(exact, 1 / (_at_least("draws", draws, 1) + 1))


def smallest_p_groups(n_first: int, n_second: int, draws: int | None = None) -> float:
    """Smallest two-sided p of a permutation of cluster labels between two groups of clusters."""
    ways = math.comb(_at_least("n_first", n_first, 1) + _at_least("n_second", n_second, 1), n_first)
    exact = (2 if n_first == n_second else 1) / ways
    return exact if draws is None else max(exact, 1 / (_at_least("draws", draws, 1) + 1))


def clusters_needed(alpha: float = 0.001) -> int:
    """Fewest clusters with which an exact sign-flip can reach `alpha` (11 for .001, 6 for .05)."""
    _level(alpha)
    return math.ceil(1 - math.log2(alpha) - 1e-12)


def draws_needed(alpha: float = 0.001) -> int:
    """Fewest random draws with which a permutation p can reach `alpha` (999 for .001)."""
    _level(alpha)
    return math.ceil(1 / alpha - 1e-9) - 1


@dataclass(frozen=True)
class Reach:
    """What a sign-flip test can show: its smallest p, the level, and in words what is missing."""

    smallest_p: float
    alpha: float
    n_clusters: int
    draws: int | None

    @property
    def underpowered(self) -> bool:
        """Whether no outcome whatever could reach alpha."""
        return self.smallest_p > self.alpha

    @property
    def sentence(self) -> str:
        """To print beside a result."""
        said = f"{self.n_clusters} clusters can reach p = {self.smallest_p:.2g}"
        if not self.underpowered:
            return f"{said} (alpha {self.alpha:g})"
        missing = []
        if self.n_clusters < clusters_needed(self.alpha):
            missing.append(f"{clusters_needed(self.alpha)} clusters")
        if self.draws is not None and self.draws < draws_needed(self.alpha):
            missing.append(f"{draws_needed(self.alpha)} draws")
        return f"{said}, not alpha {self.alpha:g}: that takes {' and '.join(missing)}"


def reach(n_clusters: int, *, draws: int | None = None, alpha: float = 0.001) -> Reach:
    """Whether a sign-flip over this many clusters can reach alpha at all. Raises ControlError for nonsense."""
    return Reach(smallest_p(n_clusters, draws), _level(alpha), n_clusters, draws)


def _level(alpha: float) -> float:
    if not 0.0 < alpha < 1.0:
        raise ControlError(
            f"alpha is {alpha}.", why="a significance level lies between 0 and 1", instead="0.001"
        )
    return alpha


def _at_least(name: str, value: int, least: int) -> int:
    if value < least:
        raise ControlError(f"{name} is {value}.", why=f"at least {least} is needed")
    return value
